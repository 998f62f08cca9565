"""What attention and feed-forward have in common: units between linear maps, what a unit costs, and how units are removed."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.masks import Floats
from bench.nn.packing import Context

Units = NDArray[np.intp] | Sequence[int]


class Constant(nn.Module):
    """An empty sub-layer's output: the bias of its output projection (zeros where it has none), whatever comes in.

    `layer`: the number of its layer in a model that keeps keys and values of earlier tokens. The length of that cache is read from the
    first layer, so an empty one puts a column of zeros there.
    """

    def __init__(self, bias: Tensor | None, size: int, in_tuple: bool, layer: int | None = None) -> None:
        super().__init__()
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.size, self.in_tuple, self.layer = size, in_tuple, layer

    def forward(self, *inputs: Tensor, hidden_states: Tensor | None = None, cache: Any = None, **others: Any) -> Any:
        """[B, T, ...] to [B, T, d]; attention modules give their output in a tuple."""
        hidden = inputs[0] if hidden_states is None else hidden_states
        cache = others.get("past_key_values") if cache is None else cache  # the name until transformers 5.24
        if cache is not None and self.layer is not None:
            column = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
            cache.update(column, column, self.layer)
        out = hidden.new_zeros(self.size) if self.bias is None else self.bias
        out = out.expand(*hidden.shape[:-1], -1)
        return (out, None) if self.in_tuple else out


class Through(nn.Module):
    """Stands for the part of an empty sub-layer before its output projection: hands its input on."""

    def __init__(self, in_tuple: bool) -> None:
        super().__init__()
        self.in_tuple = in_tuple

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Any:
        """The input, as it is."""
        return (hidden, None) if self.in_tuple else hidden


@dataclass(frozen=True)
class Producer:
    """A linear map that units read with: unit u owns its rows from u * width up to (u + 1) * width.

    `type` says which map it is (query, key, value, up), `path` where it lies in its layer. Widths may differ: of a group of
    query heads that share one key, the query map holds more rows than the key map.
    """

    type: str
    path: str
    linear: nn.Linear
    width: int

    def rows(self, units: Units) -> Tensor:
        """The indices of the rows of some units."""
        return _blocks(units, self.width).to(self.linear.weight.device)


class SubLayer(ABC):
    """Units that read the hidden state, and the output projection that brings what they compute back to the residual stream.

    `units` is their number. `width`: unit u owns the columns of the projection's input from u * width up to (u + 1) * width.
    `projection` is the linear map back to the stream, weight [d, columns]; `producers` are the linear maps before it. The modules
    are the model's own: who changes their weights changes the model.
    """

    kind: ClassVar[str]
    projection_type: ClassVar[str]  # as Producer.type
    in_tuple: ClassVar[bool]  # whether transformers' module of this kind returns its output in a tuple

    def __init__(self, layer: nn.Module, paths: Any, producers: dict[str, str], units: int, norm_first: bool = False) -> None:
        linears: dict[str, Any] = {type_: layer.get_submodule(path) for type_, path in producers.items()}
        self.layer, self.paths, self.units = layer, paths, units
        self.producers = [Producer(type_, producers[type_], one, one.out_features // units) for type_, one in linears.items()]
        self.projection: nn.Linear = layer.get_submodule(paths.output)  # type: ignore[assignment]
        self.norm = layer.get_submodule(paths.norm)
        self.width = self.projection.in_features // units
        self.norm_first = norm_first

    @abstractmethod
    def features(self, hidden: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """x [tokens, columns], the input of the output projection before any mask, and the residual [tokens, d]."""

    def read(self, hidden: Tensor) -> Tensor:
        """What the producers read [tokens, d]: the hidden state, behind the norm where that comes first."""
        return self.norm(hidden) if self.norm_first else hidden

    def close(self, stream: Tensor) -> Tensor:
        """The next hidden state from the residual stream after the sub-layer (residual + projection output) [tokens, d]."""
        return stream if self.norm_first else self.norm(stream)

    def __call__(self, hidden: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Returns x [tokens, columns], the input of the output projection before any mask; the residual [tokens, d] that is
        added to the projection's output; and the next hidden state [tokens, d], masks applied."""
        x, residual = self.features(hidden, context)
        return x, residual, self.close(residual + self.projection(x))

    def matrices(self) -> Iterator[tuple[str, str, nn.Linear]]:
        """Type, path in the layer, and module of every linear map: the producers, then the projection."""
        for producer in self.producers:
            yield producer.type, producer.path, producer.linear
        yield self.projection_type, self.paths.output, self.projection

    @property
    def bias(self) -> Tensor:
        """The output projection's bias [d]; zeros where it has none."""
        bias: Tensor | None = self.projection.bias
        return self.projection.weight.new_zeros(self.projection.out_features) if bias is None else bias

    @torch.no_grad()
    def add_bias(self, values: Tensor) -> None:
        """Add values [d] to the output projection's bias, which it gets where it has none."""
        self.projection.bias = nn.Parameter(self.bias + values.to(self.bias), requires_grad=False)

    def by_unit(self, columns: Tensor) -> Tensor:
        """A view of values of columns [..., columns] as those of units [..., units, width]."""
        return columns.view(*columns.shape[:-1], self.units, self.width)

    def columns(self, units: Units) -> Tensor:
        """The indices of the columns of some units."""
        return _blocks(units, self.width).to(self.projection.weight.device)

    def factors(self, units: Floats) -> Tensor:
        """Factors of units [units] as factors of columns [columns], in the model's precision and on its device."""
        return torch.as_tensor(units.repeat(self.width)).to(self.projection.weight)

    def incoming(self) -> Tensor:
        """The weights that each unit reads with [units, n]: its rows of all producers."""
        return torch.cat([producer.linear.weight.view(self.units, -1) for producer in self.producers], 1)

    def outgoing(self) -> Tensor:
        """The weights that each unit writes with [units, n]: its columns of the output projection."""
        return self.projection.weight.T.reshape(self.units, -1)

    def cost(self, unit: str, length: float) -> float:
        """What one unit costs: its weights; with `params` its biases too; with `flops` the operations over `length` tokens.

        Raises:
            ValueError: `unit` is none of the three.
        """
        weights = self.width * self.projection.out_features + sum(one.width * one.linear.in_features for one in self.producers)
        if unit == "weights":
            return weights
        if unit == "params":
            return weights + sum(one.width for one in self.producers if one.linear.bias is not None)
        if unit == "flops":
            return 2 * length * weights + self.mixing(length)
        raise ValueError(f"unit={unit}: flops, params or weights")

    def mixing(self, length: float) -> float:
        """The FLOPs of one unit between its linear maps over `length` tokens; elementwise functions are not counted."""
        return 0.0

    def shrink(self, factors: Floats) -> None:
        """Remove the units whose factor is zero from the model, and fold the other factors into the projection's columns.

        Afterwards this object describes what was there before.
        """
        self.projection.weight.mul_(self.factors(factors))
        kept, gone = np.flatnonzero(factors), np.flatnonzero(factors == 0)
        if not kept.size:
            self._replace_by_bias()
        elif gone.size:
            self._slice(kept, gone)

    def _slice(self, kept: Units, gone: Units) -> None:
        # indices stay on the CPU: a model without weights (bench.saved.checkpoint.structure) has nowhere to read them from
        for producer in self.producers:
            tp.prune_linear_out_channels(producer.linear, _blocks(gone, producer.width).tolist())
        tp.prune_linear_in_channels(self.projection, _blocks(gone, self.width).tolist())

    def _replace_by_bias(self) -> None:
        """The exact stub of an empty sub-layer: its output is the projection's bias, its producers are not computed."""
        bias, size = self.projection.bias, self.projection.out_features
        if self.paths.output.startswith(f"{self.paths.core}."):
            number = getattr(self.layer.get_submodule(self.paths.core), "layer_idx", None)
            self.layer.set_submodule(self.paths.core, Constant(bias, size, self.in_tuple, number))
        else:
            self.layer.set_submodule(self.paths.core, Through(self.in_tuple))
            self.layer.set_submodule(self.paths.output, Constant(bias, size, False))

    @torch.no_grad()
    def grow(self, small: nn.Module, kept: Units) -> None:
        """Take the weights of the units `kept` from the same layer of a shrunk model; all other units get zeros."""
        for producer in self.producers:
            _put_rows(producer.linear, self._became(small, producer.path), producer.rows(kept))
        _put_columns(self.projection, self._became(small, self.paths.output), self.columns(kept))

    def _became(self, small: nn.Module, path: str) -> nn.Module | None:
        """What a linear map has become in the same layer of a shrunk model: smaller, the Constant of an empty sub-layer, or
        nothing."""
        if not path.startswith(f"{self.paths.core}."):
            return small.get_submodule(path)
        core = small.get_submodule(self.paths.core)
        if isinstance(core, Constant | Through):
            return core if isinstance(core, Constant) and path == self.paths.output else None
        return self._unwrapped(core).get_submodule(path.removeprefix(f"{self.paths.core}."))

    def _unwrapped(self, core: nn.Module) -> nn.Module:
        """The core of a shrunk sub-layer, without what a kind wraps it in."""
        return core


def _blocks(units: Units, width: int) -> Tensor:
    """Of every unit u the whole numbers from u * width up to (u + 1) * width."""
    return torch.as_tensor((np.asarray(units, dtype=np.int64)[:, None] * width + np.arange(width)).ravel())


def _put_rows(linear: nn.Linear, found: nn.Module | None, rows: Tensor) -> None:
    for name, parameter in linear.named_parameters():
        parameter.zero_()
        if isinstance(found, nn.Linear):
            parameter[rows] = getattr(found, name)


def _put_columns(linear: nn.Linear, found: Any, columns: Tensor) -> None:
    linear.weight.zero_()
    if linear.bias is not None:
        linear.bias.copy_(found.bias)
    if isinstance(found, nn.Linear):
        linear.weight[:, columns] = found.weight


def widened(x: Tensor) -> Tensor:
    """The same numbers in float32 at the least, for sums over many of them."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
