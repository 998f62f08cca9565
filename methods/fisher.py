"""Diagonal Fisher information of heads and neurons from the task's loss, with labels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.budget import Scores
from bench.calibration import Calibration
from bench.masks import Floats, by_array
from bench.model import PrunableModel
from bench.stages import progress


@dataclass(frozen=True)
class Gradients:
    """Gradients of the loss of each mini-batch (its mean over examples) by one mask value per unit, float64:
    heads [batches, L, H], neurons [batches, L, I]."""

    heads: Floats
    neurons: Floats

    def information(self) -> Scores:
        """Sums of squares over the batches (Kwon et al. 2022, equation 6; the empirical Fisher's diagonal)."""
        return Scores((self.heads**2).sum(0), (self.neurons**2).sum(0))


def batch_gradients(model: PrunableModel, calibration: Calibration) -> Gradients:
    """One forward and backward pass over the set, gradients of the masks only."""
    kept: list[list[Tensor]] = [[], []]
    for parts in progress(calibration.parts, "Fisher information"):
        ones = model.ones(parts[0])
        gradients = [one.new_zeros(len(one), model.sublayers[s].units, dtype=torch.float64) for s, one in ones.items()]
        for part in parts:
            hidden, context = model.embed(part)
            with model.probed(ones, context):
                losses = calibration.kind.loss(model.run(hidden, context), part["labels"])
            found = torch.autograd.grad(losses @ part["shares"].to(losses), list(ones.values()))
            for sublayer, total, gradient in zip(model.sublayers, gradients, found, strict=True):
                total += sublayer.by_unit(gradient).sum(2)
        for array, rows in zip(kept, by_array(gradients), strict=True):
            array.append(torch.stack(list(rows), 1))
    heads, neurons = (torch.cat(parts).cpu().numpy() for parts in kept)
    return Gradients(heads, neurons)
