"""Random scores: what any method has to beat."""

from dataclasses import dataclass

from bench.budget import Scores
from bench.calibration import Calibration
from bench.method import Scorer
from bench.model import PrunableModel


@dataclass
class Random(Scorer):
    """Scores drawn uniformly from [0, 1) by the run's seed; the same number of units in every sub-layer of a kind."""

    def score(self, model: PrunableModel, calibration: Calibration) -> Scores:
        """Heads first, then neurons."""
        shape, draw = model.shape, calibration.generator.random
        return Scores(draw((shape.layers, shape.heads)), draw((shape.layers, shape.neurons)))
