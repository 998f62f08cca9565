"""What a pruning method is. A method is one dataclass in one file, and a YAML with every field."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from bench.budget import ALLOCATIONS, Budget, Scores, uniform_share
from bench.masks import Masks, WeightMasks
from bench.stages import stage

if TYPE_CHECKING:
    from bench.calibration import Calibration
    from bench.model import PrunableModel


class Skip(Exception):  # noqa: N818 - it is no error
    """This cell cannot be done; the reason goes into a record of status `skipped`."""


@dataclass
class Method(ABC):
    """A pruning method; its fields are its hyper-parameters.

    `labels`: it looks at the labels of the calibration set, which are hidden otherwise. `gradients`: it runs backward
    passes; the others are called under `torch.no_grad`. `training`: it trains on the whole train split, which is
    `calibration.training` (bench.training.Training), labels included. `pretrained`: the model that it gets is the base
    encoder as it was before fine-tuning, with a new head, not the dense model. `layers`: it removes whole layers, so that less than a
    layer's cost of the budget may be left over.
    """

    labels: ClassVar[bool] = False
    gradients: ClassVar[bool] = False
    training: ClassVar[bool] = False
    pretrained: ClassVar[bool] = False
    layers: ClassVar[bool] = False
    notes: list[str] = field(default_factory=list, init=False)  # what a reader of the record should know

    @abstractmethod
    def prune(self, model: "PrunableModel", calibration: "Calibration", budget: Budget) -> Masks | WeightMasks:
        """Choose what is kept within the budget: whole units, or single weights (whose YAML says `_unit_: weights`).

        The model is the method's own copy, its weights may be rewritten and its head replaced. Randomness comes from
        `calibration.generator` alone, of a training from its seed. Everything computed here is timed; name the parts with
        `bench.stages.stage`.

        Raises:
            Skip: the method cannot do this cell.
        """


@dataclass
class Scorer(Method):
    """A method that only says how good each unit is; allocation and budget are shared by all scorers."""

    allocation: str = "uniform"

    @abstractmethod
    def score(self, model: "PrunableModel", calibration: "Calibration") -> Scores:
        """One score per head and neuron, higher is better."""

    def __post_init__(self) -> None:
        if self.allocation not in ALLOCATIONS:
            raise ValueError(f"allocation={self.allocation}: one of {', '.join(ALLOCATIONS)}")

    def prune(self, model: "PrunableModel", calibration: "Calibration", budget: Budget) -> Masks:
        """Score, then allocate.

        Raises:
            TypeError: `score` returns something else than Scores.
            ValueError: its numbers are not finite, or not one for each unit.
            Skip: allocation uniform, and not one unit in every layer can be paid, as where a latency is mostly base prices.
        """
        if self.allocation == "uniform" and budget.uneven and not uniform_share(budget):
            raise Skip(
                f"allocation=uniform keeps something in every layer, and at ratio={budget.ratio:g} not one neuron of each can be paid "
                "here; method.allocation=global drops whole layers"
            )
        with stage("score"):
            scores: Any = self.score(model, calibration)
            if not isinstance(scores, Scores):
                layers, heads, neurons = model.shape.layers, model.shape.heads, model.shape.neurons
                raise TypeError(
                    f"score returns {type(scores).__name__}: it has to return bench.budget.Scores(heads, neurons), here of shapes "
                    f"({layers}, {heads}) and ({layers}, {neurons}), higher is better"
                )
            scores.check(model.shape)
        with stage("search"):
            return ALLOCATIONS[self.allocation](scores, budget)
