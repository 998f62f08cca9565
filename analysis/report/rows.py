"""The page's tables: the matrix, the leaderboard, published numbers, runs that do not compare, failures."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis import tables
from analysis.frame import CELL, Frame, scored
from analysis.report.runs import UNITS, Run
from analysis.report.text import NONE, shown, tokens, within
from bench.records.reading import last_line

WORST = 20.0  # points lost, from where on a colour is as strong as it gets


@dataclass(frozen=True)
class Cell:
    """What a table shows, and what it sorts by, which is None where there is nothing."""

    text: str
    value: str | float | None = None


@dataclass(frozen=True)
class Row:
    """A row of a table by its headings, and the runs that open below it; `wins`: the best of its cell beyond noise."""

    anchor: str
    cells: dict[str, Cell]
    runs: list[Run]
    wins: bool = False


@dataclass(frozen=True)
class Column:
    """A column of the matrix: what its cells share."""

    task: str
    model: str
    sample: str
    ratio: str


@dataclass(frozen=True)
class Loss:
    """A cell of the matrix; `strength` of its colour in percent."""

    anchor: str
    text: str
    lost: float
    interval: str
    strength: int
    tags: list[str]


@dataclass(frozen=True)
class Matrix:
    """Points lost, methods by columns; a method has None where it was not run."""

    columns: list[Column]
    losses: dict[str, list[Loss | None]]
    ablations: set[str]

    def choices(self, name: str) -> list[str]:
        """The values of a column's field, in order of their appearance."""
        return list(dict.fromkeys(getattr(column, name) for column in self.columns))


def matrix(cells: pd.DataFrame) -> Matrix:
    """All cells of the leaderboard as methods by columns."""
    order = cells.sort_values(["model", "ratio", "task", "sample"])
    losses = {(row.method, _column(row)): _loss(row) for _, row in order.iterrows()}
    columns = list(dict.fromkeys(column for _, column in losses))
    methods = sorted(set(cells.method))
    found = {method: [losses.get((method, column)) for column in columns] for method in methods}
    return Matrix(columns, found, set(cells.method[cells.ablation]))


def _column(row: Any) -> Column:
    return Column(row.task, row.model, tokens(row["sample"]), f"{row.ratio:g}")


def _loss(row: Any) -> Loss:
    interval = "" if pd.isna(row.lost_low) else f"{shown(row.lost_low, '.1f')} to {shown(row.lost_high, '.1f')}"
    strength = round(100 * min(max(row["lost"] / WORST, 0.0), 1.0)) if pd.notna(row["lost"]) else 100
    return Loss(row.anchor, shown(row["lost"], ".1f"), row["lost"], interval, strength, tags(row))


def tags(row: Any) -> list[str]:
    """What keeps a row from having a rank."""
    return ["collapsed"] * bool(row.collapsed) + ["suspect"] * bool(pd.notna(row.suspect))


def values(rows: list[Row], name: str) -> list[str]:
    """What a column holds, in its order."""
    found = {row.cells[name].value: row.cells[name].text for row in rows}
    return [found[value] for value in sorted(found)]  # type: ignore[type-var]


def leaderboard(frame: Frame, cells: pd.DataFrame, costs: pd.DataFrame, runs: dict[str, Run]) -> Iterator[Row]:
    """One row for each cell, with all its runs, whatever machine made them, and what it cost on one machine."""
    members = scored(frame.table).sort_values(["seed", "created"]).groupby(CELL).groups
    counted = set(tables.runs(frame).index)
    timed = {row.anchor: _timing(row) for row in costs.itertuples()}
    untimed = dict.fromkeys(("speedup", "passes", "seconds"), Cell(NONE))
    for _, row in cells.iterrows():
        own = [runs[folder] if folder in counted else _superseded(runs[folder]) for folder in members[tuple(row[name] for name in CELL)]]
        yield Row(row.anchor, _columns(row, timed.get(row.anchor, untimed)), own, bool(row.wins))


def _superseded(run: Run) -> Run:
    return replace(run, title=f"{run.title} (not in the score: a newer run of this seed is)")


def _columns(row: Any, cost: dict[str, Cell]) -> dict[str, Cell]:
    """A row of the leaderboard; a cell that has one run has no interval over seeds."""
    return {
        "method": Cell(row.method, row.method),
        "task": Cell(row.task, row.task),
        "model": Cell(row.model, row.model),
        "ratio": _cell(row.ratio, "g"),
        "rank": Cell(", ".join(tags(row))) if tags(row) else _cell(row["rank"], ".0f"),
        "score": _cell(row.score, ".2f"),
        "points lost": Cell(within(row["lost"], row.lost_low, row.lost_high, ".2f"), _value(row["lost"])),
        **cost,
        "AUC rank": _cell(row.rank_auc, ".0f"),
        "AUC (dense)": _beside_dense(row.auc, row.auc_dense),
        "Matthews (dense)": _beside_dense(row.matthews, row.matthews_dense),
        "runs": _cell(row.runs, "d"),
        "± seeds": _cell(row.seeds, ".2f") if pd.notna(row.seeds) else Cell("1 run"),
        "± examples": _cell(row.examples, ".2f"),
        "dense": _cell(row.dense, ".2f"),
        "trivial": _cell(row.trivial, ".2f"),
        "tokens": Cell(tokens(row["sample"]), row["sample"]),
    }


