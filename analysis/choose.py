"""Which method and ratio reach a goal, by what was timed on one machine while nothing else ran there; else, what to run."""

import math
from dataclasses import dataclass

import pandas as pd

from analysis.frame import Frame
from analysis.statistics import over_examples
from analysis.tables import runs, timed
from bench.errors import UserError

HEADER = ["method", "ratio", "runs", "score", "± examples", "drop", "speedup", "reaches it"]
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
    """`rows` as in HEADER, best first; the commands that make the models of the rows; runs that would settle the rest."""

    rows: list[list[str]]
    commands: list[str]
    to_run: list[str]


def choose(frame: Frame, machine: str, task: str, model: str, goal: Goal) -> Answer:
    """What the records of a machine say.

    Raises:
        UserError: there is no scored record of the task and model at all.
    """
    found, own = (every[(every.task == task) & (every.model == model)] for every in (runs(frame), timed(frame, machine)))
    if found.empty:
        raise UserError(f"no scored record of task={task} model={model}; python -m bench task={task} model={model} makes one")
    own = own[own.speedup.notna()]
    rows = []
    for _, group in own.groupby(["method", "ratio", "sample"]):
        rows.append(_row(frame, group, goal))
    good = pd.DataFrame([row for row in rows if row["how"] != "no"])
    if len(good):
        good = good.sort_values(["score" if goal.speedup else "speedup", "how"], ascending=False)
    return Answer(
        [[str(row[name]) for name in ("method", "ratio", "runs", "text", "noise", "lost", "fast", "how")] for _, row in good.iterrows()],
        list(dict.fromkeys(good.command)) if len(good) else [],
        _to_run(found, own, task, model, goal),
    )


def _row(frame: Frame, group: pd.DataFrame, goal: Goal) -> dict[str, object]:
    newest = group.iloc[-1]
    score, dense, speedup = group.score.mean(), group.dense_score.mean(), group.speedup.mean()
    noise = over_examples(str(newest.score_name), frame.arrays(str(newest.name)))
    low, high = group.speedup_low.min(), group.speedup_high.max()
    if goal.speedup is not None:
        how = "surely" if low >= goal.speedup else "likely" if speedup >= goal.speedup else "no"
    else:
        lost, allowed = dense - score, goal.drop or 0.0
        how = "surely" if lost + noise <= allowed else "likely" if lost <= allowed else "no"
    return {
        "method": newest.method,
        "ratio": f"{newest.ratio:g}",
        "runs": len(group),
        "score": score,
        "speedup": speedup,
        "text": f"{score:.2f}",
        "noise": f"{noise:.2f}",
        "lost": f"{round(dense - score, 2) + 0.0:.2f}",
        "fast": f"{speedup:.2f} [{low:.2f}, {high:.2f}]",
        "how": how,
        "command": f"{newest.command} save=DIR",
    }


def _to_run(found: pd.DataFrame, timed: pd.DataFrame, task: str, model: str, goal: Goal) -> list[str]:
    """Commands whose records are missing: runs without a timing here that could reach the goal, and each method at the ratio at
    which its FLOPs would allow the speedup."""
    words = f"task={task} model={model}"
    if timed["sample"].nunique() == 1:  # what is compared has one calibration sample
        words += f" calibration.tokens={1000 * int(timed['sample'].iloc[0])}"
    typed = dict(zip(found.method, found.typed, strict=True))
    open_runs = found[~found.index.isin(timed.index)]
    measured = set(zip(timed.method, timed.ratio, strict=True))
    wanted = []
    for _, group in open_runs.groupby(["method", "ratio"]):
        method, ratio, lost = group.method.iloc[0], group.ratio.iloc[0], (group.dense_score - group.score).mean()
        promising = 1 / (1 - ratio) >= goal.speedup if goal.speedup else lost <= (goal.drop or 0.0)
        if promising and (method, ratio) not in measured:
            wanted.append(f"python -m bench {typed[method]} {words} ratio={ratio:g} latency=quick")
    if goal.speedup and goal.speedup > 1:
        ratio = min(0.95, math.ceil((1 - 1 / goal.speedup) / STEP) * STEP)
        for method in sorted(found.method.unique()):
            reached = timed[(timed.method == method) & (timed.ratio >= ratio - 1e-9)]
            command = f"python -m bench {typed[method]} {words} ratio={ratio:g} latency=quick"
            if reached.empty and command not in wanted:
                wanted.append(command)
    return wanted
