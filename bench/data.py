"""Task data: where the splits of a task are found, and what is checked in them. Imports neither torch nor transformers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bench import plugin
from bench.config import Task
from bench.errors import UserError, first_line, nearest
from bench.files import cache_folder, digest, place, place_of, whole_folder
from bench.hub import fetch_split


@dataclass(frozen=True)
class Split:
    """One split in row order: `texts` holds one list per text column, `labels` int64 class indices or float64 numbers;
    for questions `answers` holds each one's gold answers and the characters of the context that they start at, and `cluster`
    the number of the article (column `title`) or, without that column, of the context that it belongs to."""

    sha256: str
    texts: list[list[str]]
    labels: NDArray[np.int64] | NDArray[np.float64]
    answers: list[tuple[list[str], list[int]]] = field(default_factory=list)
    cluster: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.texts[0])

    @property
    def labelled(self) -> bool:
        """A train split may be without labels, for methods that need none: the column is there, and empty in every row."""
        return bool(len(self.labels) or self.answers)


@dataclass(frozen=True)
class TaskData:
    """The two splits that a run uses; `source` names where they came from, without any path."""

    source: str
    train: Split
    validation: Split


def load(name: str, task: Task) -> TaskData:
    """Find and read the splits: `$BENCH_DATA/<task>`, else built, else the hub.

    Raises:
        UserError: nothing is found, a file is damaged, or its columns, texts or labels are not the task's.
    """
    folder, source = _find(name, task)
    train, validation = (read_split(folder / f"{split}.parquet", task, split == "validation") for split in ("train", "validation"))
    if train.sha256 == validation.sha256:
        raise UserError(f"task {name}: train.parquet and validation.parquet are the same file, nothing would be held out")
    return TaskData(source, train, validation)


def check_evaluation(name: str, split: Split) -> None:
    """A score on the evaluation split can tell a good model from one that gives every example the same answer.

    Raises:
        UserError: it has one row, or the same label in every row.
    """
    same = len(set(split.labels.tolist())) == 1 if len(split.labels) else not any(texts for texts, _ in split.answers)
    if len(split) == 1 or same:
        what = "holds a single row" if len(split) == 1 else "has the same label in every row"
        raise UserError(f"task {name}: validation.parquet {what}: no score on it tells good models from others, put several labels there")


def _find(name: str, task: Task) -> tuple[Path, str]:
    root = place_of("BENCH_DATA")
    if root:
        folder = place(root / name, "BENCH_DATA=")
        lacking = [f"{split}.parquet" for split in ("train", "validation") if not (folder / f"{split}.parquet").is_file()]
        if folder.is_dir() and lacking:
            raise UserError(f"no data for task {name}: {folder} has no {' and no '.join(lacking)}")
        if not lacking:
            return folder, "local"
    if task.build:
        return _built(name, task.build)
    if task.hub:
        folder = cache_folder() / "data" / "-".join(filter(None, (task.hub.path.replace("/", "-"), task.hub.name)))
        if folder.exists() or _fetch(task, folder):
            return folder, f"hub:{task.hub.path}"
    here = f"$BENCH_DATA/{name}/train.parquet and validation.parquet ({'not found' if root else 'BENCH_DATA is not set'})"
    there = f"the hub's {task.hub.path} (not reachable)" if task.hub else "no hub data set is named"
    raise UserError(f"no data for task {name}: {here}; {there}")


def _built(name: str, target: str) -> tuple[Path, str]:
    build = plugin.load(target, f"task {name}")
    try:
        folder, source = build(cache_folder() / "data")
        return Path(folder), str(source)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"task {name}: {target} failed: {type(error).__name__}: {first_line(error)}") from error


def _fetch(task: Task, folder: Path) -> bool:
    assert task.hub is not None
    found: list[bool] = []

    def fill(half: Path) -> None:
        for split, theirs in (("train", task.hub.train), ("validation", task.hub.validation)):  # type: ignore[union-attr]
            found.append(fetch_split(task.hub, theirs, half / f"{split}.parquet"))  # type: ignore[arg-type]
            if not found[-1]:
                raise FileNotFoundError

    try:
        whole_folder(folder, fill)
    except FileNotFoundError:
        return False
    return True


def read_split(path: Path, task: Task, labels: bool = True) -> Split:
    """Read and check one parquet file. `labels`: it has to have them.

    Raises:
        UserError: as `load`; texts and labels are named with their row.
    """
    named = f"{path.parent.name}/{path.name}"
    try:
        schema = pq.read_schema(path)
        for column in (*task.columns, task.label):
            if column not in schema.names:
                raise UserError(f"{named} has no column {column!r}{nearest(column, schema.names)}")
            if schema.names.count(column) > 1:
                raise UserError(f"{named} has {schema.names.count(column)} columns named {column!r}, which of them is meant?")
        titled = task.windows is not None and "title" in schema.names and "title" not in task.columns
        table = pq.read_table(path, columns=[*task.columns, task.label, *(["title"] if titled else [])])
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{named} cannot be read as parquet, it is truncated or damaged: {first_line(error)}") from error
    if not table.num_rows:
        raise UserError(f"{named} holds no rows")
    texts = [_texts(table[column], f"{named}: column {column!r}") for column in task.columns]
    where = f"{named}: column {task.label!r}"
    if not labels and table[task.label].null_count == table.num_rows:
        return Split(digest(path), texts, np.empty(0, np.int64))
    if task.windows:
        answers = _answers(table[task.label], texts[1], task.windows.unanswerable, where)
        return Split(digest(path), texts, np.empty(0, np.int64), answers, _numbered(table["title"].to_pylist() if titled else texts[1]))
    return Split(digest(path), texts, _labels(table[task.label], task, where))


def _numbered(names: Sequence[str | None]) -> NDArray[np.int64]:
    """The number of each name, in the order in which they first appear."""
    numbers: dict[str | None, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def _texts(column: pa.ChunkedArray, where: str) -> list[str]:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise UserError(f"{where} holds {column.type}, not text")
    _no_nulls(column, where)
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 in row {_first_undecodable(column)}") from error


def _first_undecodable(column: pa.ChunkedArray) -> int:
    for row, value in enumerate(column):
        try:
            value.as_py()
        except UnicodeDecodeError:
            return row
    raise AssertionError("every row can be decoded")


def _no_nulls(column: pa.ChunkedArray, where: str) -> None:
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise UserError(f"{where} is empty in row {row}")


def _answers(column: pa.ChunkedArray, contexts: list[str], unanswerable: bool, where: str) -> list[tuple[list[str], list[int]]]:
    """Gold answers; every one stands in its context where it says."""
    _no_nulls(column, where)
    kind = column.type
    fields = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    if not (_lists(fields.get("text"), "text") and _lists(fields.get("answer_start"), "whole numbers")):
        raise UserError(f"{where} holds {kind}, answers are structures of text and answer_start, lists of texts and of whole numbers")
    result = []
    for row, (entry, context) in enumerate(zip(column.to_pylist(), contexts, strict=True)):
        if not (entry["text"] or unanswerable):
            raise UserError(f"{where}: row {row} has no answer, which only a task with windows.unanswerable=true allows")
        texts, starts = list(entry["text"] or ()), list(entry["answer_start"] or ())
        if len(texts) != len(starts) or not all(map(partial(_stands, context), texts, starts)):
            raise UserError(f"{where}: the answers in row {row} do not stand in the context where answer_start says")
        result.append((texts, starts))
    return result


def _lists(kind: pa.DataType | None, of: str) -> bool:
    """Whether a column's kind is lists of text, or of whole numbers; of null where all lists are empty."""
    if kind is None or not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    values = kind.value_type
    text = pa.types.is_string(values) or pa.types.is_large_string(values)
    return bool(pa.types.is_null(values) or (text if of == "text" else pa.types.is_integer(values)))


