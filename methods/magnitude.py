"""Magnitude pruning of heads and neurons."""

from dataclasses import dataclass

import numpy as np
import torch

from bench.budget import Scores
from bench.calibration import Calibration
from bench.masks import Floats, by_array
from bench.method import Scorer
from bench.model import PrunableModel
from bench.nn.sublayer import SubLayer


@dataclass
class Magnitude(Scorer):
    """Prune the units whose weights are smallest: the L2 norm of all weights of a unit (rows of the producers, columns
    of the output projection; no biases), uniform allocation."""

    def score(self, model: PrunableModel, calibration: Calibration) -> Scores:
        """L2 norms; no data is looked at."""
        heads, neurons = by_array([_norms(sublayer) for sublayer in model.sublayers])
        return Scores(np.stack(heads), np.stack(neurons))


def _norms(sublayer: SubLayer) -> Floats:
    weights = torch.cat([sublayer.incoming(), sublayer.outgoing()], 1)
    norms: Floats = weights.double().norm(dim=1).cpu().numpy()
    return norms
