"""The timed part of a run: the method chooses masks on a copy of the model."""

from dataclasses import dataclass
from typing import Any

import torch

from bench import plugin
from bench.budget import Budget
from bench.calibration import Calibration
from bench.config import Run
from bench.errors import UserError, first_line
from bench.machine import repeatable
from bench.masks import Masks, WeightMasks
from bench.method import Method
from bench.model import PrunableModel
from bench.nn.bf16 import bf16_layers
from bench.speed.meter import metered
from bench.train.recover import Recovery


@dataclass(frozen=True)
class Pruning:
    """Final masks, of single weights too where those were pruned, the model whose weights belong to them, and what it cost (the
    record's `prune`)."""

    masks: Masks
    weights: WeightMasks | None
    model: PrunableModel
    cost: dict[str, Any]


def instantiate(run: Run) -> Method:
    """The method object from its `_target_` and fields.

    Raises:
        UserError: the target is not there, or is no method.
    """
    found = plugin.load(run.method_target, f"method {run.method}")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"method {run.method}: {run.method_target} is no bench.method.Method")
    for name, told, real in (("training", run.trains, found.training), ("pretrained", run.pretrained, found.pretrained)):
        if told != real:
            raise UserError(f"method {run.method}: `{name} = True` stands in the body of {run.method_target} itself, not elsewhere")
    try:
        return found(**run.method_fields)
    except TypeError as error:
        raise UserError(f"method {run.method}: its YAML does not fit {run.method_target}: {first_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"method {run.method}: {first_line(error)}") from error


def prune(
    method: Method,
    dense: PrunableModel,
    calibration: Calibration,
    budget: Budget,
    precision: str = "fp32",
    start: PrunableModel | None = None,
    recovery: Recovery | None = None,
) -> Pruning:
    """Run a method on its own copy of the model, and measure what that costs.

    `start`: the model that a method begins with, where it is not the dense one. `recovery`: how what is left is retrained. What an
    interrupted training has cost before is counted.

    With precision bf16 the model's layers compute in bfloat16, forward and backward (bench.nn.bf16); what a method computes
    itself from their values is in float32 at the least. A training has its own mixed precision.
    """
    model = (start or dense).copy()
    seen = (calibration if method.labels else calibration.without_labels()).of(model)
    training = recovery.training if recovery else calibration.training

    def choose(budget: Budget) -> Any:
        with torch.set_grad_enabled(method.gradients), bf16_layers(model, precision == "bf16" and not method.training):
            return method.prune(model, seen.kind.supervised(model, seen) if method.labels else seen, budget)

    with repeatable(model.device.type), metered(dense, calibration, precision) as meter:
        if training:
            training.work.began = meter.start
        chosen = recovery.prune(model, budget, choose) if recovery else choose(budget)
    if not budget.fits(budget.cost(chosen)):
        raise ValueError(f"the masks cost {budget.cost(chosen):.6g}, the budget is {budget.limit:.6g}")
    weights = chosen if isinstance(chosen, WeightMasks) else None
    masks = Masks.ones(model.shape) if isinstance(chosen, WeightMasks) else chosen
    masks.check(model.shape)
    cost = meter.cost(method.notes + (recovery.notes if recovery else []), training.work.earlier if training else 0.0)
    return Pruning(masks, weights, PrunableModel(model.module, model.arch, model.kind), cost)
