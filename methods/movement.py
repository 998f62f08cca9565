"""Masks of single weights that are trained together with the weights: movement pruning and what it is compared with."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from bench.budget import Budget
from bench.calibration import Calibration
from bench.masks import WeightMasks
from bench.method import Method, Skip
from bench.model import PrunableModel
from bench.nn.packing import Batch
from bench.stages import stage
from bench.training import Fit, cubic, linear
from methods.masked_weights import Gates, MaskedWeights, mean_sigmoid

WARM_UP, HOLD = 0.1, 0.2  # shares of the updates: dense at the start while the rate rises, at the final density at the end
LEAST = 0.005  # of every matrix is kept by soft movement
MASKINGS = ("movement", "soft", "magnitude", "l0")


@dataclass
class Unstructured(Method):
    """Fine-tunes the pre-trained encoder (its embeddings stay) with a new head, under masks that follow a cubic schedule.

    `masking`: movement (Sanh et al., NeurIPS 2020, arXiv 2005.07683: the highest scores of every matrix), soft (the same authors':
    one threshold for all matrices, with a regulariser), magnitude (Zhu and Gupta 2017, arXiv 1710.01878: the largest weights of
    every matrix), l0 (Louizos et al., ICLR 2018, arXiv 1712.01312: hard-concrete gates). `regularizer`: its weight, for soft and
    l0. `score_rate`: the scores' learning rate. `distil`: the dense model teaches.
    """

    masking: str = "movement"
    regularizer: float = 0.0
    learning_rate: float = 5.0e-5
    score_rate: float = 1.0e-2
    epochs: float = 3.0
    distil: bool = False

    gradients = True
    training = True
    pretrained = True

    def __post_init__(self) -> None:
        if self.masking not in MASKINGS:
            raise ValueError(f"method.masking={self.masking}: one of {', '.join(MASKINGS)}")
        if not min(self.learning_rate, self.score_rate, self.epochs) > 0 or self.regularizer < 0:
            raise ValueError("method.learning_rate, score_rate and epochs are more than 0, regularizer is at least 0")
        if self.masking == "magnitude" and self.regularizer:
            raise ValueError(f"method.regularizer={self.regularizer:g}: magnitudes have no scores that it could lower")

    def prune(self, model: PrunableModel, calibration: Calibration, budget: Budget) -> WeightMasks:
        """Train weights and masks; the mask after the last update is the result, within the budget."""
        training, density = calibration.training, 1 - budget.ratio
        assert training is not None
        steps = training.steps(self.epochs)
        start, end = int(WARM_UP * steps), steps - int(HOLD * steps)
        if not start < end < steps:
            raise Skip(f"too few updates for a schedule of masks ({steps}), raise method.epochs")
        frozen = training.of_embeddings(model.module)
        weights = [parameter for name, parameter in model.module.named_parameters() if name not in frozen]
        masked = Gates(model) if self.masking == "l0" else MaskedWeights(model, scored=self.masking != "magnitude")
        penalty, strength = self.penalty(masked), 0.0

        def before(step: int) -> None:
            nonlocal strength
            ramp = cubic(max(0, step - start), end - start, 1.0, 0.0)
            strength = self.regularizer * (1.0 if self.masking == "l0" else ramp)
            self.keep(masked, 1 - ramp * budget.ratio)

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            task = training.task_loss(module, batch)
            return task + strength * penalty() if self.regularizer else task

        groups = [{"params": weights, "lr": self.learning_rate}]
        if masked.scores():
            groups.append({"params": masked.scores(), "lr": self.score_rate})
        with stage("train"):
            training.fit(model.module, Fit(steps, groups, loss, linear(steps, start), before, "training under masks"), self.distil)
        self.keep(masked, density)
        if isinstance(masked, Gates):
            open_share = masked.close(density)
            self.notes.append(f"the gates left {open_share:.4f} of the weights open, the budget is {density:.4f}")
        return masked.finish(budget.limit)

    def keep(self, masked: MaskedWeights, density: float) -> None:
        """Choose the masks anew from scores or weights as they are now; gates do so themselves."""
        if self.masking == "soft":
            masked.keep_globally(density, LEAST)
        elif self.masking != "l0":
            masked.keep_share(density)

    def penalty(self, masked: MaskedWeights) -> Callable[[], Tensor]:
        """The regulariser."""
        return masked.penalty if isinstance(masked, Gates) else lambda: mean_sigmoid(masked.scores())
