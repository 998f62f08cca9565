"""Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", NeurIPS 2022, arXiv 2204.09656.

Fisher information, search, rearrangement within layers, mask tuning. Differences from the authors' code: docs/methods.md.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from bench.budget import Budget, joint
from bench.calibration import Calibration
from bench.masks import Floats, Masks
from bench.method import Method
from bench.model import PrunableModel
from bench.stages import stage
from methods.fisher import batch_gradients
from methods.mask_tuning import tune_masks


@dataclass
class Kwon(Method):
    """One-shot mask search with labels. `ffn_teacher`: the target of a feed-forward in mask tuning (full, masked)."""

    rearrangement: bool = True
    tuning: bool = True
    ffn_teacher: str = "full"

    labels = True
    gradients = True

    def __post_init__(self) -> None:
        if self.ffn_teacher not in ("full", "masked"):
            raise ValueError(f"ffn_teacher={self.ffn_teacher}: full or masked")

    def prune(self, model: PrunableModel, calibration: Calibration, budget: Budget) -> Masks:
        """Mask search by the Fisher diagonal, rearrangement by its blocks, tuning against a less pruned teacher."""
        with stage("fisher"):
            gradients = batch_gradients(model, calibration)
        with stage("search"):
            information = gradients.information()
            masks = joint(information, budget)
            teacher_masks = joint(information, budget.at(1 - sqrt(1 - budget.ratio)))
        if self.rearrangement:
            with stage("rearrange"):
                masks = Masks(_rearranged(masks.heads, gradients.heads), _rearranged(masks.neurons, gradients.neurons))
        if self.tuning and budget.ratio > 0:
            with stage("tune"):
                # the first attention has nothing to make good: its input is the teacher's
                masks, note = tune_masks(model, calibration, masks, teacher_masks, self.ffn_teacher, range(1, model.shape.sublayers))
                self.notes += [note] if note else []
        return masks


def _rearranged(mask: Floats, gradients: Floats) -> Floats:
    """Every layer's mask [L, units] rearranged by its per-batch gradients [batches, L, units]."""
    return np.stack([rearrange(row, gradients[:, layer]) for layer, row in enumerate(mask)])


def rearrange(mask: Floats, gradients: Floats) -> Floats:
    """Exchange pruned units of one layer greedily so that the squared norm of their summed gradients gets small.

    mask [units], gradients [batches, units]. Units enter the pruned set in ascending order of importance; each time the
    one leaves whose removal leaves the smallest ‖Σ g‖² (section 4.2). Σ is kept, not the
    products of all units with one another: they are many, and few are asked for.
    """
    pruned = int((mask == 0).sum())
    if pruned in (0, len(mask)):
        return mask.copy()
    squares = np.square(gradients).sum(0)
    order = np.argsort(squares, kind="stable")
    members = np.append(order[:pruned], -1)  # in order of entry, so that the first of equals leaves; a place for the next
    of_unit = np.ascontiguousarray(gradients.T)
    total = of_unit[members[:-1]].sum(0)  # Σ over the set, per batch
    for unit in order[pruned:]:
        members[-1] = unit
        total += of_unit[unit]
        along = total @ gradients  # <g_u, Σ> for every unit u
        rest = squares[members] - 2 * along[members]  # ‖Σ - g_u‖² without the constant ‖Σ‖²
        i = int(np.argmin(rest))
        total -= of_unit[members[i]]
        members[i:-1] = members[i + 1 :]
    result = np.ones_like(mask)
    result[members[:-1]] = 0.0
    return result
