"""How records are kept: one folder a run, whole or absent, many processes writing at once."""

import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.config import LatencyPlan
from bench.errors import UserError
from bench.records.reading import was_capped
from bench.records.record import strict
from bench.records.schema import PLANS, Record, is_whole


@dataclass(frozen=True, eq=False)  # hashed by identity, so that its arrays can be kept
class Stored:
    """A record and the folder it lies in."""

    record: Record
    folder: Path

    def arrays(self) -> dict[str, Any]:
        """What `arrays.npz` holds: gold, logits_dense, logits_pruned, heads, neurons."""
        with np.load(self.folder / "arrays.npz", allow_pickle=False) as stored:
            return dict(stored)


@dataclass(frozen=True)
class Loaded:
    """The records under a folder: the newest complete one of every id, and how many others were passed over."""

    records: list[Stored]
    superseded: int
    broken: list[Path]


def write(root: Path, record: Record, arrays: dict[str, Any]) -> Path:
    """Write one record under `root/<machine>/`, under a temporary name first. Returns its folder.

    Raises:
        UserError: the folder cannot be written.
    """
    home = root / record["machine"]["name"]
    name = "{method[name]}-{task}-{model}-{unit}{ratio:g}-s{seed}-{id}".format(**record)
    half: Path | None = None
    try:
        home.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(prefix=".half-", dir=home))
        _write_synced(half / "arrays.npz", lambda file: np.savez_compressed(file, **arrays))
        text = json.dumps(strict(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        _write_synced(half / "record.json", lambda file: file.write(text.encode()))
        half.chmod(0o755)
        return _rename_to_next(half, home, name)
    except OSError as error:
        raise UserError(f"cannot write the record under {home}: {error.strerror}") from error
    finally:
        if half is not None:
            shutil.rmtree(half, ignore_errors=True)


def _write_synced(path: Path, fill: Any) -> None:
    with path.open("wb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())


def _rename_to_next(half: Path, home: Path, name: str) -> Path:
    """Rename to the first free number; a folder is never renamed onto another."""
    number = 1
    while True:
        target = home / f"{name}-{number}"
        if not target.exists():
            try:
                half.rename(target)
                return target
            except OSError:
                if not target.exists():
                    raise
        number += 1


def read(folder: Path) -> Stored:
    """One stored record.

    Raises:
        ValueError: it is not whole, or of another schema.
    """
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    if not is_whole(record) or not zipfile.is_zipfile(folder / "arrays.npz"):
        raise ValueError("not a whole record of this schema")
    return Stored(record, folder)


def load(root: Path) -> Loaded:
    """All records under a folder, oldest first; of the same id and machine the newest complete one wins, but not over one that came
    to the same and was timed more."""
    every: dict[tuple[str, str], list[Stored]] = {}
    broken: list[Path] = []
    count = 0
    for folder in _folders(root):
        try:
            stored = read(folder)
            key = (stored.record["machine"]["name"], stored.record["id"])
        except (OSError, ValueError, RecursionError):
            broken.append(folder)
            continue
        count += 1
        every.setdefault(key, []).append(stored)
    records = sorted(map(_winner, every.values()), key=lambda stored: stored.record["created"])
    return Loaded(records, count - len(records), broken)


def _winner(same: list[Stored]) -> Stored:
    """Of the records of one id and machine the one that stands for all."""
    newest = max(same, key=_rank)
    equal = [stored for stored in same if stored.record["status"] == "ok" and _outcome(stored) == _outcome(newest)]
    return max(equal, key=lambda stored: (PLANS.index(stored.record["latency"]["plan"]), _rank(stored)), default=newest)


def _outcome(stored: Stored) -> list[Any]:
    return [stored.record["pruned"][key] for key in ("score", "heads", "neurons")]


def _rank(stored: Stored) -> tuple[bool, str]:
    return stored.record["status"] != "failed", stored.record["created"]


def _folders(root: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "record.json" in files:
            folders.clear()
            yield Path(path)


def answer(root: Path, fresh: Record, threads: int, plan: LatencyPlan) -> tuple[Stored | None, str | None]:
    """The stored record that answers a repeated command, or the reason why one of the same id does not.

    `fresh` is the blank record of the run that is asked for, with its id and machine name.
    """
    candidates = []
    for folder in (root / fresh["machine"]["name"]).glob(f"*-{fresh['id']}-*"):
        if re.search(rf"-{fresh['id']}-\d+$", folder.name):
            try:
                candidates.append(read(folder))
            except (OSError, ValueError, RecursionError):
                continue
    reason = None
    for stored in sorted(candidates, key=_rank, reverse=True):
        reason = _differs(stored.record, fresh, threads, plan)
        if reason is None:
            return stored, None
    return None, reason


def _differs(stored: Record, fresh: Record, threads: int, plan: LatencyPlan) -> str | None:
    if stored["status"] == "failed":
        return "the stored run failed"
    if stored["software"]["method_source"] != fresh["software"]["method_source"]:
        return "the method's source has changed"
    if any(stored["data"][split] != fresh["data"][split] for split in ("train", "validation")):
        return "the data have changed"
    if stored["machine"]["threads"] != threads:
        return f"it ran on {stored['machine']['threads']} threads"
    if stored["status"] == "ok" and PLANS.index(stored["latency"]["plan"]) < PLANS.index(fresh["latency"]["plan"]):
        return f"it was timed with latency={stored['latency']['plan']}"
    if stored["status"] != "ok" or plan.plan == "none":
        return None
    capped = was_capped(stored, plan.length)
    timed = {tuple(point[key] for key in ("batch", "length", "dtype", "mode")) for point in stored["latency"]["grid"]}
    for point in plan.points(fresh["device"])[capped:]:
        if astuple(point) not in timed:
            return f"it was not timed at batch {point.batch}, length {point.length}, {point.dtype}, {point.mode}"
    return None
