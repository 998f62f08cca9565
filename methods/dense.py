"""No pruning: the dense model as a row of its own."""

from dataclasses import dataclass

from bench.budget import Budget
from bench.calibration import Calibration
from bench.masks import Masks
from bench.method import Method, Skip
from bench.model import PrunableModel


@dataclass
class Dense(Method):
    """Keeps everything; only at ratio 0."""

    def prune(self, model: PrunableModel, calibration: Calibration, budget: Budget) -> Masks:
        """All ones.

        Raises:
            Skip: the ratio asks for something to be removed.
        """
        if budget.ratio > 0:
            raise Skip("dense prunes nothing: it is a row at ratio=0")
        return Masks.ones(model.shape)
