"""PrunableModel: a transformers model seen as sub-layers and units, through conf/arch."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.config import Arch
from bench.masks import Masks, Shape

Batch = Mapping[str, Tensor]  # input_ids, attention_mask, perhaps token_type_ids: [B, T]; labels: [B], where asked for


@dataclass(frozen=True)
class Context:
    """What every sub-layer needs beside the hidden state. `real` [B, T]: which tokens are no padding;
    `attend`: what is added to (or, as bool, selects from) the attention scores, broadcast to [B, H, T, T]."""

    real: Tensor
    attend: Tensor | None


class PrunableModel:
    """A model in eval mode, its forward pass in pieces, and masks on its units.

    The composition of `embed`, every `sublayer` and `output` is the model. Weights require no gradient.
    """

    def __init__(self, module: nn.Module, arch: Arch) -> None:
        self.module = module.eval().requires_grad_(False)
        self.arch = arch
        layers: Any = module.get_submodule(arch.layers)
        self.layers = layers
        config: Any = module.config
        heads, hidden = getattr(config, arch.heads), getattr(config, arch.hidden)
        head_dim = self._part(0, arch.attention.query).out_features // heads
        self.shape = Shape(len(layers), heads, getattr(config, arch.neurons), hidden, head_dim)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.module.parameters()).device

    def copy(self) -> "PrunableModel":
        """An independent copy, weights included."""
        return PrunableModel(copy.deepcopy(self.module), self.arch)

    def __call__(self, batch: Batch) -> Tensor:
        """Logits [B, outputs]."""
        return self.module(**inputs_of(batch)).logits  # type: ignore[no-any-return]

    def _part(self, layer: int, path: str) -> Any:
        return self.layers[layer].get_submodule(path)

    def paths(self, sublayer: int) -> Any:
        """The module paths of a sub-layer's kind."""
        return self.arch.feed_forward if sublayer % 2 else self.arch.attention

    def projection(self, sublayer: int) -> nn.Linear:
        """The output projection: the linear map back to the residual stream, weight [d, columns]."""
        return self._part(sublayer // 2, self.paths(sublayer).output)  # type: ignore[no-any-return]

    def producers(self, sublayer: int) -> list[nn.Linear]:
        """The linear maps whose rows belong to the units: query, key, value; or the first feed-forward projection."""
        paths = self.paths(sublayer)
        names = [paths.up] if sublayer % 2 else [paths.query, paths.key, paths.value]
        return [self._part(sublayer // 2, name) for name in names]

    def embed(self, batch: Batch) -> tuple[Tensor, Context]:
        """Hidden state [B, T, d] below the first sub-layer, and the context of the batch."""
        ids = inputs_of(batch)
        mask = ids.pop("attention_mask")
        hidden = self.module.get_submodule(self.arch.embeddings)(**ids)
        attend: Tensor | None = mask.bool()[:, None, None, :]
        if self.arch.position_bias:
            owner, _, name = self.arch.position_bias.rpartition(".")
            bias = getattr(self.module.get_submodule(owner), name)(hidden)[:1]  # the same for all examples
            attend = bias.masked_fill(~attend, torch.finfo(hidden.dtype).min)  # type: ignore[operator]
        return hidden, Context(mask.bool(), attend)

    def features(self, sublayer: int, hidden: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """x [B, T, columns], the input of the output projection before any mask, and the residual [B, T, d]."""
        layer, paths = sublayer // 2, self.paths(sublayer)
        if sublayer % 2:
            return self._part(layer, paths.activation)(self._part(layer, paths.up)(hidden)), hidden
        query, key, value = (linear(hidden).unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2) for linear in self.producers(sublayer))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=context.attend)
        return mixed.transpose(1, 2).flatten(2), hidden

    def close(self, sublayer: int, stream: Tensor) -> Tensor:
        """The next hidden state from the residual stream after a sub-layer (residual + projection output) [B, T, d]."""
        return self._part(sublayer // 2, self.paths(sublayer).norm)(stream)  # type: ignore[no-any-return]

    def sublayer(self, sublayer: int, hidden: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """One sub-layer. Returns x [B, T, columns], the input of the output projection before any mask; the residual
        [B, T, d] that is added to the projection's output; and the next hidden state [B, T, d], masks applied."""
        x, residual = self.features(sublayer, hidden, context)
        return x, residual, self.close(sublayer, residual + self.projection(sublayer)(x))

    def output(self, hidden: Tensor, context: Context) -> Tensor:
        """Logits [B, outputs] from the last hidden state."""
        for step in self.arch.head:
            if step == "first_token":
                hidden = hidden[:, 0]
            elif step == "relu":
                hidden = F.relu(hidden)
            else:
                hidden = self.module.get_submodule(step)(hidden)
        return hidden

    @contextmanager
    def masked(self, columns: Mapping[int, Tensor]) -> Iterator[None]:
        """Within it, the inputs of the named sub-layers' output projections are multiplied by `columns[s]` [columns].

        Gradients reach the factors where they ask for them.
        """
        hooks = [
            self.projection(sublayer).register_forward_pre_hook(lambda _, args, factor=factor: (args[0] * factor,))
            for sublayer, factor in columns.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def columns(self, masks: Masks) -> dict[int, Tensor]:
        """Masks as factors of columns on the model's device and in its precision, for `masked`."""
        like = self.projection(0).weight
        return {s: torch.as_tensor(masks.columns(s, self.shape)).to(like) for s in range(self.shape.sublayers)}

    def encoder_parameters(self) -> int:
        """True parameters of the layers, biases and norms included."""
        return sum(p.numel() for p in self.layers.parameters())


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """A batch without its labels."""
    return {name: tensor for name, tensor in batch.items() if name != "labels"}
