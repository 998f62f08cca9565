"""The record's `latency`: the dense and the pruned model in alternation at the points of a grid."""

import copy
import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.config import LatencyPlan, Point
from bench.errors import UserError, first_line
from bench.speed import nvml
from bench.speed.memory import peak_memory
from bench.speed.timing import Ratio, Seconds, alternate, inputs, timer
from bench.stages import progress, say

MEASURED = ("rounds", "dense_ms", "pruned_ms", "dense_ms_p10_p90", "pruned_ms_p10_p90", "speedup", "low", "high")
BESIDE = ("dense_per_second", "pruned_per_second", "dense_peak_bytes", "pruned_peak_bytes", "dense_joules", "pruned_joules")


def check(plan: LatencyPlan, positions: int) -> None:
    """Raise UserError where a point of the grid is longer than the model's positions."""
    too_long = [length for length in plan.lengths if length > positions]
    if too_long:
        raise UserError(f"latency.lengths={plan.lengths}: the model has {positions} positions, leave {too_long[0]} out")


def compare(dense: nn.Module, pruned: nn.Module, outputs: Sequence[str], plan: LatencyPlan, positions: int, device: str) -> dict[str, Any]:
    """Time two models with `positions` positions and outputs of these names; the headline is the plan's own point, eager and in float32.

    A point that fails, for want of memory or otherwise, is a point with a note.
    """
    if plan.plan == "none":
        return {"plan": "none", "headline": None, "grid": [], "notes": []}
    notes = [f"{torch.get_num_threads()} threads, attention {getattr(dense.config, '_attn_implementation', 'unknown')}"]
    points = plan.points(device)
    if positions < plan.length:
        say(f"timing at length {positions}: the model has no more positions")
        notes.append(f"the model has {positions} positions: timed at that length, not at {plan.length}")
        points = [Point(points[0].batch, positions, *points[0].kind), *points[1:]]
    say(
        f"timing dense against pruned, batch {points[0].batch}, length {points[0].length}"
        + f", and {len(points) - 1} more" * (len(points) > 1)
    )
    if device == "cuda":
        notes += nvml.notes()
        for warning in nvml.warnings():
            say(f"warning: {warning}")
            notes.append(warning)
    grid = []
    for kind, group in itertools.groupby(progress(points, "timing, points"), key=lambda point: point.kind):
        with _prepared([dense, pruned], outputs, kind, device) as runners:
            grid += [_measured(point, runners, dense, plan, device) for point in group]
    headline = None if grid[0]["note"] else grid[0]
    return {"plan": plan.plan, "headline": headline, "grid": grid, "notes": notes, "positions": positions}


Runner = Callable[[dict[str, torch.Tensor]], Callable[[], Any]]  # a batch to what computes its logits


@contextmanager
def _prepared(models: list[nn.Module], outputs: Sequence[str], kind: tuple[str, str], device: str) -> Iterator[list[Runner] | str]:
    """The models in a precision and a mode, as what makes a forward pass of a batch; or why there are none."""
    dtype, mode = kind
    try:
        if dtype != "float32":
            models = [copy.deepcopy(model).to(getattr(torch, dtype)) for model in models]
        if mode == "compile":
            runners = [_eager(torch.compile(model, dynamic=False)) for model in models]
        elif mode == "onnx":
            runners = [_onnx(model, outputs) for model in models]
        else:
            runners = [_eager(model) for model in models]
    except Exception as error:
        yield f"{type(error).__name__}: {first_line(error)}"
        return
    try:
        yield runners
    finally:
        if mode == "compile":
            torch._dynamo.reset()
        del runners, models
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def _eager(model: Callable[..., Any]) -> Runner:
    return lambda batch: lambda: model(**batch)


def _onnx(model: nn.Module, outputs: Sequence[str]) -> Runner:
    from bench.export import onnx_runner

    return onnx_runner(model, outputs, ["input_ids", "attention_mask"], torch.get_num_threads())


def _measured(point: Point, runners: list[Runner] | str, model: nn.Module, plan: LatencyPlan, device: str) -> dict[str, Any]:
    where = {"batch": point.batch, "length": point.length, "dtype": point.dtype, "mode": point.mode}
    empty = {**where, **dict.fromkeys((*MEASURED, *BESIDE))}
    if isinstance(runners, str):
        return {**empty, "note": runners}
    try:
        return {**where, **_timed(point, runners, model, plan, device), "note": None}
    except Exception as error:  # a grid goes on without one of its points
        note = (
            "out of memory" if isinstance(error, torch.OutOfMemoryError | MemoryError) else f"{type(error).__name__}: {first_line(error)}"
        )
    if device == "cuda":
        torch.cuda.empty_cache()
    say(f"not timed at batch {point.batch}, length {point.length}, {point.dtype}, {point.mode}: {note}")
    return {**empty, "note": note}


def _timed(point: Point, runners: list[Runner], model: nn.Module, plan: LatencyPlan, device: str) -> dict[str, Any]:
    batch = inputs(model, point.batch, point.length, device)
    works = [make(batch) for make in runners]
    times = alternate([timer(work, device) for work in works], plan)
    memory = [_peak(work, device) for work in works]
    joules = [_joules(work, point.batch, plan.energy_seconds, device) for work in works]
    medians = np.median(times, axis=0)
    return {
        "rounds": len(times),
        "dense_ms": _ms(medians[0]),
        "pruned_ms": _ms(medians[1]),
        "dense_ms_p10_p90": _tails(times[:, 0]),
        "pruned_ms_p10_p90": _tails(times[:, 1]),
        **Ratio.of(times[:, 0], times[:, 1]).rounded(),
        "dense_per_second": round(point.batch / medians[0], 2),
        "pruned_per_second": round(point.batch / medians[1], 2),
        "dense_peak_bytes": memory[0],
        "pruned_peak_bytes": memory[1],
        "dense_joules": joules[0],
        "pruned_joules": joules[1],
    }


def _ms(seconds: float) -> float:
    return round(1000 * float(seconds), 3)


def _tails(seconds: Seconds) -> list[float]:
    return [_ms(value) for value in np.percentile(seconds, [10, 90])]


@torch.no_grad()
def _peak(work: Callable[[], Any], device: str) -> int:
    """Peak bytes of a forward pass beyond the weights."""
    gc.collect()
    with peak_memory(torch.device(device)) as peak:
        work()
    return peak()


@torch.no_grad()
def _joules(work: Callable[[], Any], samples: int, wanted: float, device: str) -> float | None:
    """Energy of a sample over so many seconds, where the GPU counts it."""
    before = nvml.energy() if device == "cuda" and wanted else None
    if before is None:
        return None
    once = timer(work, device)
    spent = rounds = 0.0
    while spent < wanted:
        spent += once()
        rounds += 1
    after = nvml.energy()
    return None if after is None else float(f"{(after - before) / (rounds * samples):.4g}")
