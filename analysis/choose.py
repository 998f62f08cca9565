"""Which method and ratio reach a goal: scores of all records, speedups of one machine's quiet ones; else, what to run."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis.frame import CELL, Frame
from analysis.tables import accuracy, runs, timed
from bench.errors import UserError, nearest
from bench.files import CONF

HEADER = ["method", "ratio", "tokens", "runs", "score", "lost", "speedup", "reaches it"]
STEP = 0.05  # of ratios that are proposed


@dataclass(frozen=True)
class Goal:
    """At least so many times as fast, or at most so many points below the dense score; one of the two is None."""

    speedup: float | None
    drop: float | None

    def __post_init__(self) -> None:
        if (self.speedup is None) == (self.drop is None):
            raise UserError("choose speedup=S (times as fast) or drop=D (points below the dense score), one of the two")
        if self.speedup is not None and not 0 < self.speedup < math.inf:
            raise UserError(f"speedup={self.speedup:g}: times as fast, more than 0")
        if self.drop is not None and not 0 <= self.drop <= 100:
            raise UserError(f"drop={self.drop:g}: points below the dense score, 0 to 100")


@dataclass(frozen=True)
class Answer:
    """`rows` as in HEADER, best first, and the points `least` lost among them; the command that makes the model of the first; runs
    that would settle the rest; the machine of the speedups, None where none was timed."""

    rows: list[list[str]]
    least: float | None
    command: str | None
    to_run: list[str]
    machine: str | None


def choose(frame: Frame, machine: str, task: str, model: str, goal: Goal) -> Answer:
    """What the records say of a task and model; their timings are those of `machine` or, where it has none, of the one with the most.

    Models that have collapsed are never offered, and suspect ones stand last.

    Raises:
        UserError: there is no scored record of the task and model at all.
    """
    _check_known(frame, task, model)
    here = replace(frame, table=frame.table[(frame.table.task == task) & (frame.table.model == model)])
    if runs(here).empty:
        raise UserError(f"no scored record of task={task} model={model}; python -m bench task={task} model={model} makes one")
    where = _timed_most(here, machine)
    cells = accuracy(here).merge(_speedups(here, where), on=CELL, how="left")
    sound = cells[~cells.collapsed]
    sound = sound.assign(how=[_reaches(cell, goal) for cell in sound.to_dict("records")])
    order = ["trusted", "score"] if goal.speedup else ["trusted", "ratio", "score"]
    good = sound.assign(trusted=sound.suspect.isna())[sound.how != "no"].sort_values(order, ascending=False)
    return Answer(
        [_row(cell) for cell in good.to_dict("records")],
        float(good.lost.min()) if len(good) else None,
        _command(here, good.iloc[0]) if len(good) else None,
        _to_run(here, cells, task, model, goal),
        where,
    )


def _check_known(frame: Frame, task: str, model: str) -> None:
    """A name has a record or, for those yet to be measured, a file in conf."""
    for key, name in (("task", task), ("model", model)):
        known = set(frame.table[key].dropna()) | {path.stem for path in (CONF / key).glob("*.yaml")}
        if name not in known:
            raise UserError(f"unknown {key} {name!r}{nearest(name, known)}")


def _timed_most(frame: Frame, machine: str) -> str | None:
    """The machine if it has a timing, else the one with the most, if any has."""
    found = runs(frame)
    counts = {name: int(timed(frame, name).speedup.count()) for name in (machine, *sorted(found.machine.unique()))}
    counted = machine if counts[machine] else max(counts, key=lambda name: counts[name])
    return counted if counts[counted] else None


def _speedups(frame: Frame, machine: str | None) -> pd.DataFrame:
    """Of every cell that was timed the mean speedup and the widest interval."""
    found = timed(frame, machine) if machine else runs(frame)[:0]
    found = found[found.speedup.notna()]
    means = {"speedup": ("speedup", "mean"), "speedup_low": ("speedup_low", "min"), "speedup_high": ("speedup_high", "max")}
    return found.groupby(CELL).agg(**means).reset_index()


def _reaches(cell: Any, goal: Goal) -> str:
    """surely: with the whole interval; likely: by the mean; "not timed": its FLOPs would allow the speedup."""
    if goal.drop is not None:
        return "surely" if cell["lost_high"] <= goal.drop else "likely" if cell["lost"] <= goal.drop else "no"
    assert goal.speedup is not None
    if pd.isna(cell["speedup"]):
        return "not timed" if _bound(cell["ratio"]) >= goal.speedup else "no"
    return "surely" if cell["speedup_low"] >= goal.speedup else "likely" if cell["speedup"] >= goal.speedup else "no"


def _bound(ratio: float) -> float:
    """The speedup that the removed FLOPs allow; a ratio of exactly the goal allows it."""
    return 1 / (1 - ratio) + 1e-9


def _row(cell: Any) -> list[str]:
    timing = "?" if pd.isna(cell["speedup"]) else "{speedup:.2f} [{speedup_low:.2f}, {speedup_high:.2f}]".format(**cell)
    texts = ["{method}", "{ratio:g}", "{sample:.0f} 000", "{runs}", "{score:.2f}", "{lost:z.1f} [{lost_low:z.1f}, {lost_high:z.1f}]"]
    suspect = ", suspect: measure it again" * pd.notna(cell["suspect"])
    return [*(text.format(**cell) for text in texts), timing, cell["how"] + suspect]


def _command(frame: Frame, cell: pd.Series) -> str:
    found = runs(frame)
    return f"{found[(found[CELL] == cell[CELL]).all(axis=1)].command.iloc[-1]} save=DIR"


def _to_run(frame: Frame, cells: pd.DataFrame, task: str, model: str, goal: Goal) -> list[str]:
    """Commands whose records are missing: cells without a timing that could reach the speedup, and each method at the ratio at which
    its FLOPs would allow it, where it has no record there and has not collapsed at less."""
    if goal.speedup is None:
        return []
    typed = dict(zip(runs(frame).method, runs(frame).typed, strict=True))
    sample: Any = cells["sample"].value_counts().idxmax()  # what is compared has one calibration sample
    here, needed = cells[cells["sample"] == sample], max(0.0, 1 - 1 / goal.speedup)
    lowest = min(0.95, math.ceil(needed / STEP - 1e-9) * STEP)
    wanted = []
    for method, own in here.groupby("method"):
        enough = own.ratio >= needed - 1e-9
        ratios = [float(ratio) for ratio in own[enough & ~own.collapsed & own.speedup.isna()].ratio]
        if not enough.any() and not (own.collapsed & (own.ratio <= lowest)).any() and lowest:
            ratios.append(lowest)
        words = f"{typed[method]} task={task} model={model} calibration.tokens={1000 * int(sample)}"
        wanted += [f"python -m bench {words} ratio={ratio:g} latency=quick" for ratio in ratios]
    return wanted
