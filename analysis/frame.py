"""All records of some folders as one typed table."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.statistics import auc, matthews
from bench.errors import UserError, nearest
from bench.records import store, verdict
from bench.records.reading import has_random_weights, is_quiet, method_label, method_words, passes
from bench.records.schema import Record
from bench.records.store import Stored

Getter = Callable[[Record], Any]
BOTH = (("dense", "_dense"), ("pruned", ""))  # models, and how their columns end
CELL = ["task", "model", "sample", "ratio", "method"]  # what the seeds of one measurement share


def _in(*path: str) -> Getter:
    def get(record: Record) -> Any:
        found: Any = record
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    return get


def score_name(record: Record) -> str | None:
    """Which of its metrics is the score; None where nothing was scored."""
    models = (record["pruned"], record["dense"])
    return next((name for model in models for name, value in (model["metrics"] or {}).items() if value == model["score"]), None)


COLUMNS: dict[str, tuple[str, Getter]] = {
    "id": ("string", _in("id")),
    "status": ("string", _in("status")),
    "reason": ("string", _in("reason")),
    "created": ("string", _in("created")),
    "command": ("string", _in("command")),
    "machine": ("string", _in("machine", "name")),
    "device": ("string", _in("device")),
    "quiet": ("boolean", is_quiet),
    "method": ("string", method_label),
    "typed": ("string", method_words),
    "task": ("string", _in("task")),
    "model": ("string", _in("model")),
    "checkpoint": ("string", _in("dense", "checkpoint", "sha256")),
    "validation": ("string", _in("data", "validation")),
    "random_weights": ("boolean", has_random_weights),
    "unit": ("string", _in("unit")),
    "ratio": ("Float64", _in("ratio")),
    "seed": ("Int64", _in("seed")),
    "precision": ("string", _in("precision")),
    "round_to": ("Int64", _in("round_to")),
    "sampler": ("string", _in("calibration", "sampler")),
    "tokens": ("Int64", _in("calibration", "tokens")),
    "score_name": ("string", score_name),
    "dense_score": ("Float64", _in("dense", "score")),
    "dense_expected": ("Float64", _in("dense", "expected")),
    "score": ("Float64", _in("pruned", "score")),
    **{f"{name}{end}": ("Float64", _in(model, "metrics", name)) for name in ("pearson", "spearman") for model, end in BOTH},
    "flops_kept": ("Float64", _in("pruned", "flops_kept")),
    "params_kept": ("Float64", _in("pruned", "params_kept")),
    "weights_kept": ("Float64", _in("pruned", "weights_kept")),
    "mask_bytes": ("Int64", _in("pruned", "mask_bytes")),
    "retrained": ("boolean", lambda record: record["recover"] is not None),
    "seconds": ("Float64", _in("prune", "seconds")),
    "passes": ("Float64", passes),
    "peak_bytes": ("Int64", _in("prune", "peak_bytes")),
    "speedup": ("Float64", _in("latency", "headline", "speedup")),
    "speedup_low": ("Float64", _in("latency", "headline", "low")),
    "speedup_high": ("Float64", _in("latency", "headline", "high")),
    "timed_batch": ("Int64", _in("latency", "headline", "batch")),
    "timed_length": ("Int64", _in("latency", "headline", "length")),
    "flops_bound": ("Float64", _in("latency", "limits", "flops_bound")),
    "suspect": ("string", verdict.suspect),
}


# What a record alone does not tell, from its arrays too; missing where nothing was scored.
JUDGED: dict[str, str] = {
    **dict.fromkeys(("trivial", "auc_dense", "auc", "matthews_dense", "matthews"), "Float64"),
    "collapsed": "boolean",
}


@dataclass(frozen=True, eq=False)  # hashed by identity, so that what is computed from it can be kept
class Frame:
    """`table` has one row for each record, columns as in COLUMNS and JUDGED, and is indexed by the record's folder (a string).

    `stored` gives by that index the record itself and its arrays; `problems` are sentences about what was passed over. `texts` are the
    records of language tasks, whose score is lower where it is better: they have a table of their own and are in no other.
    """

    table: pd.DataFrame
    stored: dict[str, Stored]
    problems: list[str]
    texts: dict[str, Stored] = field(default_factory=dict)

    def arrays(self, folder: str) -> dict[str, Any]:
        """The arrays of a record, read once."""
        return _arrays(self.stored[folder])


def load(folders: Iterable[Path]) -> Frame:
    """The newest whole record of every run under the folders."""
    stored: dict[str, Stored] = {}
    problems = []
    for folder in folders:
        found = store.load(folder)
        stored |= {entry.folder.as_posix(): entry for entry in found.records}
        problems += [f"passed over, not a whole record of this schema: {path.as_posix()}" for path in found.broken]
        if found.superseded:
            problems.append(f"{folder.as_posix()}: {found.superseded} older records of the same runs are not shown")
    texts = {folder: entry for folder, entry in stored.items() if _is_text(entry.record)}
    scored = {folder: entry for folder, entry in stored.items() if folder not in texts}
    return Frame(of(scored), scored, problems, texts)


def _is_text(record: Record) -> bool:
    return bool(verdict.LOWER_IS_BETTER & (record["dense"]["metrics"] or {}).keys())


def of(stored: dict[str, Stored]) -> pd.DataFrame:
    """The table of some records."""
    columns = {name: [get(entry.record) for entry in stored.values()] for name, (_, get) in COLUMNS.items()}
    table = pd.DataFrame(columns, index=pd.Index(list(stored), dtype="string", name="folder"))
    judged = pd.DataFrame([_judged(entry) for entry in stored.values()], columns=list(JUDGED), index=table.index)
    kinds = {name: kind for name, (kind, _) in COLUMNS.items()}
    return _told_apart(table.join(judged).astype(kinds | JUDGED))


def _judged(entry: Stored) -> dict[str, Any]:
    """What JUDGED names, of one record."""
    name = score_name(entry.record)
    if entry.record["status"] != "ok" or name is None:
        return {}
    arrays = _arrays(entry)
    return {
        "trivial": verdict.trivial(name, arrays),
        "collapsed": verdict.is_collapsed(None if entry.record["pruned"]["score"] is None else name, arrays),
        **{f"{measure.__name__}{end}": measure(arrays, which) for measure in (auc, matthews) for which, end in BOTH},
    }


@cache
def _arrays(entry: Stored) -> dict[str, Any]:
    return entry.arrays()


def _told_apart(table: pd.DataFrame) -> pd.DataFrame:
    """Where one name stands for several dense models of a task, or for several evaluation splits, the start of the content's hash
    is put behind it: their runs are no seeds of one another."""
    for name, content, within in (("task", "validation", ["task"]), ("model", "checkpoint", ["task", "model"])):
        known = table[~table.random_weights & table[content].notna()]
        folders = known.index[known.groupby(within)[content].transform("nunique") > 1]
        table.loc[folders, name] += "@" + table.loc[folders, content].str[:6]
    return table


def known_machine(name: str | None, known: Iterable[str]) -> str | None:
    """A machine that is named, if any.

    Raises:
        UserError: it has no record.
    """
    if name is not None and name not in (there := set(known)):
        raise UserError(f"no record of machine {name!r}{nearest(name, there)}")
    return name


def scored(table: pd.DataFrame) -> pd.DataFrame:
    """Of a table the runs that accuracies may be compared by: ok, real weights, float32, FLOPs removed, the protocol's sample.

    Column `sample` is added: the number of calibration tokens in thousands.
    """
    plain = (table.status == "ok") & ~table.random_weights & (table.precision == "fp32") & (table.unit == "flops")
    found = table[plain & table.round_to.isna() & (table.sampler == "tokens") & (table.method != "replay")]
    return found.assign(sample=(found.tokens / 1000).round())


def single_weights(table: pd.DataFrame) -> pd.DataFrame:
    """Of a table the newest run of each cell and seed that removed single weights: ok, real weights, in whatever precision it was
    trained."""
    found = table[(table.status == "ok") & ~table.random_weights & (table.unit == "weights") & table.weights_kept.notna()]
    return _last(found, ["task", "model", "ratio", "method", "seed"])


def newest(table: pd.DataFrame) -> pd.DataFrame:
    """The newest of the scored runs of each cell and seed."""
    return _last(scored(table), [*CELL, "seed"])


def _last(found: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    return found.sort_values("created").drop_duplicates(keys, keep="last").sort_values(keys)
