"""What is kept of a model: one factor per head and per neuron, zero is pruned; or single weights."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
T = TypeVar("T")


def place(sublayer: int) -> tuple[int, int]:
    """Where masks and scores hold a sub-layer's units: in the first of their arrays (heads) or the second (neurons), in which row."""
    layer, array = divmod(sublayer, 2)
    return array, layer


def by_array(of_sublayers: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """What there is for every sub-layer, bottom to top, as the rows of the two arrays heads and neurons."""
    return of_sublayers[0::2], of_sublayers[1::2]


def row_of(arrays: tuple[Floats, Floats], sublayer: int) -> Floats:
    """A sub-layer's row of heads [L, H] or neurons [L, I], a view."""
    array, layer = place(sublayer)
    row: Floats = arrays[array][layer]
    return row


@dataclass(frozen=True)
class Shape:
    """The sizes that masks depend on. Sub-layers are numbered bottom to top."""

    layers: int
    heads: int
    neurons: int
    hidden: int
    head_dim: int

    @property
    def sublayers(self) -> int:
        """2 L."""
        return 2 * self.layers

    def units(self, sublayer: int) -> int:
        """The number of heads or neurons of a sub-layer."""
        return (self.heads, self.neurons)[place(sublayer)[0]]


@dataclass(frozen=True)
class Masks:
    """Factors of the units: heads [L, H], neurons [L, I], float64; 0 is pruned, 1 untouched."""

    heads: Floats
    neurons: Floats

    @staticmethod
    def ones(shape: Shape) -> "Masks":
        """Nothing pruned."""
        return Masks(np.ones((shape.layers, shape.heads)), np.ones((shape.layers, shape.neurons)))

    @staticmethod
    def zeros(shape: Shape) -> "Masks":
        """Everything pruned."""
        return Masks(np.zeros((shape.layers, shape.heads)), np.zeros((shape.layers, shape.neurons)))

    def of(self, sublayer: int) -> Floats:
        """The factors of one sub-layer, a view."""
        return row_of((self.heads, self.neurons), sublayer)

    def check(self, shape: Shape, what: str = "masks") -> None:
        """Raise ValueError unless they have the model's sizes and are finite."""
        for name, given, units in (("heads", self.heads, shape.heads), ("neurons", self.neurons, shape.neurons)):
            if given.shape != (shape.layers, units):
                raise ValueError(f"{what}: {name} has shape {given.shape}, the model needs {(shape.layers, units)}")
            if not np.isfinite(given).all():
                raise ValueError(f"{what}: {name} holds values that are not finite")


@dataclass(frozen=True)
class WeightMasks:
    """Which single weights of the layers' matrices are kept: bool [out, in] by the name of their linear module."""

    kept: dict[str, NDArray[np.bool_]]

    @property
    def count(self) -> int:
        """The number of weights kept."""
        return sum(int(mask.sum()) for mask in self.kept.values())

    @property
    def share(self) -> float:
        """The share of the weights kept: the true density, counted over all the matrices."""
        return self.count / sum(mask.size for mask in self.kept.values())

    def packed(self) -> dict[str, NDArray[np.uint8]]:
        """Eight weights a byte, row after row, the first in the highest bit (as numpy.packbits)."""
        return {name: np.packbits(mask) for name, mask in self.kept.items()}

    @property
    def packed_bytes(self) -> int:
        """The size of `packed`."""
        return sum(-(-mask.size // 8) for mask in self.kept.values())

    def sha256(self) -> str:
        """Of names and packed bits, names sorted: whether two runs keep the same weights."""
        content = hashlib.sha256()
        for name, bits in sorted(self.packed().items()):
            content.update(name.encode() + b"\0" + bits.tobytes())
        return content.hexdigest()
