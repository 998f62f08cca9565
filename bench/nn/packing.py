"""Padded batches and packed hidden states: where the real tokens lie, and which of several batches each belongs to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

# input_ids, attention_mask, perhaps token_type_ids: [B, T]; labels: [B] or [B, 2], where asked for; `places` [tokens]: where
# the real tokens lie in the flattened batch, known to whoever has padded it, so that no GPU has to be waited for; of
# micro-batches also `shares` [B] and perhaps `owners` [batches, tokens], see bench.calibration; of training batches perhaps
# `teacher` [B, outputs] or [B, T, 2], the dense model's logits
Batch = Mapping[str, Tensor]
NOT_INPUTS = ("labels", "places", "shares", "owners", "teacher")


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """What of a batch a transformers model takes."""
    return {name: tensor for name, tensor in batch.items() if name not in NOT_INPUTS}


def places_of(lengths: Sequence[int], device: torch.device | str) -> Tensor:
    """A batch's `places` [tokens], from its examples' numbers of tokens; padding is on the right."""
    inside = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
    return torch.as_tensor(np.flatnonzero(inside), device=device)


@dataclass(frozen=True)
class Context:
    """Where the real tokens of a padded batch lie, and what attention needs beside the hidden state.

    Hidden states are packed: [tokens, d] holds the real tokens of a batch, example after example. `size` is (B, T);
    `first` [B] the rows of the examples' first tokens; `bias` [1, H, T, T] what is added to the attention scores;
    `owners` [batches, tokens] which of several batches a token belongs to. Where there is padding, `index` [tokens] are
    the tokens' places in the padded batch, flattened, `slots` [B T] the places' tokens (any for padding), `mask` is bool
    [B, 1, 1, T]; else they are None. `causal`: a token attends to itself and those before it alone. `rotary` are the cosines and sines
    [1 or B, 1, T, head_dim] that queries and keys are turned by, where the family turns them.
    """

    size: tuple[int, int]
    first: Tensor
    index: Tensor | None = None
    slots: Tensor | None = None
    mask: Tensor | None = None
    bias: Tensor | None = None
    owners: Tensor | None = None
    causal: bool = False
    rotary: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def of(inputs: Batch, bias: Tensor | None = None, causal: bool = False, rotary: tuple[Tensor, Tensor] | None = None) -> "Context":
        """From a padded batch."""
        attention_mask = inputs["attention_mask"]
        batch, length = attention_mask.shape
        index = inputs["places"] if "places" in inputs else attention_mask.flatten().nonzero().flatten()
        lengths = attention_mask.sum(1)
        starts, owners = lengths.cumsum(0) - lengths, inputs.get("owners")
        plain = Context((batch, length), starts, bias=bias, owners=owners, causal=causal, rotary=rotary)
        if len(index) == batch * length:
            return plain
        slots = (attention_mask.flatten().cumsum(0) - 1).clamp_min(0)
        return replace(plain, index=index, slots=slots, mask=attention_mask.bool()[:, None, None, :])

    def narrowed(self) -> "Context":
        """For the first tokens alone, [B, d]: all that a classifier reads after the last attention."""
        batch = len(self.first)
        owners = None if self.owners is None else self.owners.index_select(1, self.first)
        return Context((batch, 1), torch.arange(batch, device=self.first.device), owners=owners)

    def pad(self, packed: Tensor) -> Tensor:
        """[tokens, ...] to [B, T, ...]; what is at the padding is finite and gets no gradient."""
        batch, length = self.size
        if self.index is not None:
            packed = _Pad.apply(packed, self.index, self.slots)  # type: ignore[no-untyped-call]
        return packed.view(batch, length, *packed.shape[1:])

    def pack(self, padded: Tensor) -> Tensor:
        """[B, T, ...] to [tokens, ...]."""
        flat = padded.flatten(0, 1)
        return flat if self.index is None else _Pack.apply(flat, self.index, self.slots, self.mask)  # type: ignore[no-untyped-call]

    def attend(self, dtype: torch.dtype) -> Tensor | None:
        """What selects from (bool) or is added to the attention scores, broadcast to [B, H, T, T]."""
        if self.causal:
            length = self.size[1]
            earlier = torch.ones(length, length, dtype=torch.bool, device=self.first.device).tril()
            return earlier if self.mask is None else earlier & self.mask
        if self.bias is None:
            return self.mask
        bias = self.bias.to(dtype)
        return bias if self.mask is None else bias.masked_fill(~self.mask, torch.finfo(dtype).min)


class _Pad(torch.autograd.Function):
    """Rows from packed to padded; both ways are gathers, which are fast and give the same numbers twice on a GPU."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, index: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        return packed.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return gradient.index_select(0, index), None, None


class _Pack(torch.autograd.Function):
    """Rows from padded to packed; padding gets no gradient."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, index: Tensor, slots: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(slots, mask)
        return padded.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        slots, mask = ctx.saved_tensors
        padding = ~mask.view(-1, *[1] * (gradient.ndim - 1))
        return gradient.index_select(0, slots).masked_fill_(padding, 0), None, None, None


class Probe(torch.autograd.Function):
    """x [rows, columns] as it is; the gradient of a factor of one for every (batch, column): sums of x times gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ones: Tensor, owners: Tensor | None) -> Tensor:
        """x; `ones` [batches, columns], `owners` [batches, rows] or None for one batch."""
        ctx.save_for_backward(x)
        ctx.owners, ctx.dtype = owners, ones.dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """That of x as it comes, that of `ones`."""
        (x,) = ctx.saved_tensors
        product = x * gradient
        if ctx.owners is None:
            return gradient, product.sum(0, keepdim=True, dtype=ctx.dtype), None
        return gradient, (ctx.owners.to(product) @ product).to(ctx.dtype), None
