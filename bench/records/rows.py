"""Stored runs as rows of a table: the seeds of one measurement are one row."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from statistics import mean
from typing import Any

from bench.errors import UserError, nearest
from bench.records import verdict
from bench.records.reading import has_random_weights, is_quiet, method_label
from bench.records.schema import Record
from bench.records.store import Stored

Getter = Callable[[Record], float | None]
Check = Callable[[Record], bool]
FILTERS: dict[str, Callable[[Record], str]] = {
    "task": itemgetter("task"),
    "model": itemgetter("model"),
    "method": lambda record: record["method"]["name"],
    "ratio": lambda record: f"{record['ratio']:g}",
    "machine": lambda record: record["machine"]["name"],
}


@dataclass(frozen=True)
class Mean:
    """A mean, and whether it can be trusted; None where nothing was measured."""

    value: float | None
    trusted: bool


@dataclass(frozen=True, eq=False)
class Row:
    """Runs that differ in nothing but the seed, or a single run."""

    entries: list[Stored]

    @property
    def record(self) -> Record:
        """The first one's: what it was asked for is the same for all."""
        return self.entries[0].record

    @cached_property
    def runs(self) -> int:
        """How many; one of a deterministic method, whose masks and score are the same for every seed."""
        return 1 if _all_same(self.entries) else len(self.entries)

    def mean(self, get: Getter) -> float | None:
        """Over the runs that have the value."""
        values = [value for entry in self.entries if (value := get(entry.record)) is not None]
        return mean(values) if values else None

    def measuring(self, get: Getter, trusted: Check = is_quiet) -> list[Stored]:
        """Of the runs that have the value those to be trusted; all where there are none."""
        found = [entry for entry in self.entries if get(entry.record) is not None]
        return [entry for entry in found if trusted(entry.record)] or found

    def measured(self, get: Getter, trusted: Check = is_quiet) -> Mean:
        """The mean over these."""
        found = self.measuring(get, trusted)
        return Mean(Row(found).mean(get), all(trusted(entry.record) for entry in found))

    @cached_property
    def collapsed(self) -> bool:
        """Whether at least half of the scored runs are no better than a trivial answer."""
        found = [verdict.is_collapsed(score, entry.arrays()) for entry in self.entries for score in _judged(entry.record)]
        return bool(found) and mean(found) >= 0.5

    @property
    def suspect(self) -> str | None:
        """What is wrong with one of the runs, if anything."""
        return next(filter(None, (verdict.suspect(entry.record) for entry in self.entries)), None)


def rows(stored: Iterable[Stored], single: bool = False) -> list[Row]:
    """The rows in order, random weights last; `single`: one for each run."""
    groups: dict[Any, list[Stored]] = {}
    for entry in sorted(stored, key=_order):
        groups.setdefault(entry if single else _measurement(entry.record), []).append(entry)
    return [Row(group) for group in groups.values()]


def chosen(found: list[Stored], filters: dict[str, str]) -> list[Stored]:
    """The records with these values.

    Raises:
        UserError: the key is unknown, or no record has the value beside the values before it.
    """
    before = ""
    for key, text in filters.items():
        if key not in FILTERS:
            raise UserError(f"unknown key {key!r}{nearest(key, FILTERS)}")
        there = {FILTERS[key](entry.record) for entry in found}
        values = [_plain(value) for value in text.split(",")]
        for value in values:
            if value not in there:
                raise UserError(f"no record of {before}{key}={value}{nearest(value, there)}")
        found = [entry for entry in found if FILTERS[key](entry.record) in values]
        before += f"{key}={text} "
    return found


def _plain(value: str) -> str:
    """A number as a ratio is written."""
    try:
        return f"{float(value):g}"
    except ValueError:
        return value


def label(record: Record) -> str:
    """The method for people, and whatever else was set that changes what is pruned: no two rows look the same."""
    calibration = re.findall(r"calibration\.(\S+=[^\s']+)", record.get("command") or "")
    rounded = [f"round_to={record['round_to']}"] if record.get("round_to") else []
    precision = [] if record["precision"] == "fp32" else [record["precision"]]
    return " ".join([method_label(record), *precision, *sorted(calibration), *rounded])


def _measurement(record: Record) -> str:
    """What the seeds of one measurement share. Samples of so many tokens differ by a few."""
    keys = ("status", "method", "task", "model", "unit", "ratio", "precision", "attention", "recover", "protocol")
    plan, checkpoint = record["calibration"], record["dense"]["checkpoint"] or {}
    sample = [plan["sampler"], plan["batch"], round((plan["tokens"] or 0) / 1000)]
    if "calibration.examples=" in (record.get("command") or ""):
        sample[-1] = plan["examples"]
    shared = [record["machine"]["name"], record.get("round_to"), checkpoint.get("sha256"), record["data"]["validation"], label(record)]
    return json.dumps([*(record.get(key) for key in keys), sample, shared], sort_keys=True)


def _order(entry: Stored) -> tuple[Any, ...]:
    record = entry.record
    what = [record[key] for key in ("task", "model", "unit", "ratio")]
    return has_random_weights(record), *what, label(record), record["seed"]


def _judged(record: Record) -> list[str | None]:
    """The score that a run is judged by; none where nothing was scored."""
    pruned, dense = record["pruned"], record["dense"]
    if record["status"] != "ok" or dense["score"] is None:
        return []
    if pruned["score"] is None:
        return [None]
    return [name for name, value in (pruned["metrics"] or {}).items() if value == pruned["score"]][:1]


def _all_same(entries: list[Stored]) -> bool:
    """Whether several runs came to the same score and masks."""
    if len({entry.record["pruned"]["score"] for entry in entries}) > 1 or entries[0].record["status"] != "ok":
        return len(entries) == 1
    return len(entries) == 1 or len({_masks(entry) for entry in entries}) == 1


def _masks(entry: Stored) -> tuple[str | None, bytes, bytes]:
    arrays = entry.arrays()
    return entry.record["pruned"].get("mask_sha256"), arrays["heads"].tobytes(), arrays["neurons"].tobytes()
