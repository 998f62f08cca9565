"""What a unit costs, how much may be kept, and the allocations that spend it."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bench.masks import Floats, Masks, Shape

TOLERANCE = 1 + 1e-9  # costs are not whole numbers: an exact <= would prune a unit at ratio 0 on many shapes


@dataclass(frozen=True)
class Budget:
    """The cost of a head and of a neuron, and the cost that may be kept (FLOPs or parameters).

    Biases, norms, softmax, embeddings and heads on top are not counted, as in the papers.
    """

    shape: Shape
    head: float
    neuron: float
    ratio: float

    @staticmethod
    def of(shape: Shape, unit: str, ratio: float, length: float) -> "Budget":
        """`unit` is flops (at `length` tokens) or params; `ratio` is the share removed."""
        d, d_h = shape.hidden, shape.head_dim
        if unit == "flops":
            return Budget(shape, 8 * length * d * d_h + 4 * length**2 * d_h, 4 * length * d, ratio)
        return Budget(shape, 4 * d * d_h + 3 * d_h, 2 * d + 1, ratio)

    @property
    def total(self) -> float:
        """The cost of all units."""
        return self.shape.layers * (self.shape.heads * self.head + self.shape.neurons * self.neuron)

    @property
    def limit(self) -> float:
        """The cost that may be kept."""
        return self.total * (1 - self.ratio)

    def unit_cost(self, sublayer: int) -> float:
        """The cost of one unit of a sub-layer."""
        return self.neuron if sublayer % 2 else self.head

    def cost(self, masks: Masks) -> float:
        """The cost of what the masks keep."""
        return float(np.count_nonzero(masks.heads) * self.head + np.count_nonzero(masks.neurons) * self.neuron)

    def fits(self, cost: float) -> bool:
        """Whether a cost is within the limit."""
        return cost <= self.limit * TOLERANCE

    def at(self, ratio: float) -> "Budget":
        """The same costs under another ratio."""
        return replace(self, ratio=ratio)


@dataclass(frozen=True)
class Scores:
    """How good each unit is, higher is better: heads [L, H], neurons [L, I].

    `ranked`: the values of heads and neurons are compared as they are, not per cost.
    """

    heads: Floats
    neurons: Floats
    ranked: bool = False


def descending(scores: Floats) -> NDArray[np.intp]:
    """Flat indices, best first, equals bottom up."""
    return np.argsort(-scores.ravel(), kind="stable")


def uniform(scores: Scores, budget: Budget) -> Masks:
    """Each sub-layer of a kind keeps the same number of units; what is left buys the next-best heads, then neurons."""
    share = (1 - budget.ratio) * TOLERANCE
    kept = Masks(np.zeros_like(scores.heads), np.zeros_like(scores.neurons))
    for mask, values in ((kept.heads, scores.heads), (kept.neurons, scores.neurons)):
        count = int(values.shape[1] * share)
        best = np.argsort(-values, axis=1, kind="stable")[:, :count]
        np.put_along_axis(mask, best, 1.0, axis=1)
    left = budget.limit * TOLERANCE - budget.cost(kept)
    for mask, values, cost in ((kept.heads, scores.heads, budget.head), (kept.neurons, scores.neurons, budget.neuron)):
        order = descending(values)
        bought = order[mask.ravel()[order] == 0][: int(left / cost)]
        mask.ravel()[bought] = 1.0
        left -= len(bought) * cost
    return kept


def by_cost(scores: Scores, budget: Budget) -> Masks:
    """Over the whole model by score per cost (or as ranked): remove the lowest until it fits, put back what still fits."""
    heads = scores.heads.ravel() / (1 if scores.ranked else budget.head)
    neurons = scores.neurons.ravel() / (1 if scores.ranked else budget.neuron)
    values = np.concatenate([heads, neurons])
    costs = np.concatenate([np.full(heads.size, budget.head), np.full(neurons.size, budget.neuron)])
    order = np.argsort(-values, kind="stable")
    kept = np.zeros(values.size)
    fitting = np.cumsum(costs[order]) <= budget.limit * TOLERANCE
    kept[order[fitting]] = 1.0
    left = budget.limit * TOLERANCE - float(costs[order[fitting]].sum())
    for unit in order[~fitting]:
        if left < min(budget.head, budget.neuron):
            break
        if costs[unit] <= left:
            kept[unit] = 1.0
            left -= costs[unit]
    return Masks(kept[: heads.size].reshape(scores.heads.shape), kept[heads.size :].reshape(scores.neurons.shape))


def joint(scores: Scores, budget: Budget) -> Masks:
    """Kwon et al. 2022, section 4.1: for every number of heads, the neurons that fill the rest; the largest summed score.

    Numbers of heads that exceed the budget alone are not candidates (the authors' code clips them); none is one.
    """
    by_head, by_neuron = descending(scores.heads), descending(scores.neurons)
    gain_heads = np.concatenate([[0.0], np.cumsum(scores.heads.ravel()[by_head])])
    gain_neurons = np.concatenate([[0.0], np.cumsum(scores.neurons.ravel()[by_neuron])])
    limit = budget.limit * TOLERANCE
    heads = np.arange(min(scores.heads.size, int(limit / budget.head)) + 1)
    neurons = np.minimum((limit - heads * budget.head) / budget.neuron, scores.neurons.size).astype(int)
    best = int(np.argmax(gain_heads[heads] + gain_neurons[neurons]))
    kept = Masks(np.zeros_like(scores.heads), np.zeros_like(scores.neurons))
    kept.heads.ravel()[by_head[: heads[best]]] = 1.0
    kept.neurons.ravel()[by_neuron[: neurons[best]]] = 1.0
    return kept


ALLOCATIONS = {"uniform": uniform, "global": by_cost, "joint": joint}
