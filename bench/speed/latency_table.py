"""What heads and neurons cost in seconds on this machine: measured once per machine and model shape, kept in the cache.

Kwon et al., NeurIPS 2022, section 4.1: latencies of a sub-layer by the number of its units, approximated by a constant up
to a threshold and a line beyond. The seconds of measuring are a property of the machine, not of a run: they stand in the
table (the record's `latency.table`), not in a run's pruning time.
"""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench import machine
from bench.budget import Budget, Price
from bench.config import Run
from bench.dense.finding import Checkpoint
from bench.files import cache_folder, keep_file
from bench.masks import Masks
from bench.stages import progress, say

if TYPE_CHECKING:
    from torch import nn

    from bench.model import PrunableModel

GRID = 12  # numbers of neurons that are timed
ROUNDS, SECONDS = 7, 90.0  # at least three rounds, then until the seconds are over
LAYERS = 2  # of the model that is timed


@dataclass(frozen=True)
class Table:
    """Measured seconds of one sub-layer by its number of units, [[units, seconds], ...] from 0 on; and what measuring took."""

    machine: str
    batch: int
    length: int
    heads: list[list[float]]
    neurons: list[list[float]]
    seconds: float

    @property
    def sha256(self) -> str:
        """Of what budgets are computed from."""
        return hashlib.sha256(json.dumps([self.heads, self.neurons]).encode()).hexdigest()

    def prices(self) -> tuple[Price, Price]:
        """Of heads and of neurons."""
        return tuple(fit(*_filled(points)) for points in (self.heads, self.neurons))  # type: ignore[return-value]

    def section(self) -> dict[str, Any]:
        """For the record's `latency.table`."""
        heads, neurons = self.prices()
        return {
            **{key: value for key, value in asdict(self).items() if key not in ("heads", "neurons")},
            "sha256": self.sha256,
            "heads": asdict(heads),
            "neurons": asdict(neurons),
        }


def _filled(points: list[list[float]]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Every number of units from 1 on, and its seconds, interpolated between numbers that were measured."""
    units, seconds = np.array([point for point in points if point[0] > 0]).T
    every = np.arange(1, int(units.max()) + 1)
    return every, np.interp(every, units, seconds)


def fit(units: NDArray[np.intp], seconds: NDArray[np.float64]) -> Price:
    """A constant up to `free` units, then a line of slope >= 0: the least squares over all thresholds."""
    best: tuple[float, Price] | None = None
    least = 1e-6 * max(float(seconds.max()), 1e-12) / len(units)  # a slope of nothing would make units free for ever
    for free in range(1, len(units) + 1):
        over = np.maximum(units - units[free - 1], 0).astype(float)
        spread = over - over.mean()
        each = float(spread @ seconds) / float(spread @ spread) if spread.any() else 0.0
        each = max(each, least)
        base = max(float((seconds - each * over).mean()), 0.0)
        error = float(((seconds - base - each * over) ** 2).sum())
        if best is None or error < best[0]:
            best = error, Price(each, base, free)
    assert best is not None
    return best[1]


def _path(run: Run, checkpoint: Checkpoint) -> Path:
    """Where the table of a run's machine and model shape is kept."""
    arch, plan = run.model.arch, run.keys.latency
    config = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))
    facts = {
        "version": 1,
        "shape": [arch.model_type, *(config.get(name) for name in (arch.heads, arch.neurons, arch.hidden))],
        "attention": run.model.attention,
        "batch": plan.batch,
        "length": plan.length,
        "threads": run.threads,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "latency" / f"{machine.machine_name(run.device)}-{key}.json"


def kept(run: Run, checkpoint: Checkpoint) -> Table | None:
    """The table of a run with unit=latency, if a whole one is kept; nothing heavy is imported."""
    if run.keys.unit != "latency":
        return None
    try:
        return Table(**json.loads(_path(run, checkpoint).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def find(run: Run, checkpoint: Checkpoint, dense: "PrunableModel", positions: int) -> Table | None:
    """The table of a run with unit=latency: kept, or measured now on the dense model's shape and kept."""
    table = kept(run, checkpoint)
    if table is None and run.keys.unit == "latency":
        table = measure(run, dense, positions)
        content = json.dumps(asdict(table)).encode()
        try:
            keep_file(_path(run, checkpoint), lambda file: file.write(content))
        except OSError as error:
            say(f"the latency table is not kept: {error}")
    return table


def budget(run: Run, dense: "PrunableModel", table: Table | None) -> Budget:
    """The budget of a run, in its unit."""
    if table is None:
        return Budget.of(dense, run.keys.unit, run.keys.ratio, run.task.length)
    return Budget.of_kinds(dense.shape, *table.prices(), run.keys.ratio, run.keys.unit)


def measure(run: Run, dense: "PrunableModel", positions: int) -> Table:
    """Time models of two layers with 0, 1, ... heads, and 0 ... all neurons, in alternation; medians of the rounds."""
    from bench.model import PrunableModel
    from bench.nn import shrink
    from bench.speed import timing

    say("measuring what heads and neurons cost on this machine, once")
    start = time.perf_counter()
    short = PrunableModel(_shortened(dense), dense.arch, dense.kind)
    plan, shape = run.keys.latency, short.shape
    length = min(plan.length, positions)
    batch = timing.inputs(short.module, plan.batch, length, run.device)
    grid = {0, 1, *(round(share) for share in np.linspace(0, shape.neurons, GRID)), *(shape.neurons // part for part in (64, 32, 16))}
    counts = [list(range(shape.heads + 1)), sorted(grid)]

    def timer(kind: int, count: int) -> Callable[[], float]:
        masks = Masks.ones(shape)
        (masks.neurons if kind else masks.heads)[:, count:] = 0.0
        small = shrink.shrink(short, masks)
        small.set_submodule(short.arch.embeddings, short.module.get_submodule(short.arch.embeddings))  # one table for all
        return timing.forward(small, batch, run.device)

    timers = [timer(kind, count) for kind in (0, 1) for count in counts[kind]]
    medians = _medians(timers)
    split = len(counts[0])
    parts = [(counts[0], medians[:split]), (counts[1], medians[split:])]
    heads, neurons = ([[count, (t - times[0]) / shape.layers] for count, t in zip(units, times, strict=True)] for units, times in parts)
    return Table(machine.machine_name(run.device), plan.batch, length, heads, neurons, time.perf_counter() - start)


def _shortened(dense: "PrunableModel") -> "nn.Module":
    """A copy of the model's module with its first two layers alone."""
    from torch import nn

    owner, _, last = dense.arch.layers.rpartition(".")
    holder, layers = dense.module.get_submodule(owner), dense.layers
    try:
        holder.add_module(last, nn.ModuleList(layers[:LAYERS]))
        return copy.deepcopy(dense.module)
    finally:
        holder.add_module(last, layers)


def _medians(timers: Sequence[Callable[[], float]]) -> list[float]:
    import torch

    start, times = time.perf_counter(), list[list[float]]()
    with torch.no_grad():
        for run_once in timers:
            run_once()  # warm-up of every shape
        for done in progress(range(ROUNDS), "latency table, rounds"):
            times.append([run_once() for run_once in timers])
            if done >= 2 and time.perf_counter() - start > SECONDS:
                break
    return [float(value) for value in np.median(times, axis=0)]