def _timing(row: Any) -> dict[str, Cell]:
    return {
        "speedup": Cell(within(row.speedup, row.speedup_low, row.speedup_high, ".2f"), _value(row.speedup)),
        "passes": _cell(row.passes, ".2f"),
        "seconds": _cell(row.seconds, ".1f"),
    }


def timings(costs: pd.DataFrame) -> dict[str, dict[str, dict[str, list[Any]]]]:
    """By machine and by row of the leaderboard, what its cells of timings hold."""
    found: dict[str, dict[str, dict[str, list[Any]]]] = {}
    for row in costs.itertuples():
        found.setdefault(str(row.machine), {})[str(row.anchor)] = {name: [cell.text, cell.value] for name, cell in _timing(row).items()}
    return found


def _beside_dense(value: Any, dense: Any) -> Cell:
    return Cell(NONE) if pd.isna(value) else Cell(f"{shown(value, '.1f')} ({shown(dense, '.1f')})", value)


def _cell(value: Any, form: str) -> Cell:
    return Cell(shown(value, form), _value(value))


def _value(value: Any) -> Any:
    return None if pd.isna(value) else value


def published(position: Any, row: Any) -> Row:
    """One of our cells beside one published number."""
    names = {"task": row.task, "method": row.method, "our model": row.model_ours, "paper": f"{row.paper} {row.variant or ''}".strip()}
    numbers = {"ratio": (row.ratio, "g"), "ours": (row.ours, ".2f"), "theirs": (row.theirs, ".2f")}
    numbers |= {"we lose": (row.drop_ours, ".2f"), "they lose": (row.drop_theirs, ".2f")}
    words = {name: Cell(text, text) for name, text in names.items()}
    differs = Cell(row.why or NONE, row.why)
    return Row(f"published-{position}", words | {name: _cell(*one) for name, one in numbers.items()} | {"what differs": differs}, [])


def others(frame: Frame, runs: dict[str, Run], leaderboard: list[Row]) -> list[Row]:
    """Runs that went well and are not in the leaderboard, and why."""
    there = {run.anchor for row in leaderboard for run in row.runs}
    ok = frame.table.index[frame.table.status == "ok"]
    return [_other(frame.table.loc[folder], runs[folder]) for folder in ok if runs[folder].anchor not in there]


def _other(row: Any, run: Run) -> Row:
    cells = {
        "method": Cell(row.method, row.method),
        "task": Cell(row.task, row.task),
        "model": Cell(row.model, row.model),
        "not comparable": Cell(apart(row), apart(row)),
        "ratio": _cell(row.ratio, "g"),
        "seed": _cell(row.seed, "d"),
        "score": _cell(row.score, ".2f"),
        "speedup": _cell(row.speedup if row.quiet else None, ".2f"),
        "machine": Cell(row.machine, row.machine),
    }
    return Row(f"other-{run.anchor}", cells, [run])


def apart(row: Any) -> str:
    """What keeps a run from comparing with the leaderboard's."""
    reasons = {
        "random weights: the score means nothing": row.random_weights,
        f"computed in {row.precision}, the leaderboard in fp32": row.precision != "fp32",
        f"the ratio is of {UNITS.get(row.unit, row.unit)}, the leaderboard's of FLOPs": row.unit != "flops",
        f"units rounded to a multiple of {row.round_to}": pd.notna(row.round_to),
        f"calibration examples drawn by {row['sampler']}, the leaderboard's by tokens": row["sampler"] != "tokens",
        "the masks of another run, replayed": row.method == "replay",
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds) or "the number of calibration tokens is not known"


def failures(frame: Frame, runs: dict[str, Run]) -> list[Row]:
    """Runs that failed or were skipped, and why."""
    failed = frame.table[frame.table.status != "ok"]
    return [_failure(row, runs[str(folder)]) for folder, row in failed.iterrows()]


def _failure(row: Any, run: Run) -> Row:
    cells = {name: Cell(str(row[name]), row[name]) for name in ("status", "method", "task", "model")}
    cells |= {"ratio": _cell(row.ratio, "g"), "seed": _cell(row.seed, "d"), "machine": Cell(row.machine, row.machine)}
    reason = last_line(run.reason) or "no reason recorded"
    return Row(f"failed-{run.anchor}", {**cells, "reason": Cell(reason, reason)}, [run])
