"""Retraining after pruning: what is left is fine-tuned, perhaps in several rounds of pruning a little more.

The part of a run's pruning that retraining-based structured pruning has and the others do not; its seconds belong to it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from bench.budget import Budget
from bench.config import Recover
from bench.masks import Masks
from bench.method import Skip
from bench.model import PrunableModel
from bench.nn.rounding import rounded
from bench.nn.shrink import grow, shrink
from bench.stages import stage
from bench.training import Fit, Group, Training, cubic, linear


@dataclass(frozen=True)
class Recovery:
    """How a run retrains: its key `recover`, the training set, and the multiple that numbers of neurons are rounded down to."""

    plan: Recover
    training: Training
    round_to: int | None = None
    notes: list[str] = field(default_factory=list)

    def prune(self, model: PrunableModel, budget: Budget, choose: Callable[[Budget], Masks]) -> Masks:
        """Prune, shrink and train in rounds, so that `model` ends with the trained weights. Returns the masks, without factors.

        The share removed rises with the rounds as 1 - (1 - r/R)^3 (Zhu and Gupta 2017, arXiv 1710.01878); what a round has
        removed stays removed. The updates of all epochs are shared out over the rounds.

        Raises:
            Skip: there are more rounds than updates.
        """
        kept, rounds, updates = Masks.ones(model.shape), self.plan.rounds, self.training.steps(self.plan.epochs)
        if rounds > updates:
            raise Skip(f"recover.rounds={rounds}: {self.plan.epochs:g} epochs have {updates} updates, a round needs one at the least")
        for done in range(1, rounds + 1):
            chosen = choose(budget.at(budget.ratio * cubic(done, rounds, 1.0, 0.0)))
            masks = Masks(chosen.heads * kept.heads, chosen.neurons * kept.neurons)
            if lost := budget.cost(chosen) - budget.cost(masks):
                self.notes.append(f"round {done}: {100 * lost / budget.total:.2f} % of the cost is missing, its units were gone before")
            masks = rounded(model, masks, self.round_to or 1) if done == rounds else masks
            with stage("retrain"):
                small = shrink(model, masks)
                self._train(small, updates * done // rounds - updates * (done - 1) // rounds)
                kept = grow(model, masks, small)
        return kept

    def _train(self, module: nn.Module, steps: int) -> None:
        """So many updates by the recipe that fine-tuned the dense model."""
        recipe = self.training.recipe
        frozen = self.training.of_embeddings(module) if recipe.freeze_embeddings else set()
        plan = Fit(
            steps=steps,
            groups=decayed(module, recipe.learning_rate, recipe.weight_decay, frozen),
            loss=self.training.task_loss,
            rate=linear(steps, int(recipe.warmup * steps)),
            label="retraining",
        )
        self.training.fit(module, plan, self.plan.distil)


def decayed(module: nn.Module, rate: float, decay: float, frozen: set[str]) -> list[Group]:
    """Groups of an optimiser: matrices with weight decay; biases, norms and what else is no matrix without; frozen names in none."""
    free = [(name, parameter) for name, parameter in module.named_parameters() if name not in frozen]
    matrices = [parameter for _, parameter in free if parameter.ndim > 1]
    others = [parameter for _, parameter in free if parameter.ndim <= 1]
    return [{"params": matrices, "lr": rate, "weight_decay": decay}, {"params": others, "lr": rate, "weight_decay": 0.0}]
