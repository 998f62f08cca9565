"""PrunableModel: a transformers model seen as sub-layers and units, through conf/arch."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.config import Arch
from bench.masks import Masks, Shape, place
from bench.nn.attention import Attention
from bench.nn.feed_forward import FeedForward
from bench.nn.packing import Batch, Context, Probe, inputs_of
from bench.nn.sublayer import SubLayer
from bench.tasks.kind import Kind


class PrunableModel:
    """A model in eval mode, its forward pass in pieces, and masks on its units.

    The composition of `embed`, the `sublayers` from bottom to top, and `output` is the model. Weights require no gradient.
    """

    def __init__(self, module: nn.Module, arch: Arch, kind: Kind) -> None:
        self.module = module.eval().requires_grad_(False)
        self.arch = arch
        layers: Any = module.get_submodule(arch.layers)
        self.layers = layers
        self.kind = kind
        config: Any = module.config
        heads, neurons, hidden = (getattr(config, name) for name in (arch.groups, arch.neurons, arch.hidden))
        first = arch.norm_first == "always" or bool(getattr(config, arch.norm_first, False))
        self.sublayers: list[SubLayer] = []
        for layer in layers:
            attention = Attention(layer, arch.attention, heads, arch.position_bias is not None, first)
            self.sublayers += [attention, FeedForward(layer, arch.feed_forward, neurons, first)]
        self.shape = Shape(len(layers), heads, neurons, hidden, self.sublayers[0].width)

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

    def matrices(self) -> dict[str, dict[str, nn.Linear]]:
        """The layers' linear maps by type (query, key, value, output, up, down) and, bottom to top, by their name in the module:
        what single weights are pruned from."""
        found: dict[str, dict[str, nn.Linear]] = {}
        for s, sublayer in enumerate(self.sublayers):
            for type_, path, linear in sublayer.matrices():
                found.setdefault(type_, {})[f"{self.arch.layers}.{place(s)[1]}.{path}"] = linear
        return found

    def embed(self, batch: Batch) -> tuple[Tensor, Context]:
        """Hidden state [tokens, d] below the first sub-layer, and the context of the batch."""
        if self.arch.causal:
            hidden, rotary = self._before_layers(batch)
            context = Context.of(batch, causal=True, rotary=rotary)
            return context.pack(hidden), context
        ids = inputs_of(batch)
        ids.pop("attention_mask")
        hidden = self.module.get_submodule(self.arch.embeddings)(**ids)
        bias: Tensor | None = None
        if self.arch.position_bias:
            owner, _, name = self.arch.position_bias.rpartition(".")
            bias = getattr(self.module.get_submodule(owner), name)(hidden[:1])  # the same for all examples
        context = Context.of(batch, bias)
        return context.pack(hidden), context

    def _before_layers(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """What the model hands to its first layer: the hidden state [B, T, d], and cosines and sines of rotary positions."""

        def stop(_: nn.Module, args: tuple[Tensor, ...], others: dict[str, Any]) -> None:
            raise _FirstLayer(args[0], others.get("position_embeddings"))

        hook = self.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.module(**inputs_of(batch), use_cache=False)
        except _FirstLayer as reached:
            hidden, rotary = reached.args
            return hidden, None if rotary is None else (rotary[0][:, None], rotary[1][:, None])
        finally:
            hook.remove()
        raise ValueError("the model does not call its first layer")

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
        for s, sublayer in enumerate(self.sublayers):
            if self.reads_first_tokens(s):
                hidden, context = hidden[context.first], context.narrowed()
            hidden = sublayer(hidden, context)[2]
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
            self.sublayers[s].projection.register_forward_pre_hook(lambda _, args, change=change: (change(args[0]),))
            for s, change in changes.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def ones(self, part: Batch, first: int = 0) -> dict[int, Tensor]:
        """For `probed`: leaf tensors of ones [batches, columns] for the sub-layers from `first` on."""
        batches = len(part["owners"]) if "owners" in part else 1
        weights = {s: sublayer.projection.weight for s, sublayer in enumerate(self.sublayers[first:], first)}
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
        return {s: sublayer.factors(masks.of(s)) for s, sublayer in enumerate(self.sublayers)}

    def share_of_zeros(self) -> float:
        """The share of the weights in the layers' matrices that are zero."""
        matrices = [linear.weight for own in self.matrices().values() for linear in own.values()]
        return 1 - sum(int(weight.count_nonzero()) for weight in matrices) / sum(weight.numel() for weight in matrices)

    def encoder_parameters(self) -> int:
        """True parameters of the layers, biases and norms included."""
        return sum(p.numel() for p in self.layers.parameters())


class _FirstLayer(Exception):  # noqa: N818 - it is no error
    """The first layer was reached, with these inputs."""


def _times(factor: Tensor, x: Tensor) -> Tensor:
    return x * factor.to(x.dtype)


def _probe(ones: Tensor, owners: Tensor | None, x: Tensor) -> Tensor:
    return Probe.apply(x, ones, owners)  # type: ignore[no-untyped-call, no-any-return]
