"""Scores from the gradients of the task's loss by the masks, with labels."""

from dataclasses import dataclass

import numpy as np

from bench.budget import Scores
from bench.calibration import Calibration
from bench.method import Scorer
from bench.model import PrunableModel
from methods.fisher import batch_gradients


@dataclass
class Taylor(Scorer):
    """Mean over mini-batches of |∂loss/∂mask| (Michel et al., NeurIPS 2019, arXiv 1905.10650; Molchanov et al., CVPR
    2019, arXiv 1906.10771)."""

    allocation: str = "global"

    labels = True
    gradients = True

    def score(self, model: PrunableModel, calibration: Calibration) -> Scores:
        """One forward and backward pass."""
        found = batch_gradients(model, calibration)
        return Scores(np.abs(found.heads).mean(0), np.abs(found.neurons).mean(0))


@dataclass
class Fisher(Scorer):
    """The diagonal of the empirical Fisher information of the masks: Kwon et al.'s scores without their search,
    rearrangement and tuning."""

    allocation: str = "global"

    labels = True
    gradients = True

    def score(self, model: PrunableModel, calibration: Calibration) -> Scores:
        """One forward and backward pass."""
        return batch_gradients(model, calibration).information()
