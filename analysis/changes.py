"""What changed between two sets of records beyond noise."""

from dataclasses import dataclass

import pandas as pd

from analysis.frame import CELL, Frame
from analysis.statistics import paired
from analysis.tables import runs

HEADER = ["what", "task", "model", "ratio", "method", "seed", "A", "B", "difference"]
KEY = [*CELL, "seed"]
MUCH = 0.25  # relative change of passes that is told


@dataclass(frozen=True)
class Changes:
    """`rows` as in HEADER; how many runs are in both, and the keys of those in one alone."""

    rows: list[list[str]]
    both: int
    only_a: list[str]
    only_b: list[str]


def between(a: Frame, b: Frame) -> Changes:
    """Scores by a paired bootstrap over the same examples, speedups by intervals that do not meet (on the same machine and point),
    passes by a quarter or more."""
    first, second = (runs(frame).reset_index().set_index(KEY) for frame in (a, b))
    common = first.index.intersection(second.index)
    rows = []
    for key in common:
        rows += _of_run(a, b, key, first.loc[key], second.loc[key])
    return Changes(rows, len(common), _names(first.index.difference(second.index)), _names(second.index.difference(first.index)))


def _of_run(a: Frame, b: Frame, key: tuple[object, ...], one: pd.Series, other: pd.Series) -> list[list[str]]:
    task, model, _, ratio, method, seed = key
    place = [str(task), str(model), f"{ratio:g}", str(method), str(seed)]
    rows = []
    score = _score(a, b, one, other)
    if score:
        rows.append(["score", *place, *score])
    same = one.machine == other.machine and (one.timed_batch, one.timed_length) == (other.timed_batch, other.timed_length)
    timed = pd.notna(one.speedup) and pd.notna(other.speedup)
    if timed and same and (one.speedup_high < other.speedup_low or other.speedup_high < one.speedup_low):
        rows.append(["speedup", *place, f"{one.speedup:.2f}", f"{other.speedup:.2f}", f"{other.speedup - one.speedup:+.2f}"])
    if one.machine == other.machine and pd.notna(one.passes) and one.passes > 0 and abs(other.passes / one.passes - 1) >= MUCH:
        rows.append(["passes", *place, f"{one.passes:.2f}", f"{other.passes:.2f}", f"{100 * (other.passes / one.passes - 1):+.0f} %"])
    return rows


def _score(a: Frame, b: Frame, one: pd.Series, other: pd.Series) -> list[str] | None:
    """Both scores and the difference with its interval, where that leaves out zero; or that the examples are not the same."""
    try:
        found = paired(str(one.score_name), b.arrays(other.folder), a.arrays(one.folder))
    except ValueError:
        return [f"{one.score:.2f}", f"{other.score:.2f}", "other examples"]
    if found.low <= 0 <= found.high:
        return None
    return [f"{one.score:.2f}", f"{other.score:.2f}", f"{found.difference:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"]


def _names(keys: pd.Index) -> list[str]:
    return [f"{method} {task} {model} {ratio:g} seed {seed}, {sample:g} 000 tokens" for task, model, sample, ratio, method, seed in keys]
