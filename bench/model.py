"""PrunableModel: a transformers model seen as sub-layers and units, through conf/arch."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.config import Arch
from bench.masks import Masks, Shape
from bench.packing import Batch, Context, Probe, inputs_of
from bench.tasks.kind import Kind

SHORT = 64  # tokens up to which attention is computed by plain products on a CPU


class PrunableModel:
    """A model in eval mode, its forward pass in pieces, and masks on its units.

    The composition of `embed`, every `sublayer` and `output` is the model. Weights require no gradient.
    """

    def __init__(self, module: nn.Module, arch: Arch, kind: Kind) -> None:
        self.module = module.eval().requires_grad_(False)
        self.arch = arch
        layers: Any = module.get_submodule(arch.layers)
        self.layers = layers
        self.kind = kind
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
        return PrunableModel(copy.deepcopy(self.module), self.arch, self.kind)

    def __call__(self, batch: Batch) -> Tensor:
        """Logits [B, outputs], or [B, T, 2] of starts and ends."""
        return self.kind.logits(self.module, batch)

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

    def matrices(self) -> dict[str, dict[str, nn.Linear]]:
        """The layers' linear maps by type (query, key, value, output, up, down) and, bottom to top, by their name in the module:
        what single weights are pruned from."""
        attention, feed_forward = self.arch.attention, self.arch.feed_forward
        paths = {
            **{name: getattr(attention, name) for name in ("query", "key", "value", "output")},
            "up": feed_forward.up,
            "down": feed_forward.output,
        }
        names = {kind: [f"{self.arch.layers}.{layer}.{path}" for layer in range(self.shape.layers)] for kind, path in paths.items()}
        return {kind: {name: self.module.get_submodule(name) for name in own} for kind, own in names.items()}  # type: ignore[misc]

    def embed(self, batch: Batch) -> tuple[Tensor, Context]:
        """Hidden state [tokens, d] below the first sub-layer, and the context of the batch."""
        ids = inputs_of(batch)
        ids.pop("attention_mask")
        hidden = self.module.get_submodule(self.arch.embeddings)(**ids)
        bias: Tensor | None = None
        if self.arch.position_bias:
            owner, _, name = self.arch.position_bias.rpartition(".")
            bias = getattr(self.module.get_submodule(owner), name)(hidden[:1])  # the same for all examples
        context = Context.of(batch, bias)
        return context.pack(hidden), context

    def features(self, sublayer: int, hidden: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """x [tokens, columns], the input of the output projection before any mask, and the residual [tokens, d]."""
        layer, paths = sublayer // 2, self.paths(sublayer)
        if sublayer % 2:
            return self._part(layer, paths.activation)(self._part(layer, paths.up)(hidden)), hidden
        query, key, value = (
            context.pad(linear(hidden)).view(*context.size, -1, self.shape.head_dim).transpose(1, 2) for linear in self.producers(sublayer)
        )
        if hidden.device.type == "cpu":  # whose bfloat16 kernel takes three times as long backwards as float32's
            query, key, value = widened(query), widened(key), widened(value)
        mixed = attention(query, key, value, context.attend(query.dtype))
        return context.pack(mixed.transpose(1, 2).flatten(2)), hidden

    def close(self, sublayer: int, stream: Tensor) -> Tensor:
        """The next hidden state from the residual stream after a sub-layer (residual + projection output) [tokens, d]."""
        return self._part(sublayer // 2, self.paths(sublayer).norm)(stream)  # type: ignore[no-any-return]

    def sublayer(self, sublayer: int, hidden: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """One sub-layer. Returns x [tokens, columns], the input of the output projection before any mask; the residual
        [tokens, d] that is added to the projection's output; and the next hidden state [tokens, d], masks applied."""
        x, residual = self.features(sublayer, hidden, context)
        return x, residual, self.close(sublayer, residual + self.projection(sublayer)(x))

    def output(self, hidden: Tensor, context: Context) -> Tensor:
        """Logits [B, outputs] from the last hidden state, of which a classifier reads the first tokens alone; of starts
        and ends [B, T, 2]."""
        return self.kind.output(self, hidden, context)

    def classify(self, hidden: Tensor) -> Tensor:
        """Logits [B, outputs] of the head from the first tokens' hidden states [B, 1, d]."""
        for step in self.arch.head:
            if step == "first_token":
                hidden = hidden[:, 0]
            elif step == "relu":
                hidden = F.relu(hidden)
            else:
                hidden = self.module.get_submodule(step)(hidden)
        return hidden

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, outputs] or [B, T, 2], computed piece by piece on the real tokens alone."""
        return self.run(*self.embed(batch))

    def run(self, hidden: Tensor, context: Context) -> Tensor:
        """The same from the hidden state [tokens, d] below the first sub-layer."""
        for sublayer in range(self.shape.sublayers):
            if self.reads_first_tokens(sublayer):
                hidden, context = hidden[context.first], context.narrowed()
            hidden = self.sublayer(sublayer, hidden, context)[2]
        return self.output(hidden, context)

    def reads_first_tokens(self, sublayer: int) -> bool:
        """Whether the logits depend on this sub-layer through its first tokens alone: the last feed-forward of a classifier."""
        return sublayer == self.shape.sublayers - 1 and self.kind.reads_first_tokens

    @contextmanager
    def masked(self, columns: Mapping[int, Tensor]) -> Iterator[None]:
        """Within it, the inputs of the named sub-layers' output projections are multiplied by `columns[s]` [columns].

        Gradients reach the factors where they ask for them.
        """
        with self._changed({s: partial(_times, factor) for s, factor in columns.items()}):
            yield

    @contextmanager
    def _changed(self, changes: Mapping[int, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """Within it, the inputs of the named sub-layers' output projections are changed on their way in."""
        hooks = [
            self.projection(sublayer).register_forward_pre_hook(lambda _, args, change=change: (change(args[0]),))
            for sublayer, change in changes.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def ones(self, part: Batch, first: int = 0) -> dict[int, Tensor]:
        """For `probed`: leaf tensors of ones [batches, columns] for the sub-layers from `first` on."""
        batches = len(part["owners"]) if "owners" in part else 1
        weights = {s: self.projection(s).weight for s in range(first, self.shape.sublayers)}
        return {s: weight.new_ones(batches, weight.shape[1]).requires_grad_() for s, weight in weights.items()}

    @contextmanager
    def probed(self, ones: Mapping[int, Tensor], context: Context) -> Iterator[None]:
        """Within it, gradients reach `ones[s]` [batches, columns], which stand for factors of one on the inputs of the
        named sub-layers' output projections, for each batch of a micro-batch with this context its own."""
        narrow = context.narrowed()
        owners = {s: (narrow if self.reads_first_tokens(s) else context).owners for s in ones}
        with self._changed({s: partial(_probe, one, owners[s]) for s, one in ones.items()}):
            yield

    def columns(self, masks: Masks) -> dict[int, Tensor]:
        """Masks as factors of columns on the model's device and in its precision, for `masked`."""
        like = self.projection(0).weight
        return {s: torch.as_tensor(masks.columns(s, self.shape)).to(like) for s in range(self.shape.sublayers)}

    def share_of_zeros(self) -> float:
        """The share of the weights in the layers' matrices that are zero."""
        matrices = [linear.weight for own in self.matrices().values() for linear in own.values()]
        return 1 - sum(int(weight.count_nonzero()) for weight in matrices) / sum(weight.numel() for weight in matrices)

    def encoder_parameters(self) -> int:
        """True parameters of the layers, biases and norms included."""
        return sum(p.numel() for p in self.layers.parameters())


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


def _times(factor: Tensor, x: Tensor) -> Tensor:
    return x * factor.to(x.dtype)


def _probe(ones: Tensor, owners: Tensor | None, x: Tensor) -> Tensor:
    return Probe.apply(x, ones, owners)  # type: ignore[no-untyped-call, no-any-return]


def widened(x: Tensor) -> Tensor:
    """The same numbers in float32 at the least, for sums over many of them."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
