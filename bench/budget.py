"""What a unit costs, how much may be kept, and the allocations that spend it."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.masks import Floats, Masks, Shape, WeightMasks, by_array, place, row_of

if TYPE_CHECKING:
    from bench.model import PrunableModel

TOLERANCE = 1 + 1e-9  # costs are not whole numbers: an exact <= would prune a unit at ratio 0 on many shapes


@dataclass(frozen=True)
class Price:
    """Cost of k units of a sub-layer: nothing for none, `base` up to `free` of them, `each` more for every further one.

    In FLOPs and parameters only `each` counts; a latency has all three (Kwon et al. 2022, section 4.1).
    """

    each: float
    base: float = 0.0
    free: int = 0

    @property
    def uneven(self) -> bool:
        """Whether what one more unit costs depends on how many its sub-layer has."""
        return self.base > 0 or self.free > 0

    def of(self, count: NDArray[np.intp] | int) -> Floats:
        """The cost of so many units of one sub-layer, elementwise."""
        return np.where(np.asarray(count) > 0, self.base + self.each * np.maximum(np.asarray(count) - self.free, 0), 0.0)

    def step(self, rank: NDArray[np.intp] | int) -> Floats:
        """What the rank-th unit of a sub-layer (1, 2, ...) adds, elementwise."""
        rank = np.asarray(rank)
        return np.where(rank == 1, self.base, 0.0) + np.where(rank > self.free, self.each, 0.0)


@dataclass(frozen=True)
class Budget:
    """What the units of every sub-layer cost, and the cost that may be kept (FLOPs, parameters, or seconds of a latency table).

    `prices` holds one price for every sub-layer, bottom to top; all heads cost the same, and so do all neurons. Biases, norms,
    softmax, embeddings and heads on top are not counted, as in the papers.
    """

    shape: Shape
    prices: tuple[Price, ...]
    ratio: float
    unit: str = "flops"

    @staticmethod
    def of(model: "PrunableModel", unit: str, ratio: float, length: float) -> "Budget":
        """`unit` is flops (at `length` tokens), params, or weights (of the matrices alone); `ratio` is the share removed.

        Raises:
            ValueError: another unit.
        """
        return Budget(model.shape, tuple(Price(sublayer.cost(unit, length)) for sublayer in model.sublayers), ratio, unit)

    @staticmethod
    def of_kinds(shape: Shape, heads: Price, neurons: Price, ratio: float, unit: str = "flops") -> "Budget":
        """From the price of the heads and that of the neurons of one layer."""
        return Budget(shape, tuple((heads, neurons)[place(s)[0]] for s in range(shape.sublayers)), ratio, unit)

    @property
    def heads(self) -> Price:
        """What the heads of one layer cost."""
        return by_array(self.prices)[0][0]

    @property
    def neurons(self) -> Price:
        """What the neurons of one layer cost."""
        return by_array(self.prices)[1][0]

    @property
    def head(self) -> float:
        """The cost of one more head."""
        return self.heads.each

    @property
    def neuron(self) -> float:
        """The cost of one more neuron."""
        return self.neurons.each

    @property
    def uneven(self) -> bool:
        """Whether what one more unit costs depends anywhere on how many are there."""
        return any(price.uneven for price in self.prices)

    @cached_property
    def total(self) -> float:
        """The cost of all units."""
        return self._sum(self.shape.units(s) for s in range(self.shape.sublayers))

    @property
    def limit(self) -> float:
        """The cost that may be kept."""
        return self.total * (1 - self.ratio)

    @property
    def least(self) -> float:
        """The cost of the cheapest masks that keep anything: one head, or one neuron."""
        return min(float(price.of(1)) for price in self.prices)

    def cost(self, masks: Masks | WeightMasks) -> float:
        """The cost of what the masks keep; of single weights it is their number.

        Raises:
            ValueError: single weights under a budget that counts something else.
        """
        if isinstance(masks, WeightMasks):
            if self.unit != "weights":
                raise ValueError(f"single weights are no {self.unit}: a method that prunes them says `_unit_: weights` in its YAML")
            return masks.count
        return self._sum(int(np.count_nonzero(masks.of(s))) for s in range(self.shape.sublayers))

    def _sum(self, counts: Iterable[int]) -> float:
        """The cost of so many units of every sub-layer."""
        return math.fsum(float(price.of(count)) for price, count in zip(self.prices, counts, strict=True))

    def running(self, sublayers: NDArray[np.intp]) -> Floats:
        """The cost of the first n units of a list, for every n; the list names each unit's sub-layer."""
        together = np.argsort(sublayers, kind="stable")
        counts = np.bincount(sublayers, minlength=len(self.prices))
        steps = np.empty(len(sublayers))
        steps[together] = np.concatenate([price.step(np.arange(1, n + 1)) for price, n in zip(self.prices, counts, strict=True)])
        return np.cumsum(steps)

    def fits(self, cost: float) -> bool:
        """Whether a cost is within the limit."""
        return cost <= self.limit * TOLERANCE

    def at(self, ratio: float) -> "Budget":
        """The same costs under another ratio."""
        return replace(self, ratio=ratio)


