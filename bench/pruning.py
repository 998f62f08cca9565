"""The timed part of a run: pruning, its memory, and the cost of one pass that makes its seconds comparable."""

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from bench import plugin
from bench.budget import Budget
from bench.calibration import Calibration
from bench.config import Run
from bench.errors import UserError, first_line
from bench.machine import OtherWork, repeatable
from bench.masks import Masks, WeightMasks
from bench.method import Method
from bench.model import PrunableModel
from bench.nn.bf16 import bf16_layers
from bench.nn.packing import Batch
from bench.records.reading import OTHER_WORK, QUIET
from bench.speed.memory import peak_memory
from bench.stages import collect, synchronize
from bench.train.recover import Recovery

WARM_UP_BATCHES = 2
PASS_SECONDS, PASS_BATCHES, PASS_STOP, PASS_LEAST = 2.0, 8, 20.0, 4


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
    """Run a method on its own copy of the model, timed from a cold, warmed-up state to final masks and weights.

    `start`: the model that a method begins with, where it is not the dense one. `recovery`: how what is left is retrained. What an
    interrupted training has cost before is counted.

    A pass (forward and backward of the dense model over the calibration set, gradients of the masks only) is timed
    half before and half after, so that a drifting machine cancels; in fp32 whatever the precision, since it is the unit.
    With precision bf16 the model's layers compute in bfloat16, forward and backward (bench.nn.bf16); what a method computes
    itself from their values is in float32 at the least. A training has its own mixed precision.
    """
    model = (start or dense).copy()
    seen = calibration if method.labels else calibration.without_labels()
    halves = _sample(calibration)
    bf16 = precision == "bf16"
    training = recovery.training if recovery else calibration.training

    def choose(budget: Budget) -> Any:
        with torch.set_grad_enabled(method.gradients), bf16_layers(model, bf16 and not method.training):
            return method.prune(model, seen.kind.supervised(model, seen) if method.labels else seen, budget)

    with repeatable(model.device.type):
        with bf16_layers(dense, bf16):
            _warm_up(dense, halves[0][:WARM_UP_BATCHES])
        others = OtherWork()
        timed = _time_batches(dense, halves[0])
        busy = [others.per_core()]
        gc.collect()
        with peak_memory(model.device) as peak, collect() as stages:
            synchronize()
            others, start_time = OtherWork(), time.perf_counter()
            if training:
                training.began = start_time
            found = recovery.prune(model, budget, choose) if recovery else choose(budget)
            synchronize()
            seconds = time.perf_counter() - start_time
            busy.append(others.per_core())
        others = OtherWork()
        timed += _time_batches(dense, halves[1])
        busy.append(others.per_core())
    if not budget.fits(budget.cost(found)):
        raise ValueError(f"the masks cost {budget.cost(found):.6g}, the budget is {budget.limit:.6g}")
    weights = found if isinstance(found, WeightMasks) else None
    masks = Masks.ones(model.shape) if isinstance(found, WeightMasks) else found
    masks.check(model.shape)
    pass_seconds = _scaled(timed, calibration)
    notes = method.notes + (recovery.notes if recovery else []) + ([f"{OTHER_WORK}: {max(busy):.2f} per core"] if max(busy) > QUIET else [])
    if training and training.earlier:
        seconds, stages = seconds + training.earlier, {**stages, "interrupted": training.earlier}
        notes.append(f"interrupted and resumed: {training.earlier:.0f} s before that are counted")
    cost = {
        "seconds": seconds,
        "stages": stages,
        "peak_bytes": peak(),
        "pass_seconds": pass_seconds,
        "passes": seconds / pass_seconds,
        "notes": notes,
    }
    return Pruning(masks, weights, PrunableModel(model.module, model.arch, model.kind), cost)


def _warm_up(dense: PrunableModel, batches: list[Batch]) -> None:
    """What a method may use is loaded and warm before it is timed: both forward passes, fp64 products and a solve."""
    for batch in batches:
        _pass(dense, batch)
        with torch.no_grad():
            dense.forward(batch)
    matrix = torch.eye(64, dtype=torch.float64, device=dense.device)
    torch.linalg.cholesky_ex(matrix @ matrix)


def _sample(calibration: Calibration) -> tuple[list[Batch], list[Batch]]:
    """Batches spread over the set in two interleaved halves; the last, short one only where there is no other."""
    whole = calibration.batches[:-1] or calibration.batches
    return whole[::2], whole[1::2] or whole


def _time_batches(dense: PrunableModel, batches: list[Batch]) -> list[tuple[float, int]]:
    """(seconds, examples) of some batches: half of 2 s or 8 batches, whichever is more; at 20 s two are enough."""
    timed: list[tuple[float, int]] = []
    synchronize()
    start = time.perf_counter()
    for batch in _spread(batches):
        began = time.perf_counter()
        _pass(dense, batch)
        synchronize()
        now = time.perf_counter()
        timed.append((now - began, _size(batch)))
        enough = len(timed) >= PASS_BATCHES // 2 and now - start >= PASS_SECONDS / 2
        if enough or (len(timed) >= PASS_LEAST // 2 and now - start >= PASS_STOP / 2):
            break
    return timed


def _spread(batches: list[Batch]) -> Iterator[Batch]:
    """All batches in an order that covers the set evenly however early it is cut."""
    step = max(1, len(batches) // (PASS_BATCHES // 2))
    for offset in range(step):
        yield from batches[offset::step]


def _size(batch: Batch) -> int:
    """Padded tokens of a batch: what its time is proportional to."""
    return batch["input_ids"].numel()


def _scaled(timed: list[tuple[float, int]], calibration: Calibration) -> float:
    """Seconds of the whole set from those of the sample, by padded tokens."""
    total = sum(_size(batch) for batch in calibration.batches)
    return sum(seconds for seconds, _ in timed) * total / sum(size for _, size in timed)


@torch.enable_grad()
def _pass(model: PrunableModel, batch: Batch) -> None:
    """Forward and backward over one batch, gradients of the masks only."""
    factors = {s: factor.requires_grad_() for s, factor in model.columns(Masks.ones(model.shape)).items()}
    with model.masked(factors):
        loss = model(batch).square().mean()
    torch.autograd.grad(loss, list(factors.values()))
