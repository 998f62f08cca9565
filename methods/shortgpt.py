"""ShortGPT: whole layers go, those that change the hidden state least (Men et al. 2024, arXiv 2403.03853)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.budget import Budget
from bench.calibration import Calibration
from bench.masks import Floats, Masks
from bench.method import Method
from bench.model import PrunableModel
from bench.stages import progress, stage


@dataclass
class ShortGPT(Method):
    """Layers with the lowest Block Influence go, all at once, until the budget fits: 1 - cos(state below, state above), the mean over
    the tokens (equation 1). A layer that is gone adds nothing at all, the biases of its output projections go as well."""

    layers = True

    def prune(self, model: PrunableModel, calibration: Calibration, budget: Budget) -> Masks:
        """One forward pass, no labels."""
        with stage("measure"):
            influence = block_influence(model, calibration)
        masks = Masks.ones(model.shape)
        with stage("search"):
            for layer in np.argsort(influence, kind="stable"):
                if budget.fits(budget.cost(masks)):
                    break
                masks.heads[layer] = masks.neurons[layer] = 0.0
        with torch.no_grad():
            for s, sublayer in enumerate(model.sublayers):
                if not masks.of(s).any() and sublayer.projection.bias is not None:
                    sublayer.projection.bias.zero_()
        return masks


@torch.no_grad()
def block_influence(model: PrunableModel, calibration: Calibration) -> Floats:
    """Of every layer [L]."""
    total, tokens = np.zeros(model.shape.layers), 0
    for part in progress(calibration.all_parts, "block influence"):
        hidden, context = model.embed(part)
        tokens += len(hidden)
        for layer in range(model.shape.layers):
            below = hidden
            for sublayer in model.sublayers[2 * layer : 2 * layer + 2]:
                hidden = sublayer(hidden, context)[2]
            total[layer] += float(_change(below, hidden).sum())
    return total / tokens


def _change(below: Tensor, above: Tensor) -> Tensor:
    """1 - cos of two states [tokens]; a half where one of them is zero (as the authors' code counts what is no number)."""
    zero = (below.norm(dim=1) == 0) | (above.norm(dim=1) == 0)
    return torch.where(zero, 0.5, 1 - F.cosine_similarity(below.double(), above.double(), dim=1))