@dataclass(frozen=True)
class Scores:
    """How good each unit is, higher is better: heads [L, H], neurons [L, I].

    `ranked`: the values of heads and neurons are compared as they are, not per cost. Lists, tensors and arrays of any kind of
    number are taken, and kept as float64.

    Raises:
        TypeError: something else is given, or rows of different lengths.
    """

    heads: Floats
    neurons: Floats
    ranked: bool = False

    def __post_init__(self) -> None:
        for name in ("heads", "neurons"):
            given = getattr(self, name)
            try:
                object.__setattr__(self, name, _floats(given))
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(
                    f"scores: {name} is no table of numbers but {type(given).__name__}: Scores(heads, neurons) takes a row of numbers "
                    "for each layer, as lists, a tensor or an array"
                ) from error

    def of(self, sublayer: int) -> Floats:
        """The scores of one sub-layer, a view."""
        return row_of((self.heads, self.neurons), sublayer)

    def check(self, shape: Shape) -> None:
        """Raise ValueError unless there is a finite number for every unit."""
        Masks(self.heads, self.neurons).check(shape, "scores")


def _floats(given: Any) -> Floats:
    """Lists, tensors on any device and arrays as float64.

    Raises:
        TypeError, ValueError, RuntimeError: there are not numbers alone in it, or rows of different lengths.
    """
    if given is None or isinstance(given, str | bytes):
        raise TypeError("no numbers")
    if hasattr(given, "detach"):  # a tensor
        return given.detach().cpu().double().numpy()  # type: ignore[no-any-return]
    if isinstance(given, Sequence):
        return np.array([_floats(entry) for entry in given])
    return np.asarray(given).astype(np.float64, casting="same_kind")


def descending(scores: Floats) -> NDArray[np.intp]:
    """Flat indices, best first, equals bottom up.

    Raises:
        ValueError: a score is no number, which would be kept or pruned by chance.
    """
    if np.isnan(scores).any():
        raise ValueError("scores: values that are no numbers")
    return np.argsort(-scores.ravel(), kind="stable")


def uniform(scores: Scores, budget: Budget) -> Masks:
    """Each sub-layer of a kind keeps the same number of units; what is left buys the next-best heads, then neurons."""
    share = uniform_share(budget)
    kept = Masks(np.zeros_like(scores.heads), np.zeros_like(scores.neurons))
    for mask, values in ((kept.heads, scores.heads), (kept.neurons, scores.neurons)):
        count = int(values.shape[1] * share)
        best = np.argsort(-values, axis=1, kind="stable")[:, :count]
        np.put_along_axis(mask, best, 1.0, axis=1)
    left = budget.limit * TOLERANCE - budget.cost(kept)
    for mask, values, price in ((kept.heads, scores.heads, budget.heads), (kept.neurons, scores.neurons, budget.neurons)):
        order = descending(values)
        left = buy(mask, order[mask.ravel()[order] == 0], price, left)
    return kept


def uniform_share(budget: Budget) -> float:
    """The share of the units that every sub-layer keeps: of the cost, or the largest whose latency fits, 0 where one neuron in
    every layer costs too much."""
    if not budget.uneven:
        return (1 - budget.ratio) * TOLERANCE
    shape = budget.shape
    shares = np.unique(np.concatenate([np.arange(n + 1) / n * TOLERANCE for n in (shape.heads, shape.neurons)]))
    counts = [(shares * n).astype(int) for n in (shape.heads, shape.neurons)]
    costs = shape.layers * (budget.heads.of(counts[0]) + budget.neurons.of(counts[1]))
    return float(shares[costs <= budget.limit * TOLERANCE].max())


def buy(mask: Floats, wanted: NDArray[np.intp], price: Price, left: float) -> float:
    """Keep wanted units of a mask [L, units] in their order as long as they can be paid. Returns what is left."""
    counts = (mask != 0).sum(1)
    for unit in wanted:
        layer = unit // mask.shape[1]
        cost = float(price.step(counts[layer] + 1))
        if cost <= left:
            mask.ravel()[unit] = 1.0
            counts[layer] += 1
            left -= cost
        elif not price.uneven:
            break  # every other costs as much
    return left


