"""Stored records as a table: `python -m bench.show results/`."""

import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import command
from bench.errors import UserError, nearest
from bench.records import store
from bench.records.reading import has_random_weights, is_quiet, last_line, passes
from bench.records.rows import Getter, Mean, Row, chosen, label, rows
from bench.records.schema import Record
from bench.records.store import Stored
from bench.records.table import DOUBT, Column, draw, note, number
from bench.records.verdict import LOWER_IS_BETTER

COLLAPSED, SUSPECT = " !", " *"  # behind a score
HELP = """\
python -m bench.show [--pruning | --speed] [--runs] [KEY=VALUE ...] [FOLDER ...]

Stored records as a table (default folder: results); a row is the mean over the seeds of one measurement.
  --runs      a row for every run
  --pruning   what pruning cost: passes, seconds by stage, peak memory
  --speed     what was timed, run by run: every point; the speedup that FLOPs and fixed work allow;
              native over shrunk
  task= model= method= ratio= machine=   only these; several values with commas between them"""
MEANS = """\
a row is the mean over its seeds, of timings over the undisturbed ones if there are any; seeds with the same masks and score count as
one run; --runs shows each"""
OPTIONS = ("--pruning", "--speed", "--runs")


def _marked(found: Mean, form: str, unit: str = "") -> str:
    return number(found.value, form, unit) + DOUBT * (found.value is not None and not found.trusted)


def _kept(record: Record) -> float | None:
    """The share that is left, of what the ratio counts."""
    pruned = record["pruned"]
    shares = {"params": pruned["params_kept"], "weights": pruned["weights_kept"]}
    if record["unit"] == "latency":
        return (record["latency"].get("table") or {}).get("kept")
    return shares.get(record["unit"]) or pruned["flops_kept"]  # type: ignore[no-any-return]


def _lost(record: Record) -> float | None:
    """Points of score, or of a perplexity by how many percent it grew."""
    dense, pruned = record["dense"]["score"], record["pruned"]["score"]
    if dense is None or pruned is None:
        return None
    return float(100 * (pruned / dense - 1) if _is_perplexity(record) else dense - pruned)


def _is_perplexity(record: Record) -> bool:
    return bool(LOWER_IS_BETTER & (record["dense"]["metrics"] or {}).keys())


def _headline(name: str) -> Getter:
    return lambda record: (record["latency"]["headline"] or {}).get(name)


def _in(section: str, name: str, scale: float = 1.0) -> Getter:
    def get(record: Record) -> float | None:
        value = record[section][name]
        return None if value is None else value * scale

    return get


def _score(row: Row) -> str:
    if row.record["status"] != "ok":
        return str(row.record["status"])
    return number(row.mean(_in("pruned", "score")), ".2f") + COLLAPSED * row.collapsed + SUSPECT * (row.suspect is not None)


def _points_lost(row: Row) -> str:
    lost = row.mean(_lost)
    return number(lost and round(lost, 2) + 0.0, ".2f", " %" * _is_perplexity(row.record))  # never -0.00


def _share_kept(row: Row) -> str:
    kept = row.mean(_kept)
    return number(kept and 100 * kept, ".1f", " %")


def _passes(row: Row) -> str:
    return _marked(row.measured(_in("prune", "passes"), lambda record: passes(record) is not None), ".2f")


def _interval(row: Row) -> str:
    """From the lowest to the highest bound of the runs that the speedup is a mean of."""
    points = [headline for entry in row.measuring(_headline("speedup")) if (headline := entry.record["latency"]["headline"])]
    return f"[{min(point['low'] for point in points):.2f}, {max(point['high'] for point in points):.2f}]" if points else "-"


def _ratio(record: Record) -> str:
    return f"{record['ratio']:g}" + ("" if record["unit"] == "flops" else f" {record['unit']}")


def _model(record: Record) -> str:
    return f"{record['model']}" + " (random)" * has_random_weights(record)


SUBJECT = [
    Column("method", lambda row: label(row.record), words=True),
    Column("task, model", lambda row: f"{row.record['task']} {_model(row.record)}", words=True),
    Column("ratio", lambda row: _ratio(row.record), words=True),
]
RUNS, SEED = Column("runs", lambda row: str(row.runs), drop=4), Column("seed", lambda row: str(row.record["seed"]), drop=4)
PRUNING = Column("pruning", lambda row: _marked(row.measured(_in("prune", "seconds")), ".1f", " s"), drop=5)
RESULTS = [
    Column("dense", lambda row: number(row.mean(_in("dense", "score")), ".2f"), drop=7),
    Column("pruned", _score),
    Column("lost", _points_lost),
    Column("kept", _share_kept, drop=1),
    PRUNING,
    Column("passes", _passes, drop=2),
    Column("speedup", lambda row: _marked(row.measured(_headline("speedup")), ".2f"), drop=6),
    Column("95 %", _interval, drop=3),
]


def _stages(row: Row) -> str:
    names = dict.fromkeys(name for entry in row.entries for name in entry.record["prune"]["stages"] or {})
    means = {name: row.mean(lambda record, name=name: (record["prune"]["stages"] or {}).get(name)) for name in names}  # type: ignore[misc]
    return ", ".join(f"{name} {number(seconds, '.1f')}" for name, seconds in means.items())


