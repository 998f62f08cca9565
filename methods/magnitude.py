"""Magnitude pruning of heads and neurons."""

from dataclasses import dataclass

import numpy as np

from bench.budget import Scores
from bench.calibration import Calibration
from bench.masks import Floats
from bench.method import Scorer
from bench.model import PrunableModel


@dataclass
class Magnitude(Scorer):
    """Prune the units whose weights are smallest: the L2 norm of all weights of a unit (rows of the producers, columns
    of the output projection; no biases), uniform allocation."""

    def score(self, model: PrunableModel, calibration: Calibration) -> Scores:
        """L2 norms; no data is looked at."""
        layers = range(model.shape.layers)
        heads, neurons = (np.stack([self._norms(model, 2 * layer + kind) for layer in layers]) for kind in (0, 1))
        return Scores(heads, neurons)

    @staticmethod
    def _norms(model: PrunableModel, sublayer: int) -> Floats:
        squares = model.projection(sublayer).weight.double().square().sum(0)
        for linear in model.producers(sublayer):
            squares = squares + linear.weight.double().square().sum(1)
        units: Floats = squares.view(model.shape.units(sublayer), -1).sum(1).sqrt().cpu().numpy()
        return units
