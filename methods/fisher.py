"""Diagonal Fisher information of heads and neurons from the task's loss, with labels."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.budget import Scores
from bench.calibration import Calibration
from bench.masks import Floats
from bench.model import PrunableModel
from bench.stages import progress
from methods.states import factors_of


@dataclass(frozen=True)
class Gradients:
    """Gradients of the loss of each mini-batch (its mean over examples) by one mask value per unit, float64:
    heads [batches, L, H], neurons [batches, L, I]."""

    heads: Floats
    neurons: Floats

    def information(self) -> Scores:
        """Sums of squares over the batches (Kwon et al. 2022, equation 6; the empirical Fisher's diagonal)."""
        return Scores((self.heads**2).sum(0), (self.neurons**2).sum(0))


def task_loss(logits: Tensor, labels: Tensor, kind: str) -> Tensor:
    """The ordinary loss of the task, mean over the batch: squared error, cross-entropy, or the mean of start's and end's."""
    return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype)) if kind == "regression" else F.cross_entropy(logits, labels)


def batch_gradients(model: PrunableModel, calibration: Calibration) -> Gradients:
    """One forward and backward pass over the set, gradients of the masks only."""
    shape = model.shape
    like = model.projection(0).weight
    kept: list[list[Tensor]] = [[], []]
    for batch, parts in zip(progress(calibration.batches, "Fisher information"), calibration.parts, strict=True):
        gradients = [torch.zeros(shape.units(s), dtype=torch.float64, device=like.device) for s in range(shape.sublayers)]
        for part in parts:
            units = [torch.ones(shape.units(s), dtype=like.dtype, device=like.device, requires_grad=True) for s in range(shape.sublayers)]
            with model.masked({s: factors_of(model, s, unit) for s, unit in enumerate(units)}):
                loss = task_loss(model.forward(part), part["labels"], calibration.kind)
            share = len(part["labels"]) / len(batch["labels"])  # the loss is a mean over the batch
            for total, gradient in zip(gradients, torch.autograd.grad(loss * share, units), strict=True):
                total += gradient
        for kind in (0, 1):
            kept[kind].append(torch.stack(gradients[kind::2]))
    heads, neurons = (torch.stack(parts).cpu().numpy() for parts in kept)
    return Gradients(heads, neurons)