COSTS = [
    Column("tokens", lambda row: number(row.mean(_in("calibration", "tokens")), ".0f"), drop=1),
    Column("passes", _passes),
    Column("a pass", lambda row: _marked(row.measured(_in("prune", "pass_seconds")), ".1f", " s"), drop=2),
    PRUNING,
    Column("peak", lambda row: number(row.mean(_in("prune", "peak_bytes", 1e-6)), ".0f", " MB"), drop=6),
    Column("seconds by stage", _stages, drop=7, words=True),
]


@dataclass(frozen=True)
class Point:
    """One timing of a run; `limits`: of the headline what limits it (docs/protocol.md)."""

    record: Record
    timing: dict[str, Any]
    limits: dict[str, Any]

    @property
    def speedup(self) -> str:
        """With its interval, or why there is none."""
        found = self.timing
        if not found["speedup"]:
            return found.get("note") or "-"
        return f"{found['speedup']:.2f} [{found['low']:.2f}, {found['high']:.2f}]" + DOUBT * (not is_quiet(self.record))

    @property
    def launch_share(self) -> float | None:
        """In percent."""
        share = self.limits.get("launch_share")
        return share and 100 * share


def _points(record: Record) -> list[Point]:
    timing = record["latency"]
    return [Point(record, point, {} if i else timing.get("limits") or {}) for i, point in enumerate(timing["grid"])]


SPEEDS = [
    Column("method", lambda point: label(point.record), words=True),
    Column("model", lambda point: _model(point.record), words=True),
    Column("ratio", lambda point: _ratio(point.record), words=True),
    Column("batch", lambda point: f"{point.timing['batch']} x {point.timing['length']}"),
    Column("as", lambda point: f"{point.timing['dtype']} {point.timing['mode']}", words=True),
    Column("seed", lambda point: str(point.record["seed"]), drop=1),
    Column("dense", lambda point: number(point.timing["dense_ms"], ".1f", " ms"), drop=2),
    Column("pruned", lambda point: number(point.timing["pruned_ms"], ".1f", " ms"), drop=3),
    Column("speedup", lambda point: point.speedup),
    Column("FLOPs", lambda point: number(point.limits.get("flops_bound"), ".2f"), drop=4),
    Column("+ fixed", lambda point: number(point.limits.get("bound_with_fixed"), ".2f"), drop=7),
    Column("native", lambda point: number((point.limits.get("native_over_pruned") or {}).get("speedup"), ".2f"), drop=6),
    Column("launch", lambda point: number(point.launch_share, ".0f", " %"), drop=5),
]


def show(stored: list[Stored], single: bool = False) -> None:
    """Print records as the table of results; `single`: a row for each."""
    found = rows(stored, single)
    draw([*SUBJECT, SEED if single or len(stored) == 1 else RUNS, *RESULTS], found)
    if any(len(row.entries) > 1 for row in found):
        note(MEANS)
    if any(row.collapsed for row in found):
        note("! collapsed: no better than an answer that ignores the input, or one answer to more than 99 % of the examples")
    for reason in sorted({row.suspect for row in found if row.suspect}):
        note(f"* suspect, to be measured again: {reason}")
    if len(stored) == 1 and (limits := stored[0].record["latency"].get("limits")):
        note(f"what limits the speedup: {limits['verdict']}")
    reasons = {(entry.record["method"]["name"], last_line(entry.record["reason"])) for entry in stored if entry.record["reason"]}
    for name, reason in sorted(reasons):
        print(f"{name}: {reason}")


def load(folders: list[Path]) -> list[Stored]:
    """The records under some folders; what is passed over is told.

    Raises:
        UserError: a folder is missing, or there is no record.
    """
    found: list[Stored] = []
    broken: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder with records")
        loaded = store.load(folder)
        found += loaded.records
        broken += loaded.broken
        if loaded.superseded:
            print(f"{folder}: {loaded.superseded} older records of the same runs are not shown", file=sys.stderr)
    if broken:
        print(f"passed over, not whole records of this schema: {len(broken)}, such as {broken[0]}", file=sys.stderr)
    if not found:
        raise UserError("no record of this schema here" if broken else "no records here yet; python -m bench makes the first")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print the records under the folders that are named; 1 where something is wrong, told in a sentence."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    return command.run(_tables, HELP, arguments)


def _tables(words: list[str]) -> None:
    options = [word for word in words if word.startswith("-")]
    filters = [word for word in words if re.match(r"\w+=", word)]
    folders = [Path(word) for word in words if word not in options + filters]
    for option in options:
        if option not in OPTIONS:
            raise UserError(f"unknown option {option}{nearest(option, OPTIONS)}")
    found = load(folders or [Path(os.environ.get("BENCH_RESULTS", "results"))])
    found = chosen(found, dict(word.split("=", 1) for word in filters))
    for name in sorted({entry.record["machine"]["name"] for entry in found}):  # timings of different machines never share a table
        print(f"machine {name}")
        _table([entry for entry in found if entry.record["machine"]["name"] == name], options)


def _table(stored: list[Stored], options: list[str]) -> None:
    single = "--runs" in options
    if "--speed" in options:
        draw(SPEEDS, [point for row in rows(stored, single=True) for point in _points(row.record)])
    elif "--pruning" in options:
        draw([*SUBJECT, SEED if single else RUNS, *COSTS], rows(stored, single))
    else:
        show(stored, single)


if __name__ == "__main__":
    sys.exit(main())
