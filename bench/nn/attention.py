"""Attention as a sub-layer: a unit is a head, or a group of query heads that share one key and one value head."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.config import AttentionPaths
from bench.nn.packing import Context
from bench.nn.sublayer import SubLayer, Units, widened

SHORT = 64  # tokens up to which attention is computed by plain products on a CPU


class Attention(SubLayer):
    """Query, key and value, mixed over the tokens of an example; a unit is a key-value head with the `group` query heads that use it.

    `shared_bias`: the model computes one position bias for the heads of all its layers. Query heads j G up to (j + 1) G belong to key
    head j, as transformers repeats keys.
    """

    kind = "attention"
    projection_type = "output"
    in_tuple = True

    def __init__(self, layer: nn.Module, paths: AttentionPaths, heads: int, shared_bias: bool = False, norm_first: bool = False) -> None:
        super().__init__(layer, paths, {"query": paths.query, "key": paths.key, "value": paths.value}, heads, norm_first)
        self.shared_bias = shared_bias
        self.head_dim = self.producers[1].width
        self.group = self.width // self.head_dim
        self.norms = [layer.get_submodule(path) if path else None for path in (paths.query_norm, paths.key_norm)]

    def features(self, hidden: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The heads' outputs side by side, and the hidden state itself."""
        seen = self.read(hidden)
        query, key, value = (context.pad(one.linear(seen)).view(*context.size, -1, self.head_dim).transpose(1, 2) for one in self.producers)
        query, key = (one if norm is None else norm(one) for norm, one in zip(self.norms, (query, key), strict=True))
        if context.rotary:
            query, key = (_turned(one, *context.rotary) for one in (query, key))
        key, value = (one.repeat_interleave(self.group, 1) if self.group > 1 else one for one in (key, value))
        if hidden.device.type == "cpu":  # whose bfloat16 kernel takes three times as long backwards as float32's
            query, key, value = widened(query), widened(key), widened(value)
        mixed = attention(query, key, value, context.attend(query.dtype))
        return context.pack(mixed.transpose(1, 2).flatten(2)), hidden

    def mixing(self, length: float) -> float:
        """Of every token with every token: the scores, and the weighted values."""
        return 4 * length**2 * self.width

    def _slice(self, kept: Units, gone: Units) -> None:
        """The attention module is also told how many heads it has left."""
        super()._slice(kept, gone)
        core: Any = self.layer.get_submodule(self.paths.core)
        counts = dict.fromkeys(("num_attention_heads", "n_heads", "num_heads"), len(kept))
        for name, value in {**counts, "all_head_size": len(kept) * self.width}.items():
            if hasattr(core, name):
                setattr(core, name, value)
        if self.shared_bias:
            self.layer.set_submodule(self.paths.core, OwnBias(core, kept))

    def _unwrapped(self, core: nn.Module) -> nn.Module:
        return core.attention if isinstance(core, OwnBias) else core


class OwnBias(nn.Module):
    """An attention with fewer heads under a position bias that is computed for all of them: it takes its own rows."""

    def __init__(self, attention: nn.Module, kept: Units) -> None:
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


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys [B, H, T, head_dim] under rotary position embedding, whose pairs lie half a head apart (Su et al. 2021, arXiv
    2104.09864, as Llama orders it)."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(QKᵀ / sqrt(head_dim) + bias) V [B, H, T, head_dim]; `bias` as in torch's scaled_dot_product_attention.

    On a CPU its kernel, made for long sequences, takes up to twice as long on short ones as the plain products.
    """
    if query.device.type != "cpu" or query.shape[2] > SHORT:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    scores = query / math.sqrt(query.shape[3]) @ key.transpose(2, 3)
    if bias is not None:
        scores = scores.masked_fill_(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias
    return scores.softmax(-1) @ value
