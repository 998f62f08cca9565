"""Paired timing: the dense and the pruned model in strict alternation, so that the machine's mood cancels."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bench.config import LatencyPlan
from bench.stages import say

WARM_UP = 3
RESAMPLES = 2000


@torch.no_grad()
def compare(dense: nn.Module, pruned: nn.Module, plan: LatencyPlan, positions: int, device: str) -> dict[str, Any]:
    """The record's `latency`, at most at `positions` tokens.

    The speedup is the median of the per-round ratios dense / pruned, with a 95 % interval.
    """
    if plan.plan == "none":
        return {"plan": "none", "headline": None, "grid": [], "notes": []}
    length = min(plan.length, positions)
    batch = inputs(dense, plan.batch, length, device)
    capped = f" (not {plan.length}: the model has no more positions)" if length < plan.length else ""
    say(f"timing dense against pruned, batch {plan.batch}, length {length}{capped}")
    run_dense, run_pruned = timer(dense, batch, device), timer(pruned, batch, device)
    for _ in range(WARM_UP):
        run_dense(), run_pruned()
    times = _rounds(run_dense, run_pruned, plan)
    ratios = times[:, 0] / times[:, 1]
    low, high = interval(ratios)
    point = {
        "batch": plan.batch,
        "length": length,
        "dtype": "float32",
        "mode": "eager",
        "rounds": len(times),
        "dense_ms": round(1000 * float(np.median(times[:, 0])), 3),
        "pruned_ms": round(1000 * float(np.median(times[:, 1])), 3),
        "speedup": round(float(np.median(ratios)), 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }
    notes = [f"the model has {positions} positions: timed at that length, not at {plan.length}"] if length < plan.length else []
    return {"plan": plan.plan, "headline": point, "grid": [point], "notes": notes}


def inputs(module: nn.Module, batch: int, length: int, device: str) -> dict[str, torch.Tensor]:
    """Full-length examples of ordinary token ids; no padding."""
    config: Any = module.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, config.vocab_size, (batch, length), generator=generator)
    return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}


def timer(module: nn.Module, batch: dict[str, torch.Tensor], device: str) -> Callable[[], float]:
    """A function that runs one forward pass and returns its seconds: CUDA events on a GPU, the clock elsewhere."""

    def on_cpu() -> float:
        start = time.perf_counter()
        module(**batch)
        return time.perf_counter() - start

    def on_cuda() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        module(**batch)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    return on_cuda if device == "cuda" else on_cpu


def _rounds(dense: Callable[[], float], pruned: Callable[[], float], plan: LatencyPlan) -> NDArray[np.float64]:
    """Seconds [rounds, 2] of dense and pruned; the order is flipped in every round."""
    times: list[tuple[float, float]] = []
    start = time.perf_counter()
    while True:
        spent = time.perf_counter() - start
        enough = len(times) >= plan.min_rounds and spent >= plan.min_seconds
        if enough or (spent >= plan.max_seconds and len(times) >= plan.floor_rounds):
            return np.array(times)
        if len(times) % 2:
            second = pruned()
            times.append((dense(), second))
        else:
            times.append((dense(), pruned()))


def interval(ratios: NDArray[np.float64]) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    draws = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)