def by_cost(scores: Scores, budget: Budget) -> Masks:
    """Over the whole model by score per cost (or as ranked): remove the lowest until it fits, put back what still fits."""
    stored = list(itertools.chain(*by_array(range(budget.shape.sublayers))))  # of equals heads are kept before neurons
    values = [scores.of(s) / (1 if scores.ranked else budget.prices[s].each) for s in stored]
    sizes = [len(part) for part in values]
    sublayers, units = np.repeat(stored, sizes), np.concatenate([np.arange(size) for size in sizes])
    order = descending(np.concatenate(values))
    costs = budget.running(sublayers[order])
    fitting = int(np.searchsorted(costs, budget.limit * TOLERANCE, side="right"))
    kept = np.zeros(order.size)
    kept[order[:fitting]] = 1.0
    masks = Masks.zeros(budget.shape)
    for s, row in zip(stored, np.split(kept, np.cumsum(sizes)[:-1]), strict=True):
        masks.of(s)[:] = row
    left = budget.limit * TOLERANCE - (costs[fitting - 1] if fitting else 0.0)
    cheapest = min(price.each for price in budget.prices)
    for i in order[fitting:]:
        s = int(sublayers[i])
        left = buy(masks.of(s)[None], units[i : i + 1], budget.prices[s], left)
        if left < cheapest and not budget.uneven:
            break
    return masks


def joint(scores: Scores, budget: Budget) -> Masks:
    """Kwon et al. 2022, section 4.1: for every number of heads, the neurons that fill the rest; the largest summed score.

    Numbers of heads that exceed the budget alone are not candidates (the authors' code clips them); none is one. Where
    a sub-layer has a base price, whole sub-layers may go as well: for every number of them the others keep their base
    units, and the same budget (the authors' code lowers it from one combination to the next) pays for the best others.
    """
    if budget.fits(budget.total):
        return Masks.ones(budget.shape)  # also what scores nothing, or less
    lowest = min(0.0, float(scores.heads.min()), float(scores.neurons.min()))  # sums of negative scores would favour fewer units
    scores = replace(scores, heads=scores.heads - lowest, neurons=scores.neurons - lowest)
    heads, neurons = _Ranked.of(scores.heads, budget.heads), _Ranked.of(scores.neurons, budget.neurons)
    limit = budget.limit * TOLERANCE
    best, chosen = -np.inf, (0, 0, 0, 0)
    for a, b in np.ndindex(heads.choices, neurons.choices):
        left = limit - heads.base_cost(a) - neurons.base_cost(b)
        if left < 0:
            continue
        gain_heads, gain_neurons = heads.gains(a), neurons.gains(b)
        h = np.arange(min(len(gain_heads) - 1, int(left / budget.head)) + 1)
        n = np.minimum((left - h * budget.head) / budget.neuron, len(gain_neurons) - 1).astype(int)
        gains = gain_heads[h] + gain_neurons[n]
        if gains.max() > best:
            best, chosen = float(gains.max()), (a, int(h[gains.argmax()]), b, int(n[gains.argmax()]))
    return Masks(heads.mask(*chosen[:2]), neurons.mask(*chosen[2:]))


@dataclass(frozen=True)
class _Ranked:
    """Units of one kind, some of whose sub-layers may be dropped: the ones with the lowest base importance first."""

    scores: Floats
    price: Price
    is_base: NDArray[np.bool_]
    dropped_first: NDArray[np.intp]

    @staticmethod
    def of(scores: Floats, price: Price) -> "_Ranked":
        is_base = np.zeros(scores.shape, dtype=bool)
        np.put_along_axis(is_base, np.argsort(-scores, axis=1, kind="stable")[:, : price.free], True, axis=1)
        return _Ranked(scores, price, is_base, np.argsort((scores * is_base).sum(1), kind="stable"))

    @property
    def choices(self) -> int:
        """From no dropped sub-layer to all; without a base price dropping gains nothing."""
        return len(self.scores) + 1 if self.price.base else 1

    def base_cost(self, dropped: int) -> float:
        return (len(self.scores) - dropped) * self.price.base

    def _extra(self, dropped: int) -> NDArray[np.intp]:
        """Flat indices of what may be bought beyond the base units, best first."""
        there = ~self.is_base
        there[self.dropped_first[:dropped]] = False
        order = descending(self.scores)
        return order[there.ravel()[order]]

    def gains(self, dropped: int) -> Floats:
        """Summed scores of the base units and the n best others, for n = 0, 1, ..."""
        base = float((self.scores * self.is_base)[self.dropped_first[dropped:]].sum())
        return base + np.concatenate([[0.0], np.cumsum(self.scores.ravel()[self._extra(dropped)])])

    def mask(self, dropped: int, bought: int) -> Floats:
        mask = self.is_base.astype(float)
        mask[self.dropped_first[:dropped]] = 0.0
        mask.ravel()[self._extra(dropped)[:bought]] = 1.0
        return mask


ALLOCATIONS = {"uniform": uniform, "global": by_cost, "joint": joint}
