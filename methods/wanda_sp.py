"""Wanda for structured pruning: weights times activations."""

from dataclasses import dataclass

from bench.budget import Scores
from bench.calibration import Calibration
from bench.method import Scorer
from bench.model import PrunableModel
from methods.activations import by_unit, statistics


@dataclass
class WandaSP(Scorer):
    """‖W column‖₂ · ‖x column‖₂ of the output projection, summed over the columns of a unit (Sun et al., ICLR 2024,
    arXiv 2306.11695; as a structured baseline in An et al., AAAI 2024, arXiv 2312.11983)."""

    def score(self, model: PrunableModel, calibration: Calibration) -> Scores:
        """One forward pass, no labels."""
        seen = statistics(model, calibration)
        norms = [sublayer.projection.weight.double().norm(dim=0) for sublayer in model.sublayers]
        heads, neurons = by_unit(model, [norm * seen.squares(s).sqrt() for s, norm in enumerate(norms)])
        return Scores(heads.numpy(), neurons.numpy())
