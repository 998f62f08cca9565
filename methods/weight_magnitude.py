"""Magnitude pruning of single weights, without training."""

from dataclasses import dataclass

from bench.budget import Budget
from bench.calibration import Calibration
from bench.masks import WeightMasks
from bench.method import Method
from bench.model import PrunableModel
from bench.stages import stage
from methods.masked_weights import MaskedWeights


@dataclass
class WeightMagnitude(Method):
    """Keeps the largest weights of the fine-tuned model, by absolute value: of every matrix (`allocation` uniform) or of all of
    them together (global)."""

    allocation: str = "uniform"

    def __post_init__(self) -> None:
        if self.allocation not in ("uniform", "global"):
            raise ValueError(f"method.allocation={self.allocation}: one of uniform, global")

    def prune(self, model: PrunableModel, calibration: Calibration, budget: Budget) -> WeightMasks:
        """No data are looked at."""
        with stage("search"):
            masked = MaskedWeights(model, scored=False)
            keep = masked.keep_share if self.allocation == "uniform" else masked.keep_globally
            keep(1 - budget.ratio)
            return masked.finish(budget.limit)
