"""A grid of conf/sweep as one table: what was measured, how sure it is, what is missing."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

from analysis.frame import score_name
from analysis.statistics import over_examples, over_seeds
from bench.config import Recover
from bench.records.grids import Cell, cells
from bench.records.reading import has_random_weights, is_quiet, method_label, passes, set_fields
from bench.records.schema import Record
from bench.records.store import Stored
from bench.records.table import number

HEADER = ["task", "ratio", "method", "runs", "dense", "pruned", "± seeds", "± examples", "passes", "pruning", "speedup"]
DISPENSABLE = ["pruning", "dense", "speedup", "± examples"]
KEYS = ("task", "ratio", "row")  # of a row, which is named after its method
TOKENS = 100_000  # of a cell that names none
SLACK = 1000  # tokens by which a sample may pass what was asked for


def table(name: str, stored: Sequence[Stored], machine: str, changes: Cell | None = None) -> list[list[str]]:
    """One row for each (task, ratio, method) of a grid in its order; a cell without a record shows as missing.

    `runs` counts the seeds that are there, of those wanted. `± seeds` is half of the 95 % t interval over seeds,
    `± examples` the mean of the records' half bootstrap intervals over the evaluation examples. Scores come from any
    machine's records, what was timed only from `machine`'s, and seconds and speedups only from those made while it was quiet;
    where that is not all of the row's runs, their number follows in brackets.
    `changes` are set in every cell, as in a grid that was run with them.
    """
    return [
        [task, f"{ratio:g}", method, *_measured(found, wanted, machine)]
        for (task, ratio, method), found, wanted in _rows(name, stored, machine, changes or {})
    ]


def missing(name: str, stored: Sequence[Stored]) -> list[str]:
    """The rows of a grid without any record, in words."""
    return [f"{name}: {task} {ratio:g} {method}" for (task, ratio, method), found, _ in _rows(name, stored, "", {}) if not found]


def _rows(name: str, stored: Sequence[Stored], machine: str, changes: Cell) -> Iterator[tuple[tuple[Any, ...], list[Stored], int]]:
    """A grid's (task, ratio, method) in its order, with the records of the cells there and how many cells there are."""
    wanted = [{**cell, **changes} for cell in cells(name)]
    wanted = [cell | {"row": _row_name(cell, wanted[0]["model"])} for cell in wanted]
    places: dict[tuple[Any, ...], int] = {}  # where the grid first names a task, a ratio of it, a method there
    for i, cell in enumerate(wanted):
        for depth in range(1, len(KEYS) + 1):
            places.setdefault(_key(cell, depth), i)
    wanted.sort(key=lambda cell: [places[_key(cell, depth)] for depth in range(1, len(KEYS) + 1)])
    for key, group in itertools.groupby(wanted, key=lambda cell: _key(cell, len(KEYS))):
        members = list(group)
        yield key, [entry for cell in members if (entry := _record_of(cell, stored, machine))], len(members)


def _recover(cell: Cell) -> dict[str, Any] | None:
    """How a cell retrains, as its record says it."""
    asked = asdict(Recover()) | {key.removeprefix("recover."): value for key, value in cell.items() if key.startswith("recover.")}
    return asked if asked["epochs"] else None


def _row_name(cell: Cell, usual: str) -> str:
    """The method, how it retrains, and the model where it is not the grid's usual one."""
    label = method_label({"method": {"name": cell["method"]}, "recover": _recover(cell)})
    return label if cell["model"] == usual else f"{label} ({cell['model']})"


def most_timed(stored: Sequence[Stored]) -> str:
    """The machine with the most records that were made while it was quiet."""
    quiet = Counter(entry.record["machine"]["name"] for entry in stored if is_quiet(entry.record))
    return quiet.most_common(1)[0][0] if quiet else "none yet"


def _key(cell: Cell, depth: int) -> tuple[Any, ...]:
    return tuple(cell[key] for key in KEYS[:depth])


def _record_of(cell: Cell, stored: Sequence[Stored], machine: str) -> Stored | None:
    """The machine's own record before another's."""
    asked = {"unit": "flops", "precision": "fp32"} | cell
    fields = [(key, asked[key]) for key in ("task", "ratio", "seed", "model", "unit", "precision") if key in asked]
    same = [entry for entry in stored if all(entry.record[key] == value for key, value in fields)]
    answers = [entry for entry in same if _answers(entry.record, cell)]
    return min(answers, key=lambda entry: entry.record["machine"]["name"] != machine, default=None)


def _answers(record: Record, cell: Cell) -> bool:
    """Whether a record of a cell's task, model, ratio, seed, unit and precision is the cell's in all else, too."""
    tokens: int | None = record["calibration"]["tokens"]
    asked = cell.get("calibration.tokens", TOKENS)
    same = record["method"]["name"] == cell["method"] and record["recover"] == _recover(cell) and not set_fields(record)
    plain = record["calibration"]["sampler"] == "tokens" and not has_random_weights(record) and not record.get("round_to")
    return plain and same and record["status"] != "failed" and (tokens is None or 0 <= tokens - asked < SLACK)


def _measured(found: list[Stored], wanted: int, machine: str) -> list[str]:
    ok = [entry for entry in found if entry.record["status"] == "ok"]
    runs = f"{len(ok)} of {wanted}"
    if not ok:
        return [runs, *["skipped" if found else "missing"], *["-"] * 6]
    records: list[Any] = [entry.record for entry in ok]
    examples = [over_examples(str(score_name(entry.record)), entry.arrays()) for entry in ok]
    timed = [record for record in records if record["machine"]["name"] == machine]
    quiet = [record["prune"]["seconds"] for record in timed if is_quiet(record)]
    costs = [cost for cost in map(passes, timed) if cost is not None]
    speedups = [record["latency"]["headline"]["speedup"] for record in timed if record["latency"]["headline"] and is_quiet(record)]
    return [
        runs,
        number(mean(record["dense"]["score"] for record in records), ".2f"),
        number(mean(record["pruned"]["score"] for record in records), ".2f"),
        number(over_seeds([record["pruned"]["score"] for record in records]), ".2f"),
        number(mean(examples), ".2f"),
        _mean(costs, len(ok), ".2f"),
        _mean(quiet, len(ok), ".1f", " s"),
        _mean(speedups, len(ok), ".2f"),
    ]


def _mean(values: list[float], runs: int, form: str, unit: str = "") -> str:
    """A mean, and of how many where that is not all."""
    return number(mean(values) if values else None, form, unit) + f" ({len(values)})" * (0 < len(values) < runs)
