"""FLAP: fluctuation-based structured pruning with bias compensation.

An, Zhao, Yu, Tang and Wang, "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024,
arXiv 2312.11983.
"""

from dataclasses import dataclass

import numpy as np
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
                for s, sublayer in enumerate(model.sublayers):
                    gone = sublayer.columns(np.flatnonzero(masks.of(s) == 0))
                    sublayer.add_bias(sublayer.projection.weight.double()[:, gone] @ seen.mean[s][gone])
        return masks

    @staticmethod
    def _scores(model: PrunableModel, seen: Statistics) -> Scores:
        """Variance of a column times its squared norm, summed per unit, standardised within its sub-layer."""
        squares = (sublayer.projection.weight.double().square().sum(0) for sublayer in model.sublayers)
        columns = [variance * square for variance, square in zip(seen.variance, squares, strict=True)]
        heads, neurons = (_standardised(units).numpy() for units in by_unit(model, columns))
        return Scores(heads, neurons, ranked=True)


def _standardised(units: Tensor) -> Tensor:
    """z-scores within every row [L, units]; a row of equals is all zeros."""
    spread = units.std(1, keepdim=True)
    return (units - units.mean(1, keepdim=True)) / torch.where(spread > 0, spread, 1.0)
