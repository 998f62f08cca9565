"""Single weights pruned layer by layer: a layer's inputs come from the pruned layers below, and all its matrices are chosen before any of
them is changed. What Wanda and SparseGPT share."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bench.budget import TOLERANCE, Budget
from bench.calibration import Calibration
from bench.masks import WeightMasks, place
from bench.method import Skip
from bench.model import PrunableModel
from bench.nn.packing import Context
from bench.nn.sublayer import SubLayer
from bench.stages import progress, stage
from methods.states import States

PATTERNS = ("free", "2:4")
Choose = Callable[[nn.Linear, Tensor], Tensor]  # of a matrix and its statistics the mask [out, in]; it may write other weights


@dataclass
class Inputs:
    """Sums over the tokens that a linear map has read: of x² [in] or, where a method wants `products`, of x xᵀ [in, in]; float64."""

    products: bool
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    tokens: int = 0

    def add(self, x: Tensor) -> None:
        """Some more tokens [tokens, in]."""
        x = x.double()
        part = x.T @ x if self.products else x.square().sum(0)
        self.total = part + self.total.to(part)
        self.tokens += len(x)


def check_pattern(pattern: str, ratio: float) -> None:
    """Raise Skip where a pattern of two out of four meets another ratio than a half.

    Raises:
        Skip: as said.
    """
    if pattern == "2:4" and ratio not in (0.0, 0.5):
        raise Skip(f"pattern 2:4 removes two weights of every four: ratio=0.5, not {ratio:g}")


@torch.no_grad()
def prune_layers(model: PrunableModel, calibration: Calibration, products: bool, choose: Choose) -> WeightMasks:
    """Go through the layers bottom to top; pruned weights are zero afterwards."""
    states, masks = States.embedded(model, calibration), dict[str, Tensor]()
    for layer in progress(range(model.shape.layers), "layers"):
        both = [(s, model.sublayers[s]) for s in (2 * layer, 2 * layer + 1)]
        with stage("measure"):
            seen = _inputs_of_layer([sublayer for _, sublayer in both], states, products)
        with stage("search"):
            for s, sublayer in both:
                for _, path, linear in sublayer.matrices():
                    mask = choose(linear, _total(seen[linear]))
                    linear.weight.mul_(mask)
                    masks[f"{model.arch.layers}.{place(s)[1]}.{path}"] = mask
        with stage("measure"):
            for s, _ in both:
                states.advance(model, s)
    return WeightMasks({name: mask.cpu().numpy() for name, mask in masks.items()})


def _total(inputs: Inputs) -> Tensor:
    return inputs.total / inputs.tokens


def _inputs_of_layer(sublayers: list[SubLayer], states: States, products: bool) -> dict[nn.Linear, Inputs]:
    """What every matrix of a layer reads, the layer as it still is."""
    seen = {linear: Inputs(products) for sublayer in sublayers for _, _, linear in sublayer.matrices()}
    for hidden, context in zip(states.hidden, states.contexts, strict=True):
        for sublayer in sublayers:
            hidden = _add_inputs(sublayer, hidden, context, seen)
    return seen


def _add_inputs(sublayer: SubLayer, hidden: Tensor, context: Context, seen: dict[nn.Linear, Inputs]) -> Tensor:
    read = sublayer.read(hidden)
    x, _, following = sublayer(hidden, context)
    first, *others = sublayer.producers
    seen[first.linear].add(read)
    for other in others:  # they read the same
        seen[other.linear] = seen[first.linear]
    seen[sublayer.projection].add(x)
    return following


def lowest_of_rows(values: Tensor, budget: Budget) -> Tensor:
    """The mask [out, in] that keeps of every row as many of the highest values as the budget's share allows; of equals the first."""
    kept = int(values.shape[1] * (1 - budget.ratio) * TOLERANCE)
    order = values.sort(dim=1, descending=True, stable=True).indices[:, :kept]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, True)


def two_of_four(values: Tensor) -> Tensor:
    """The mask [out, in] that keeps of every four neighbours in a row the two highest values.

    Raises:
        Skip: a row's length is no multiple of four.
    """
    if values.shape[1] % 4:
        raise Skip(f"pattern 2:4: a matrix has {values.shape[1]} inputs, no multiple of four")
    fours = values.view(len(values), -1, 4)
    order = fours.sort(dim=2, descending=True, stable=True).indices[..., :2]
    return torch.zeros_like(fours, dtype=torch.bool).scatter_(2, order, True).view_as(values)
