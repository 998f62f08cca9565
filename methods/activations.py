"""Statistics of the output projections' inputs over a calibration set, from one forward pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.calibration import Calibration
from bench.masks import by_array
from bench.model import PrunableModel
from bench.nn.sublayer import widened
from bench.stages import progress


@dataclass(frozen=True)
class Statistics:
    """Of every column over the real tokens, float64, one tensor [columns] per sub-layer."""

    mean: list[Tensor]
    variance: list[Tensor]
    absolute: list[Tensor]
    tokens: int

    def squares(self, sublayer: int) -> Tensor:
        """Sum of x² over the tokens [columns]."""
        return self.tokens * (self.variance[sublayer] + self.mean[sublayer].square())


@torch.no_grad()
def statistics(model: PrunableModel, calibration: Calibration) -> Statistics:
    """Mean, variance (over N) and mean absolute value of the dense model's columns.

    Batches are merged by Chan's formula, so that a small variance beside a large mean is not lost.
    """
    sizes = [sublayer.projection.in_features for sublayer in model.sublayers]
    mean, squared, absolute = ([torch.zeros(size, dtype=torch.float64, device=model.device) for size in sizes] for _ in range(3))
    seen = 0
    for part in progress(calibration.all_parts, "activations"):
        hidden, context = model.embed(part)
        new = len(hidden)
        total = seen + new
        for s, sublayer in enumerate(model.sublayers):
            x, _, hidden = sublayer(hidden, context)
            x = widened(x)
            variance, average = (part.double() for part in torch.var_mean(x, 0, correction=0))
            step = average - mean[s]
            mean[s] += step * (new / total)
            squared[s] += variance * new + step.square() * (seen * new / total)
            absolute[s] += (x.abs().mean(0).double() - absolute[s]) * (new / total)
        seen = total
    return Statistics(mean, [part / seen for part in squared], absolute, seen)


def by_unit(model: PrunableModel, columns: list[Tensor]) -> list[Tensor]:
    """Sums of columns per unit: heads [L, H] and neurons [L, I], on the CPU."""
    units = [sublayer.by_unit(part).sum(1).cpu() for sublayer, part in zip(model.sublayers, columns, strict=True)]
    return [torch.stack(list(rows)) for rows in by_array(units)]
