"""SMP, static model pruning: trains nothing but which pre-trained weights are used (Jiang et al., ACL 2023, arXiv 2210.06210)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.budget import Budget
from bench.calibration import Calibration
from bench.masks import WeightMasks
from bench.method import Method, Skip
from bench.model import PrunableModel
from bench.nn.packing import Batch
from bench.stages import stage
from bench.training import Fit, Training, cubic, linear
from methods import label_words
from methods.masked_weights import MaskedWeights, mean_sigmoid

RAMP = 0.6  # share of the updates in which the density falls to what is asked for
PAPER = {  # epochs and batch of the published runs (the authors' run.sh, run_squad.sh)
    **dict.fromkeys(("mnli", "qqp", "qnli", "sst2"), (12, 64)),
    **dict.fromkeys(("mrpc", "cola", "stsb"), (60, 32)),
    "rte": (100, 32),
    "squad": (10, 32),
}
PAPER_RAMPS = {0.7: 5250, 0.8: 3500}  # updates until these densities are reached on GLUE
# updates after the density is reached, where it is lower than those; on SQuAD, where 0.7 and 0.8 are reached in as many
PAPER_HOLD, PAPER_SQUAD = 30_000, 5_000


@dataclass(frozen=True)
class Schedule:
    """`steps` updates of `batch` examples; the density is reached at `ramp`, the regulariser its full weight at `horizon`."""

    steps: int
    batch: int
    ramp: int
    horizon: int


@dataclass
class SMP(Method):
    """Trains a score for every weight of the pre-trained encoder; the weights with the highest scores are kept, as they were.

    `allocation`: local (SMP-L: the same share of every matrix) or sigmoid (SMP-S: matrices of a type share their budget by their
    means of sigma(S / temperature)). `surplus` of a matrix that would keep more than all its weights: redistribute, or lose (as
    the authors' code). `lambda_r`: weight of the regulariser. `schedule`: shares (of `epochs`) or paper (the published numbers of
    updates, hours on a GPU). `distil`: the dense model teaches. The frozen classifier is made of
    the task's `label_words`.
    """

    allocation: str = "sigmoid"
    surplus: str = "redistribute"
    temperature: float = 1.0
    lambda_r: float = 400.0
    learning_rate: float = 2.0e-2
    epochs: float = 3.0
    schedule: str = "shares"
    distil: bool = False

    gradients = True
    training = True
    pretrained = True

    def __post_init__(self) -> None:
        for name, known in (("allocation", ("local", "sigmoid")), ("surplus", ("redistribute", "lose")), ("schedule", ("shares", "paper"))):
            if getattr(self, name) not in known:
                raise ValueError(f"method.{name}={getattr(self, name)}: one of {', '.join(known)}")
        if not min(self.temperature, self.learning_rate, self.epochs) > 0 or self.lambda_r < 0:
            raise ValueError("method.temperature, method.learning_rate and method.epochs are more than 0, method.lambda_r at least 0")

    def prune(self, model: PrunableModel, calibration: Calibration, budget: Budget) -> WeightMasks:
        """Train the scores; the mask after the last update is the result."""
        training, density = calibration.training, 1 - budget.ratio
        assert training is not None
        plan = self.schedule_of(training, density)
        if not label_words.install(model, training.base, training.encoder.tokenizer, training.task.label_words):
            self.notes.append("the base has no masked-language-model head: logits are inner products with the label words' embeddings")
        masked, strength = MaskedWeights(model, scored=True), Strength(self.lambda_r, plan.horizon)
        scores = masked.scores()

        def before(step: int) -> None:
            strength.now = strength.at(step)
            self.keep(masked, cubic(step, plan.ramp, density))

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            return training.task_loss(module, batch) + strength.now * mean_sigmoid(scores)

        groups = [{"params": scores, "lr": self.learning_rate}]
        with stage("train"):
            fit = Fit(plan.steps, groups, loss, linear(plan.steps), before, "training scores")
            training.fit(model.module, fit, self.distil, plan.batch)
        self.keep(masked, density)
        return masked.finish(budget.limit)

    @torch.no_grad()
    def keep(self, masked: MaskedWeights, density: float) -> None:
        """Choose the masks anew from the scores as they are now."""
        if self.allocation == "local":
            masked.keep_share(density)
            return
        means = [[(masked.values(linear) / self.temperature).sigmoid().mean() for linear in own.values()] for own in masked.types.values()]
        masked.keep_shares(shares(torch.stack([torch.stack(row) for row in means]), density, self.surplus == "redistribute"))

    def schedule_of(self, training: Training, density: float) -> Schedule:
        """How long to train, and when the density is reached.

        Raises:
            Skip: the published schedule does not reach this density on this task, or there are too few updates.
        """
        if self.schedule == "paper":
            return paper_schedule(training, density)
        steps = training.steps(self.epochs)
        if steps < 2:
            raise Skip(f"{steps} update of {training.recipe.batch} examples: too few to reach a density, raise method.epochs")
        return Schedule(steps, training.recipe.batch, max(1, int(RAMP * steps)), steps)


@dataclass
class Strength:
    """The regulariser's weight in the course of a training: lambda_R (1 - (1 - t/T)^3), the authors' code's schedule."""

    most: float
    horizon: int
    now: float = 0.0

    def at(self, step: int) -> float:
        """At an update, counted from 0."""
        return cubic(step, self.horizon, self.most, 0.0)


def shares(means: Tensor, density: float, redistribute: bool) -> Tensor:
    """What every matrix keeps, [types, L], from the means of sigma(S / p) (the paper's equation 4): a type's matrices keep `density`
    of their weights together, each in proportion to its mean; none more than all of them. What is too much for one is handed
    to the others of its type, in proportion, or lost."""
    means = means.double()
    layers = means.shape[1]
    found = density * layers * means / means.sum(1, keepdim=True)
    if not redistribute:
        return found.clamp(max=1.0)
    for _ in range(layers - 1):  # each time at least one more matrix is full, or nothing is left to hand on
        full = found >= 1.0
        left = density * layers - full.sum(1, keepdim=True, dtype=means.dtype)
        weight = means.masked_fill(full, 0.0)
        found = torch.where(full, 1.0, left * weight / weight.sum(1, keepdim=True).clamp_min(1e-300))
    return found.clamp(max=1.0)


def paper_schedule(training: Training, density: float) -> Schedule:
    """The published numbers of updates (the authors' scripts; where the paper's text differs, docs/methods.md says so).

    Raises:
        Skip: there is none for this task, or none that reaches this density.
    """
    name = training.task_name
    if name not in PAPER:
        raise Skip(f"schedule=paper: there is no published schedule for {name}")
    epochs, batch = PAPER[name]
    kept = round(density, 6)
    if name == "squad" and kept == 0.03:
        return Schedule(training.steps(20, batch), batch, 22_650, 27_660)
    steps = training.steps(epochs, batch)
    hold, ramps = (PAPER_SQUAD, dict.fromkeys(PAPER_RAMPS, PAPER_SQUAD)) if name == "squad" else (PAPER_HOLD, PAPER_RAMPS)
    ramp = ramps.get(kept, steps - hold)
    if (kept > 0.5 and kept not in PAPER_RAMPS) or not 0 < ramp < steps:
        raise Skip(f"schedule=paper: {steps} updates on {name} do not reach {kept:g} of the weights by the published rule")
    return Schedule(steps, batch, ramp, steps)
