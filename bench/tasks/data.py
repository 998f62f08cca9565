"""Task data: where the splits of a task are found, and what is checked in them. Imports neither torch nor transformers."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bench import plugin
from bench.config import Task
from bench.dense.hub import fetch_split
from bench.errors import UserError, first_line, nearest
from bench.files import cache_folder, digest, place, place_of, whole_folder
from bench.tasks import KINDS, columns


@dataclass(frozen=True)
class Split:
    """One split in row order: `texts` holds one list per text column, `labels` int64 class indices or float64 numbers;
    for questions `answers` holds each one's gold answers and the characters of the context that they start at, and `cluster`
    the number of the article (column `title`) or, without that column, of the context that it belongs to."""

    sha256: str
    texts: list[list[str]]
    labels: NDArray[np.int64] | NDArray[np.float64] = field(default_factory=lambda: np.empty(0, np.int64))
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
    folder, source = _find(task.data or name, task)
    train, validation = (read_split(folder / f"{split}.parquet", task, split != "train") for split in ("train", task.evaluation))
    if train.sha256 == validation.sha256:
        raise UserError(f"task {name}: train.parquet and {task.evaluation}.parquet are the same file, nothing would be held out")
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
        lacking = [f"{split}.parquet" for split in ("train", task.evaluation) if not (folder / f"{split}.parquet").is_file()]
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
    here = f"$BENCH_DATA/{name}/train.parquet and {task.evaluation}.parquet ({'not found' if root else 'BENCH_DATA is not set'})"
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
        for split, theirs in (("train", task.hub.train), (task.evaluation, task.hub.validation)):  # type: ignore[union-attr]
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
    named, kind = f"{path.parent.name}/{path.name}", KINDS[task.kind]
    try:
        schema = pq.read_schema(path)
        wanted = [*task.columns, *kind.columns(task, schema.names)]
        for column in wanted:
            if column not in schema.names:
                raise UserError(f"{named} has no column {column!r}{nearest(column, schema.names)}")
            if schema.names.count(column) > 1:
                raise UserError(f"{named} has {schema.names.count(column)} columns named {column!r}, which of them is meant?")
        table = pq.read_table(path, columns=wanted)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{named} cannot be read as parquet, it is truncated or damaged: {first_line(error)}") from error
    if not table.num_rows:
        raise UserError(f"{named} holds no rows")
    texts = [columns.texts(table[column], f"{named}: column {column!r}") for column in task.columns]
    if not labels and task.label in wanted and table[task.label].null_count == table.num_rows:
        return Split(digest(path), texts, np.empty(0, np.int64))
    return Split(digest(path), texts, **kind.labels(table, task, texts, f"{named}: column {task.label!r}"))
