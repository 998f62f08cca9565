"""The importances of the library torch-pruning (Fang et al., CVPR 2023, arXiv 2301.12900) under our budget.

Only the score differs between these methods: the library's own importance objects, on groups built from the units'
weights, with `normalizer=None` (its default normalises within a group, so that scores of different layers would not
compare; LAMP is a normalisation and keeps its own). Columns are summed per head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch_pruning as tp
from torch import Tensor
from torch_pruning._helpers import GroupItem
from torch_pruning.dependency import Dependency, Group, Node

from bench.budget import Scores
from bench.calibration import Calibration
from bench.method import Scorer
from bench.model import PrunableModel
from bench.nn.sublayer import SubLayer
from bench.stages import progress
from methods.activations import by_unit

WEIGHT_IMPORTANCES = ("magnitude", "lamp", "fpgm", "random")
GRADIENT_IMPORTANCES = ("taylor", "hessian")


def group_of(sublayer: SubLayer) -> Group:
    """The units of a sub-layer as the library's group: rows of the producers, columns of the output projection."""
    group = Group()
    parts = [(one.linear, one.width, one.linear.out_features, tp.prune_linear_out_channels) for one in sublayer.producers]
    projection = sublayer.projection
    for linear, width, size, prune in [*parts, (projection, sublayer.width, projection.in_features, tp.prune_linear_in_channels)]:
        node = Node(linear, None, "unit")
        item = GroupItem(Dependency(prune, prune, node, node), list(range(size)))
        item.root_idxs = [i // width * sublayer.width + i % width for i in range(size)]  # the column that stands for it
        group._group.append(item)
    return group


def _scores(model: PrunableModel, importance: tp.importance.Importance) -> Scores:
    columns: list[Tensor] = [importance(group_of(sublayer)).double() for sublayer in model.sublayers]
    heads, neurons = by_unit(model, columns)
    return Scores(heads.numpy(), neurons.numpy())


@dataclass
class WeightImportance(Scorer):
    """`importance`: magnitude (group norm to the power p), lamp (Lee et al. 2021), fpgm (after He et al. 2019:
    distances of the weights' absolute values to the power p), random."""

    importance: str = "magnitude"
    p: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.importance not in WEIGHT_IMPORTANCES:
            raise ValueError(f"importance={self.importance}: one of {', '.join(WEIGHT_IMPORTANCES)}")
        if self.p < 1:
            raise ValueError(f"p={self.p}: at least 1")

    def score(self, model: PrunableModel, calibration: Calibration) -> Scores:
        """No data is looked at."""
        if self.importance == "random":  # the library draws from torch's global generator
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(calibration.generator.integers(2**63)))
                return _scores(model, tp.importance.RandomImportance())
        if self.importance == "lamp":
            return _scores(model, tp.importance.LAMPImportance(p=self.p))
        kind = tp.importance.FPGMImportance if self.importance == "fpgm" else tp.importance.GroupMagnitudeImportance
        return _scores(model, kind(p=self.p, normalizer=None))


@dataclass
class GradientImportance(Scorer):
    """`importance`: taylor (Molchanov et al. 2019: |w · ∂loss/∂w|, gradients of the mean loss over the whole set) or
    hessian (optimal brain damage: w² · mean over examples of (∂loss/∂w)²)."""

    importance: str = "taylor"

    labels = True
    gradients = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.importance not in GRADIENT_IMPORTANCES:
            raise ValueError(f"importance={self.importance}: one of {', '.join(GRADIENT_IMPORTANCES)}")

    def score(self, model: PrunableModel, calibration: Calibration) -> Scores:
        """One forward and backward pass with gradients of the weights; hessian: of every example on its own."""
        with _weights_of_units(model) as weights:
            if self.importance == "taylor":
                self._mean_gradient(model, calibration)
                return _scores(model, tp.importance.GroupTaylorImportance(normalizer=None))
            squares = self._mean_square(model, calibration, weights)
            importance = tp.importance.GroupHessianImportance(normalizer=None)
            for weight, square in zip(weights, squares, strict=True):
                weight.grad = square  # its accumulate_grad keeps the last example alone (it looks names up among tensors)
            return _scores(model, importance)

    @staticmethod
    def _mean_gradient(model: PrunableModel, calibration: Calibration) -> None:
        for part in progress(calibration.all_parts, "gradients"):
            losses = calibration.kind.loss(model.forward(part), part["labels"])
            (losses.sum() / calibration.examples).backward()  # type: ignore[no-untyped-call]

    @staticmethod
    def _mean_square(model: PrunableModel, calibration: Calibration, weights: list[Tensor]) -> list[Tensor]:
        squares = [torch.zeros_like(weight) for weight in weights]
        for example in progress(calibration.singles(), "squared gradients"):
            loss = calibration.kind.loss(model.forward(example), example["labels"])
            for square, gradient in zip(squares, torch.autograd.grad(loss.sum(), weights), strict=True):
                square.addcmul_(gradient, gradient, value=1 / calibration.examples)
        return squares


@contextmanager
def _weights_of_units(model: PrunableModel) -> Iterator[list[Tensor]]:
    """Within it, the weights of all units ask for gradients; afterwards none does and none is left."""
    weights = [linear.weight for sublayer in model.sublayers for _, _, linear in sublayer.matrices()]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield weights
    finally:
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None
