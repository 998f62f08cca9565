"""Why a pruned model is not faster: what its FLOPs allow, what a native model of its sizes reaches, what cannot shrink.

At the headline's point, in float32 and eager, beside the dense and the shrunk model in the same alternation:
- *native*: the shrunk model with every linear layer made anew at its size, random weights: what shrinking could reach;
- *empty*: no head and no neuron left: embeddings, norms, residuals and the head on top, which no ratio removes;
- *skeleton*: as many operators as the shrunk model has, on next to no data: what issuing them costs.
"""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.budget import Budget
from bench.config import LatencyPlan
from bench.masks import Masks
from bench.model import PrunableModel
from bench.nn.shrink import shrink
from bench.speed.timing import Ratio, alternate, forward, inputs, paired
from bench.stages import say

WIDTH_OF_SKELETON = 8  # of a head, and of a feed-forward; the least that every attention kernel takes
UNSTEADY = 0.15  # relative difference of two measurements of one speedup
LAUNCH, CLOSE = 0.5, 0.9  # from which share on operators' issuing limits; what counts as reached


def explain(
    dense: PrunableModel, masks: Masks, pruned: nn.Module, plan: LatencyPlan, positions: int, device: str, headline: float | None = None
) -> dict[str, Any]:
    """The record's `latency.limits`: bounds of the speedup, shares of the time, and the verdict in words.

    `alone` holds the same for one example at a time, where the plan's grid has that. `headline`: the speedup that was measured
    just before; where the two disagree the machine was too unsteady for a verdict, which says so.
    """
    say("timing what limits the speedup")
    twins = [dense.module, pruned, native(pruned), _emptied(dense)]
    bare = skeleton(dense, masks).to(device)
    length = min(plan.length, positions)
    flops = Budget.of(dense, "flops", 0, length)
    kept = flops.cost(masks) / flops.total

    def at(batch: int) -> tuple[dict[str, Any], Ratio]:
        given = inputs(dense.module, batch, length, device)
        timers = [forward(twin, given, device) for twin in twins]
        timers.append(forward(bare, inputs(bare, 1, WIDTH_OF_SKELETON, device), device))
        fewer = plan.floor_rounds if plan.width is None else max(plan.floor_rounds, plan.min_rounds // 2)  # five models, not two
        rounds = replace(plan, min_rounds=fewer, width=None)
        times = alternate(timers, rounds, warm_up=1).T
        return {"batch": batch, "length": length, **summary(times, kept)}, Ratio.of(times[0], times[1])

    found, reached = at(plan.batch)
    if headline and abs(reached.speedup / headline - 1) > UNSTEADY:
        found["verdict"] = (
            f"unsteady machine: {headline:.2f} times as fast in one measurement, {reached.speedup:.2f} in the next; rerun=true repeats it"
        )
    return {**found, "alone": at(1)[0] if 1 in plan.batches and plan.batch > 1 else None}


def _emptied(dense: PrunableModel) -> nn.Module:
    return shrink(dense, Masks.zeros(dense.shape))


def summary(times: np.ndarray, kept: float) -> dict[str, Any]:
    """From seconds [5, rounds] of dense, pruned, native, empty and skeleton; `kept` is the share of the FLOPs."""
    dense, pruned, built, empty, issuing = times
    fixed = float(np.median(empty / dense))
    reached, possible = Ratio.of(dense, pruned), Ratio.of(dense, built)
    found = {
        "flops_bound": round(1 / kept, 4) if kept else None,
        "fixed_share": round(fixed, 4),
        "bound_with_fixed": round(1 / (fixed + (1 - fixed) * kept), 4),
        "native": possible.rounded(),
        "native_over_pruned": Ratio.of(pruned, built).rounded(),
        "launch_share": round(min(1.0, float(np.median(issuing / pruned))), 4),
        "rounds": times.shape[1],
    }
    return {**found, "verdict": verdict(reached, found)}


def verdict(reached: Ratio, found: dict[str, Any]) -> str:
    """One sentence for what stands between the measured speedup and more."""
    if found["launch_share"] >= LAUNCH:
        return (
            f"launch-bound: {100 * found['launch_share']:.0f} % of the pruned model's time goes into issuing operators, whatever their size"
        )
    if found["native_over_pruned"]["low"] > 1 / CLOSE:
        return f"shrinking: a native model of these sizes is {found['native_over_pruned']['speedup']:.2f} times as fast"
    if found["flops_bound"] and reached.speedup >= CLOSE * found["flops_bound"]:
        return "FLOPs: the speedup is what the removed FLOPs allow"
    fixed = f"{100 * found['fixed_share']:.0f} % of the dense model's time is spent outside heads and neurons"
    if reached.speedup >= CLOSE * found["bound_with_fixed"]:
        return f"what is not pruned: {fixed}"
    return f"smaller matrix products are less efficient: else {found['bound_with_fixed']:.2f} were possible ({fixed})"


def effect_of_rounding(unrounded: nn.Module, rounded: nn.Module, plan: LatencyPlan, positions: int, device: str) -> dict[str, float]:
    """How many times as fast the rounded model is as the unrounded one, at the headline's point."""
    batch = inputs(rounded, plan.batch, min(plan.length, positions), device)
    return paired(lambda: unrounded(**batch), lambda: rounded(**batch), plan, device).rounded()


def native(pruned: nn.Module) -> nn.Module:
    """A copy whose linear layers were never sliced: made at their size, random weights."""
    built = copy.deepcopy(pruned)
    for name, linear in list(built.named_modules()):
        if type(linear) is nn.Linear:
            weight, biased = linear.weight, linear.bias is not None
            fresh = nn.Linear(linear.in_features, linear.out_features, biased, weight.device, weight.dtype)
            built.set_submodule(name, fresh.requires_grad_(False))
    return built


def skeleton(dense: PrunableModel, masks: Masks) -> nn.Module:
    """A model with the layers of the shrunk one, empty where they are empty, and next to nothing to compute in each."""
    arch, shape = dense.arch, dense.shape
    config: Any = copy.deepcopy(dense.module.config)
    narrow = {arch.hidden: WIDTH_OF_SKELETON * shape.heads, arch.heads: shape.heads, arch.neurons: WIDTH_OF_SKELETON, "vocab_size": 64}
    for name, value in narrow.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        module = dense.kind.from_config(config, attn_implementation=config._attn_implementation)
    neurons = np.repeat((masks.neurons != 0).any(1)[:, None], WIDTH_OF_SKELETON, 1).astype(float)
    return shrink(PrunableModel(module, arch, dense.kind), Masks((masks.heads != 0).astype(float), neurons))
