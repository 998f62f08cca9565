"""LLM-Pruner: groups of coupled weights by first-order Taylor importance (Ma, Fang and Wang, NeurIPS 2023, arXiv 2305.11627)."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.budget import TOLERANCE, Budget, buy, descending
from bench.calibration import Calibration
from bench.masks import Floats, Masks, by_array
from bench.method import Method, Skip
from bench.model import PrunableModel
from bench.nn.sublayer import SubLayer
from bench.stages import progress, stage

IMPORTANCES = ("element", "vector")


@dataclass
class LLMPruner(Method):
    """A unit's importance is the sum over its matrices of sum |w · ∂loss/∂w| (`importance` element, the paper's default, its equation 4
    without the second-order term) or of |sum w · ∂loss/∂w| (vector).

    The same share of every layer goes, but nothing of the first `protect_first` and the last `protect_last` ones. A group of query heads is
    scored by its own query heads: the authors' code folds those of other groups into it (docs/methods.md).
    """

    importance: str = "element"
    protect_first: int = 4
    protect_last: int = 2

    labels = True
    gradients = True

    def __post_init__(self) -> None:
        if self.importance not in IMPORTANCES:
            raise ValueError(f"method.importance={self.importance}: one of {', '.join(IMPORTANCES)}")
        for name in ("protect_first", "protect_last"):
            if getattr(self, name) < 0:
                raise ValueError(f"method.{name}={getattr(self, name)}: a number of layers, or 0")

    def prune(self, model: PrunableModel, calibration: Calibration, budget: Budget) -> Masks:
        """One forward and backward pass with gradients of the weights."""
        with stage("score"):
            scores = self.scores(model, calibration)
        with stage("search"):
            return self.chosen(scores, budget)

    def scores(self, model: PrunableModel, calibration: Calibration) -> tuple[Floats, Floats]:
        """Of heads [L, H] and neurons [L, I], higher is better."""
        weights = [linear.weight for sublayer in model.sublayers for _, _, linear in sublayer.matrices()]
        for weight in weights:
            weight.requires_grad_(True)
        try:
            for part in progress(calibration.all_parts, "gradients"):
                losses = calibration.kind.loss(model.forward(part), part["labels"])
                (losses.sum() / calibration.examples).backward()  # type: ignore[no-untyped-call]
            found = [self._of(sublayer) for sublayer in model.sublayers]
        finally:
            for weight in weights:
                weight.requires_grad_(False)
                weight.grad = None
        heads, neurons = (np.stack(list(rows)) for rows in by_array(found))
        return heads, neurons

    @torch.no_grad()
    def _of(self, sublayer: SubLayer) -> Floats:
        total = torch.zeros(sublayer.units, dtype=torch.float64, device=sublayer.projection.weight.device)
        for one in sublayer.producers:
            total += self._summed(_product(one.linear.weight).view(sublayer.units, -1))
        total += self._summed(_product(sublayer.projection.weight).T.reshape(sublayer.units, -1))
        values: Floats = total.cpu().numpy()
        return values

    def _summed(self, products: Tensor) -> Tensor:
        return products.abs().sum(1) if self.importance == "element" else products.sum(1).abs()

    def chosen(self, scores: tuple[Floats, Floats], budget: Budget) -> Masks:
        """The best units of every layer that is not protected, the same share of each; what is left pays for the next best.

        Raises:
            Skip: the protected layers alone cost more than is left.
        """
        masks, free = Masks.ones(budget.shape), self.free_layers(budget.shape.layers)
        if budget.fits(budget.total):
            return masks
        masks.heads[free] = masks.neurons[free] = 0.0
        if not budget.fits(budget.cost(masks)):
            raise Skip(f"the protected layers alone cost more than ratio={budget.ratio:g} leaves; set method.protect_first lower")
        shares = sorted({k / values.shape[1] for values in scores for k in range(values.shape[1] + 1)}, reverse=True)
        for share in shares:
            masks.heads[free], masks.neurons[free] = (_best(values[free], share) for values in scores)
            if budget.fits(budget.cost(masks)):
                break
        for mask, values, price in zip((masks.heads, masks.neurons), scores, (budget.heads, budget.neurons), strict=True):
            order = descending(values)
            buy(mask, order[mask.ravel()[order] == 0], price, budget.limit * TOLERANCE - budget.cost(masks))
        return masks

    def free_layers(self, layers: int) -> NDArray[np.intp]:
        """Those that are not protected; in a model too shallow for that (less than four times as many layers) all."""
        first, last = self.protect_first, self.protect_last
        if layers < 4 * (first + last):
            first = last = 0
        return np.arange(first, layers - last)


def _best(values: Floats, share: float) -> Floats:
    """Of every row the share of highest values as ones."""
    order = np.argsort(-values, axis=1, kind="stable")[:, : int(values.shape[1] * share * TOLERANCE)]
    kept = np.zeros_like(values)
    np.put_along_axis(kept, order, 1.0, axis=1)
    return kept


def _product(weight: Tensor) -> Tensor:
    gradient = weight.grad
    assert gradient is not None
    return weight.double() * gradient.double()
