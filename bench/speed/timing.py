"""Timing callables against each other in strict alternation, so that the machine's mood cancels in their ratio."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bench.config import LatencyPlan

WARM_UP = 3
RESAMPLES = 2000
LOOK_EVERY = 10  # rounds between two looks at an interval's width

Timer = Callable[[], float]
Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """How many times as fast the second is: the median of the ratios of the rounds, and its 95 % bootstrap interval."""

    speedup: float
    low: float
    high: float

    @staticmethod
    def of(first: Seconds, second: Seconds) -> "Ratio":
        """From seconds [rounds] of the same rounds."""
        ratios = first / second
        return Ratio(float(np.median(ratios)), *interval(ratios))

    def rounded(self) -> dict[str, float]:
        """For a record."""
        return {"speedup": round(self.speedup, 4), "low": round(self.low, 4), "high": round(self.high, 4)}


def paired(first: Callable[[], Any], second: Callable[[], Any], plan: LatencyPlan, device: str = "cpu") -> Ratio:
    """How many times as fast the second callable is as the first, measured in alternation after a warm-up."""
    times = alternate([timer(first, device), timer(second, device)], plan)
    return Ratio.of(times[:, 0], times[:, 1])


def timer(work: Callable[[], Any], device: str) -> Timer:
    """A function that does the work once and returns its seconds: CUDA events on a GPU, the clock elsewhere."""

    def on_cpu() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def on_cuda() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    return on_cuda if device == "cuda" else on_cpu


@torch.no_grad()
def alternate(timers: Sequence[Timer], plan: LatencyPlan, warm_up: int = WARM_UP) -> Seconds:
    """Seconds [rounds, timers], one of each in every round; the order is flipped from round to round.

    At least `min_rounds` and `min_seconds`, then, where the plan asks for it, until the interval of the ratio of the
    first two is no wider than the share `width` of it; ended at `max_seconds`, but never before `floor_rounds`.
    """
    for _ in range(warm_up):
        for run_once in timers:
            run_once()
    times: list[list[float]] = []
    start = time.perf_counter()
    while not _enough(times, time.perf_counter() - start, plan):
        order = range(len(timers)) if len(times) % 2 == 0 else reversed(range(len(timers)))
        measured = {i: timers[i]() for i in order}
        times.append([measured[i] for i in range(len(timers))])
    return np.array(times)


def _enough(times: list[list[float]], spent: float, plan: LatencyPlan) -> bool:
    rounds = len(times)
    if spent >= plan.max_seconds and rounds >= plan.floor_rounds:
        return True
    if rounds < plan.min_rounds or spent < plan.min_seconds:
        return False
    if plan.width is None or len(times[0]) < 2:
        return True
    if (rounds - plan.min_rounds) % LOOK_EVERY:
        return False
    first, second = np.array(times)[:, :2].T
    found = Ratio.of(first, second)
    return found.high - found.low <= plan.width * found.speedup


def interval(ratios: Seconds) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    draws = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)


def inputs(module: nn.Module, batch: int, length: int, device: str) -> dict[str, torch.Tensor]:
    """Full-length examples of ordinary token ids; no padding."""
    config: Any = module.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, config.vocab_size, (batch, length), generator=generator)
    return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}


def forward(module: nn.Module, batch: dict[str, torch.Tensor], device: str) -> Timer:
    """The timer of one forward pass of a model."""
    return timer(lambda: module(**batch), device)
