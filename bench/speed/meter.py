"""What pruning costs: its seconds, its memory, and the cost of one pass that makes its seconds comparable."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.calibration import Calibration
from bench.machine import OtherWork
from bench.masks import Masks
from bench.model import PrunableModel
from bench.nn.bf16 import bf16_layers
from bench.nn.packing import Batch
from bench.records.reading import OTHER_WORK, QUIET
from bench.speed.memory import peak_memory
from bench.stages import collect, synchronize

WARM_UP_BATCHES = 2
PASS_SECONDS, PASS_BATCHES, PASS_STOP, PASS_LEAST = 2.0, 8, 20.0, 4
Timed = list[tuple[float, int]]  # seconds and padded tokens of some batches


@dataclass
class Meter:
    """What a piece of work has cost, once `metered` has ended. `start` is the clock at its beginning; `busy` the other work on the
    machine per core, while the work ran and while the pass was timed."""

    start: float = 0.0
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    pass_seconds: float = 0.0
    busy: list[float] = field(default_factory=list)

    def cost(self, notes: list[str], earlier: float = 0.0) -> dict[str, Any]:
        """The record's `prune`. `earlier`: the seconds that an interrupted training has taken before."""
        notes = notes + [f"{OTHER_WORK}: {max(self.busy):.2f} per core"] * (max(self.busy) > QUIET)
        if earlier:
            notes.append(f"interrupted and resumed: {earlier:.0f} s before that are counted")
        seconds = self.seconds + earlier
        return {
            "seconds": seconds,
            "stages": {**self.stages, **({"interrupted": earlier} if earlier else {})},
            "peak_bytes": self.peak_bytes,
            "pass_seconds": self.pass_seconds,
            "passes": seconds / self.pass_seconds,
            "notes": notes,
            "other_work": max(self.busy),
        }


@contextmanager
def metered(dense: PrunableModel, calibration: Calibration, precision: str = "fp32") -> Iterator[Meter]:
    """Measure the work within it, from a cold, warmed-up state.

    A pass (forward and backward of the dense model over the calibration set, gradients of the masks only) is timed
    half before and half after, so that a drifting machine cancels; in fp32 whatever the precision, since it is the unit.
    """
    meter, (first, second) = Meter(), _sample(calibration)
    with bf16_layers(dense, precision == "bf16"):
        _warm_up(dense, first[:WARM_UP_BATCHES])
    timed = _time_batches(dense, first, meter)
    gc.collect()
    with peak_memory(dense.device) as peak, collect() as meter.stages:
        synchronize()
        others, meter.start = OtherWork(), time.perf_counter()
        yield meter
        synchronize()
        meter.seconds = time.perf_counter() - meter.start
        meter.busy.append(others.per_core())
    meter.peak_bytes = peak()
    meter.pass_seconds = _scaled(timed + _time_batches(dense, second, meter), calibration)


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


def _time_batches(dense: PrunableModel, batches: list[Batch], meter: Meter) -> Timed:
    """Time some batches: half of 2 s or 8 batches, whichever is more; at 20 s two are enough."""
    others, timed = OtherWork(), Timed()
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
    meter.busy.append(others.per_core())
    return timed


def _spread(batches: list[Batch]) -> Iterator[Batch]:
    """All batches in an order that covers the set evenly however early it is cut."""
    step = max(1, len(batches) // (PASS_BATCHES // 2))
    for offset in range(step):
        yield from batches[offset::step]


def _size(batch: Batch) -> int:
    """Padded tokens of a batch: what its time is proportional to."""
    return batch["input_ids"].numel()


def _scaled(timed: Timed, calibration: Calibration) -> float:
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