def _stands(context: str, text: str | None, at: int | None) -> bool:
    """Whether an answer stands in its context where it says."""
    return text is not None and at is not None and at >= 0 and context[at : at + len(text)] == text


def _labels(column: pa.ChunkedArray, task: Task, where: str) -> NDArray[np.int64] | NDArray[np.float64]:
    _no_nulls(column, where)
    kind = column.type
    numbers = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    if task.labels is None:
        if not (numbers or pa.types.is_floating(kind)):
            raise UserError(f"{where} holds {kind}, a regression needs numbers")
        values = column.to_numpy().astype(np.float64)
        return _all_rows(values, np.isfinite(values), where, "a finite number")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        names = np.array(_texts(column, where), dtype=object)
        index = {name: i for i, name in enumerate(task.labels)}
        indices = np.array([index.get(name, -1) for name in names], dtype=np.int64)
        _all_rows(names, indices >= 0, where, f"one of {', '.join(task.labels)}")
        return indices
    if not numbers:
        raise UserError(f"{where} holds {kind}, a classification needs class numbers or names")
    classes = column.to_numpy().astype(np.int64)
    inside = (classes >= 0) & (classes < len(task.labels))
    return _all_rows(classes, inside, where, f"a class number from 0 to {len(task.labels) - 1}")


def _all_rows(values: np.ndarray, good: NDArray[np.bool_], where: str, wanted: str) -> np.ndarray:
    if not good.all():
        row = int(np.argmin(good))
        raise UserError(f"{where} is {values[row]} in row {row}, expected {wanted}")
    return values
