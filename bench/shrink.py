"""Masks to a physically smaller model, and back: torch-pruning's linear slicing, and exact stubs where nothing is left."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn

from bench.masks import Masks, WeightMasks
from bench.model import PrunableModel
from bench.packing import Batch

MASK_ERROR_LIMIT = 1e-4  # of float32 logits, beyond which it is looked whether that is rounding
EXACT_ERROR_LIMIT = 1e-8  # of float64's


class Constant(nn.Module):
    """An empty sub-layer's output: the bias of its output projection, whatever comes in."""

    def __init__(self, bias: Tensor, in_tuple: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.in_tuple = in_tuple

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Any:
        """[B, T, ...] to [B, T, d]; attention modules give their output in a tuple."""
        out = self.bias.expand(*hidden.shape[:-1], -1)
        return (out, None) if self.in_tuple else out


class Through(nn.Module):
    """Stands for the part of an empty sub-layer before its output projection: hands its input on."""

    def __init__(self, in_tuple: bool) -> None:
        super().__init__()
        self.in_tuple = in_tuple

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Any:
        """The input, as it is."""
        return (hidden, None) if self.in_tuple else hidden


class OwnBias(nn.Module):
    """An attention with fewer heads under a position bias that is computed for all of them: it takes its own rows."""

    def __init__(self, attention: nn.Module, kept: list[int]) -> None:
        super().__init__()
        self.attention = attention
        self.kept: Tensor
        device = next(attention.parameters()).device
        # of a model that has no weights yet this is real already: no file holds it
        self.register_buffer("kept", torch.tensor(kept, device="cpu" if device.type == "meta" else device), persistent=False)

    def forward(self, hidden: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, **kwargs: Any) -> Any:
        """As the wrapped attention; bias [B, all heads, T, T], the same for every example."""
        own = None if bias is None else bias[:1, self.kept]
        return self.attention(hidden, mask, own, **kwargs)


def shrink(model: PrunableModel, masks: Masks) -> nn.Module:
    """A copy of the model without the pruned units, equal to the masked model in exact arithmetic.

    Factors are folded into the columns of the output projections. A layer may keep no head or no neuron.
    """
    masks.check(model.shape)
    small = model.copy()
    for sublayer in range(model.shape.sublayers):
        _fold(small, sublayer, masks)
        kept = np.flatnonzero(masks.of(sublayer))
        if not kept.size:
            _drop(small, sublayer)
        elif kept.size < model.shape.units(sublayer):
            _slice(small, sublayer, masks, kept.tolist())
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


def _fold(small: PrunableModel, sublayer: int, masks: Masks) -> None:
    weight = small.projection(sublayer).weight
    weight.mul_(torch.as_tensor(masks.columns(sublayer, small.shape)).to(weight))


def _slice(small: PrunableModel, sublayer: int, masks: Masks, kept: list[int]) -> None:
    gone = np.flatnonzero(masks.columns(sublayer, small.shape) == 0).tolist()
    for linear in small.producers(sublayer):
        tp.prune_linear_out_channels(linear, gone)
    tp.prune_linear_in_channels(small.projection(sublayer), gone)
    if sublayer % 2 == 0:
        _set_heads(small, sublayer, kept)


def _set_heads(small: PrunableModel, sublayer: int, kept: list[int]) -> None:
    """Tell the attention module how many heads it has left."""
    layer, core = small.layers[sublayer // 2], small.arch.attention.core
    attention: Any = layer.get_submodule(core)
    for name, value in (("num_attention_heads", len(kept)), ("n_heads", len(kept)), ("all_head_size", len(kept) * small.shape.head_dim)):
        if hasattr(attention, name):
            setattr(attention, name, value)
    if small.arch.position_bias:
        layer.set_submodule(core, OwnBias(attention, kept))


def _drop(small: PrunableModel, sublayer: int) -> None:
    """Replace an empty sub-layer: its output is the projection's bias, its producers are not computed."""
    layer, paths, is_attention = small.layers[sublayer // 2], small.paths(sublayer), sublayer % 2 == 0
    bias = small.projection(sublayer).bias
    if paths.output.startswith(f"{paths.core}."):
        layer.set_submodule(paths.core, Constant(bias, is_attention))
    else:
        layer.set_submodule(paths.core, Through(is_attention))
        layer.set_submodule(paths.output, Constant(bias, False))


@torch.no_grad()
def grow(model: PrunableModel, masks: Masks, small: nn.Module) -> Masks:
    """Write the weights of a shrunk model, which may have been trained since, back to their places in the model that it was
    shrunk from; what was pruned gets zeros. Returns the masks, without factors, under which the two are equal."""
    layers: Any = small.get_submodule(model.arch.layers)
    placed = set[int]()
    for s in range(model.shape.sublayers):
        paths, kept = model.paths(s), torch.as_tensor(masks.columns(s, model.shape) != 0, device=model.device)
        names = [paths.up] if s % 2 else [paths.query, paths.key, paths.value]
        for name, linear in zip(names, model.producers(s), strict=True):
            _put_rows(linear, _became(layers[s // 2], paths, name), kept)
            placed |= {id(parameter) for parameter in linear.parameters()}
        _put_columns(model.projection(s), _became(layers[s // 2], paths, paths.output), kept)
        placed |= {id(parameter) for parameter in model.projection(s).parameters()}
    others = dict(small.named_parameters())
    for name, parameter in model.module.named_parameters():
        if id(parameter) not in placed:
            parameter.copy_(others[name])
    return Masks((masks.heads != 0).astype(float), (masks.neurons != 0).astype(float))


def _became(layer: nn.Module, paths: Any, name: str) -> nn.Module | None:
    """What a linear map of a full layer has become in the shrunk one: smaller, the Constant of an empty sub-layer, or nothing."""
    core: Any = layer.get_submodule(paths.core)
    core = core.attention if isinstance(core, OwnBias) else core
    if not name.startswith(f"{paths.core}."):
        return layer.get_submodule(name)
    if isinstance(core, Constant | Through):
        return core if isinstance(core, Constant) and name == paths.output else None
    found: nn.Module = core.get_submodule(name.removeprefix(f"{paths.core}."))
    return found


def _put_rows(linear: nn.Linear, found: nn.Module | None, kept: Tensor) -> None:
    linear.weight.zero_()
    linear.bias.zero_()
    if isinstance(found, nn.Linear):
        linear.weight[kept], linear.bias[kept] = found.weight, found.bias


def _put_columns(linear: nn.Linear, found: Any, kept: Tensor) -> None:
    linear.weight.zero_()
    linear.bias.copy_(found.bias)
    if isinstance(found, nn.Linear):
        linear.weight[:, kept] = found.weight
