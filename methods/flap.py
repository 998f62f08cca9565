"""FLAP: fluctuation-based structured pruning with bias compensation.

An, Zhao, Yu, Tang and Wang, "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024,
arXiv 2312.11983.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.budget import ALLOCATIONS, Budget, Scores
from bench.calibration import Calibration
from bench.masks import Masks
from bench.method import Method
from bench.model import PrunableModel
from bench.stages import stage
from methods.activations import Statistics, by_unit, statistics


@dataclass
class Flap(Method):
    """Prune what fluctuates least, and put the mean of what is gone into the bias. `compensate`: the latter."""

    compensate: bool = True

    def prune(self, model: PrunableModel, calibration: Calibration, budget: Budget) -> Masks:
        """One forward pass, no labels; units of all sub-layers are ranked by their z-score."""
        with stage("measure"):
            seen = statistics(model, calibration)
        with stage("search"):
            masks = ALLOCATIONS["global"](self._scores(model, seen), budget)
        if self.compensate:
            with stage("compensate"), torch.no_grad():
                for s in range(model.shape.sublayers):
                    gone = torch.as_tensor(masks.columns(s, model.shape) == 0, device=model.device)
                    projection = model.projection(s)
                    lost = projection.weight.double()[:, gone] @ seen.mean[s][gone]
                    projection.bias.add_(lost.to(projection.bias))
        return masks

    @staticmethod
    def _scores(model: PrunableModel, seen: Statistics) -> Scores:
        """Variance of a column times its squared norm, summed per unit, standardised within its sub-layer."""
        columns = [seen.variance[s] * model.projection(s).weight.double().square().sum(0) for s in range(model.shape.sublayers)]
        heads, neurons = (_standardised(units).numpy() for units in by_unit(model, columns))
        return Scores(heads, neurons, ranked=True)


def _standardised(units: Tensor) -> Tensor:
    """z-scores within every row [L, units]; a row of equals is all zeros."""
    spread = units.std(1, keepdim=True)
    return (units - units.mean(1, keepdim=True)) / torch.where(spread > 0, spread, 1.0)
