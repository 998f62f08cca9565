"""PrunableModel: a transformers model seen as sub-layers and units, through conf/arch."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.config import Arch
from bench.masks import Masks, Shape

# input_ids, attention_mask, perhaps token_type_ids: [B, T]; labels: [B] or [B, 2], where asked for; `places` [tokens]: where
# the real tokens lie in the flattened batch, known to whoever has padded it, so that no GPU has to be waited for; of
# micro-batches also `shares` [B] and perhaps `owners` [batches, tokens], see bench.calibration
Batch = Mapping[str, Tensor]
NOT_INPUTS = ("labels", "places", "shares", "owners")
NEVER = -1e4  # logit of a padded token as the start or end of an answer


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


class _Probe(torch.autograd.Function):
    """x [rows, columns] as it is; the gradient of a factor of one for every (batch, column): sums of x times gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ones: Tensor, owners: Tensor | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.owners, ctx.dtype = owners, ones.dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (x,) = ctx.saved_tensors
        product = x * gradient
        if ctx.owners is None:
            return gradient, product.sum(0, keepdim=True, dtype=ctx.dtype), None
        return gradient, (ctx.owners.to(product) @ product).to(ctx.dtype), None


@dataclass(frozen=True)
class Context:
    """Where the real tokens of a padded batch lie, and what attention needs beside the hidden state.

    Hidden states are packed: [tokens, d] holds the real tokens of a batch, example after example. `size` is (B, T);
    `first` [B] the rows of the examples' first tokens; `bias` [1, H, T, T] what is added to the attention scores;
    `owners` [batches, tokens] which of several batches a token belongs to. Where there is padding, `index` [tokens] are
    the tokens' places in the padded batch, flattened, `slots` [B T] the places' tokens (any for padding), `mask` is bool
    [B, 1, 1, T]; else they are None.
    """

    size: tuple[int, int]
    first: Tensor
    index: Tensor | None = None
    slots: Tensor | None = None
    mask: Tensor | None = None
    bias: Tensor | None = None
    owners: Tensor | None = None

    @staticmethod
    def of(inputs: Batch, bias: Tensor | None = None) -> "Context":
        """From a padded batch."""
        attention_mask = inputs["attention_mask"]
        batch, length = attention_mask.shape
        index = inputs["places"] if "places" in inputs else attention_mask.flatten().nonzero().flatten()
        lengths = attention_mask.sum(1)
        plain = Context((batch, length), lengths.cumsum(0) - lengths, bias=bias, owners=inputs.get("owners"))
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
        if self.bias is None:
            return self.mask
        bias = self.bias.to(dtype)
        return bias if self.mask is None else bias.masked_fill(~self.mask, torch.finfo(dtype).min)


class PrunableModel:
    """A model in eval mode, its forward pass in pieces, and masks on its units.

    The composition of `embed`, every `sublayer` and `output` is the model. Weights require no gradient.
    """

    def __init__(self, module: nn.Module, arch: Arch) -> None:
        self.module = module.eval().requires_grad_(False)
        self.arch = arch
        layers: Any = module.get_submodule(arch.layers)
        self.layers = layers
        self.spans = hasattr(module, arch.span_head)
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
        """Logits [B, outputs], or [B, T, 2] of starts and ends."""
        return logits_of(self.module, batch)

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
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=context.attend(query.dtype))
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
        if self.spans:
            logits = context.pad(self.module.get_submodule(self.arch.span_head)(hidden))
            return logits if context.mask is None else logits.masked_fill(~context.mask[:, 0, 0, :, None], NEVER)
        return self._classify(hidden[context.first][:, None])

    def _classify(self, hidden: Tensor) -> Tensor:
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
        return sublayer == self.shape.sublayers - 1 and not self.spans

    @contextmanager
    def masked(self, columns: Mapping[int, Tensor]) -> Iterator[None]:
        """Within it, the inputs of the named sub-layers' output projections are multiplied by `columns[s]` [columns].

        Gradients reach the factors where they ask for them.
        """
        hooks = [
            self.projection(sublayer).register_forward_pre_hook(lambda _, args, factor=factor: (args[0] * factor.to(args[0].dtype),))
            for sublayer, factor in columns.items()
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
        with ExitStack() as hooks:
            for s, one in ones.items():
                owners = (narrow if self.reads_first_tokens(s) else context).owners
                probe = lambda _, args, one=one, owners=owners: (_Probe.apply(args[0], one, owners),)  # type: ignore[no-untyped-call]  # noqa: E731
                hooks.callback(self.projection(s).register_forward_pre_hook(probe).remove)
            yield

    def columns(self, masks: Masks) -> dict[int, Tensor]:
        """Masks as factors of columns on the model's device and in its precision, for `masked`."""
        like = self.projection(0).weight
        return {s: torch.as_tensor(masks.columns(s, self.shape)).to(like) for s in range(self.shape.sublayers)}

    def encoder_parameters(self) -> int:
        """True parameters of the layers, biases and norms included."""
        return sum(p.numel() for p in self.layers.parameters())


def logits_of(module: nn.Module, batch: Batch) -> Tensor:
    """Logits [B, outputs] of a transformers model, or [B, T, 2] of starts and ends, which padding never is."""
    out = module(**inputs_of(batch))
    if "logits" in out:
        return out.logits  # type: ignore[no-any-return]
    logits = torch.stack([out.start_logits, out.end_logits], -1)
    return logits.masked_fill(~batch["attention_mask"].bool()[..., None], NEVER)


def widened(x: Tensor) -> Tensor:
    """The same numbers in float32 at the least, for sums over many of them."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def places_of(lengths: Sequence[int], device: torch.device | str) -> Tensor:
    """A batch's `places` [tokens], from its examples' numbers of tokens; padding is on the right."""
    inside = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
    return torch.as_tensor(np.flatnonzero(inside), device=device)


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """What of a batch a transformers model takes."""
    return {name: tensor for name, tensor in batch.items() if name not in NOT_INPUTS}


def auto_class(kind: str) -> Any:
    """transformers' class of models for a kind of task (bench.config.Task.kind)."""
    from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

    return AutoModelForQuestionAnswering if kind == "span" else AutoModelForSequenceClassification
