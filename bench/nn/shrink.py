"""Masks to a physically smaller model, and back: sub-layer by sub-layer, as each kind does it (bench.nn)."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.masks import Masks, WeightMasks, place
from bench.model import PrunableModel
from bench.nn.packing import Batch

MASK_ERROR_LIMIT = 1e-4  # of float32 logits, beyond which it is looked whether that is rounding
EXACT_ERROR_LIMIT = 1e-8  # of float64's


def shrink(model: PrunableModel, masks: Masks) -> nn.Module:
    """A copy of the model without the pruned units, equal to the masked model in exact arithmetic.

    Factors are folded into the columns of the output projections. A layer may keep no head or no neuron.
    """
    masks.check(model.shape)
    small = model.copy()
    for s, sublayer in enumerate(small.sublayers):
        sublayer.shrink(masks.of(s))
    return small.module.eval().requires_grad_(False)  # the stubs too


@torch.no_grad()
def zeroed(model: PrunableModel, weights: WeightMasks) -> nn.Module:
    """A copy of the model, as large as it was, in which the weights that are not kept are zero.

    Raises:
        ValueError: the masks are not those of the model's matrices.
    """
    small = model.copy()
    matrices = {name: linear.weight for own in small.matrices().values() for name, linear in own.items()}
    found, wanted = ({name: tuple(one.shape) for name, one in each.items()} for each in (weights.kept, matrices))
    if found != wanted:
        raise ValueError(f"weight masks are of {len(found)} matrices, the model has {len(wanted)}, or shapes differ")
    for name, weight in matrices.items():
        weight.mul_(torch.as_tensor(weights.kept[name]).to(weight))
    return small.module


@torch.no_grad()
def mask_error(model: PrunableModel, masks: Masks, small: nn.Module, batches: Sequence[Batch]) -> float:
    """The largest difference between the logits of the masked and of the shrunk model."""
    with model.masked(model.columns(masks)):
        errors = [float((model(batch) - model.kind.logits(small, batch)).abs().max()) for batch in batches]
    return float(np.max(errors))  # of which one that is no number is the largest


def verify(model: PrunableModel, masks: Masks, small: nn.Module, batches: Sequence[Batch]) -> tuple[float, list[str]]:
    """The mask error, and a note where it is more than usual but only float32's rounding.

    Raises:
        ValueError: the shrunk model is not the masked one.
    """
    error = mask_error(model, masks, small, batches)
    if error < MASK_ERROR_LIMIT:
        return error, []
    exact = exact_mask_error(model, masks, small, batches)
    if not exact < EXACT_ERROR_LIMIT:
        raise ValueError(f"masked and shrunk model differ by {error:.3g} in their logits, by {exact:.3g} in float64")
    return error, [f"masked and shrunk logits differ by {error:.2g}: rounding, {exact:.2g} in float64"]


def exact_mask_error(model: PrunableModel, masks: Masks, small: nn.Module, batches: Sequence[Batch]) -> float:
    """The same in float64, where rounding explains nothing (weights that least squares has tuned can amplify float32's); inf
    where `small` is not the float64 model's rounding."""
    wide = PrunableModel(copy.deepcopy(model.module).double(), model.arch, model.kind)
    exact = shrink(wide, masks)
    found, wanted = small.state_dict(), exact.state_dict()
    if found.keys() != wanted.keys() or not all(_rounded(found[name], wanted[name]) for name in found):
        return float("inf")
    return mask_error(wide, masks, exact, batches)


def _rounded(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and torch.allclose(found.to(wanted), wanted, rtol=1e-6, atol=1e-12)


@torch.no_grad()
def grow(model: PrunableModel, masks: Masks, small: nn.Module) -> Masks:
    """Write the weights of a shrunk model, which may have been trained since, back to their places in the model that it was
    shrunk from; what was pruned gets zeros. Returns the masks, without factors, under which the two are equal."""
    layers: Any = small.get_submodule(model.arch.layers)
    placed = set[int]()
    for s, sublayer in enumerate(model.sublayers):
        sublayer.grow(layers[place(s)[1]], np.flatnonzero(masks.of(s)))
        placed |= {id(parameter) for _, _, linear in sublayer.matrices() for parameter in linear.parameters()}
    others = dict(small.named_parameters())
    for name, parameter in model.module.named_parameters():
        if id(parameter) not in placed:
            parameter.copy_(others[name])
    return Masks((masks.heads != 0).astype(float), (masks.neurons != 0).astype(float))
