"""Diagonal Fisher information of heads and neurons from the task's loss, with labels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.budget import Scores
from bench.calibration import Calibration
from bench.masks import Floats
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
    shape, like = model.shape, model.projection(0).weight
    kept: list[list[Tensor]] = [[], []]
    for parts in progress(calibration.parts, "Fisher information"):
        ones = model.ones(parts[0])
        gradients = [torch.zeros(len(one), shape.units(s), dtype=torch.float64, device=like.device) for s, one in ones.items()]
        for part in parts:
            hidden, context = model.embed(part)
            with model.probed(ones, context):
                losses = calibration.kind.loss(model.run(hidden, context), part["labels"])
            found = torch.autograd.grad(losses @ part["shares"].to(losses), list(ones.values()))
            for total, gradient in zip(gradients, found, strict=True):
                total += gradient.view(*total.shape, -1).sum(2)
        for kind in (0, 1):
            kept[kind].append(torch.stack(gradients[kind::2], 1))
    heads, neurons = (torch.cat(parts).cpu().numpy() for parts in kept)
    return Gradients(heads, neurons)
