"""What a multirun needs beside its cells: notes of how each ended, and one table over all of them at the end."""

import json
import math
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from bench import show
from bench.cell import Outcome
from bench.records import store
from bench.records.reading import last_line
from bench.stages import say

_running: "Sweep | None" = None


def announce(job: int, overrides: list[str]) -> None:
    """Say which cell begins, where several run in this process."""
    if _running and _running.cells > 1:
        say(f"cell {job + 1} of {_running.cells}: {_name(overrides)}")


def _name(overrides: list[str]) -> str:
    return " ".join(word.lstrip("+") for word in overrides)


def note(folder: str, job: int, overrides: list[str], outcome: Outcome) -> None:
    """Leave word of a cell's end in the multirun's folder, which launchers share between their processes."""
    facts = {"name": _name(overrides), "status": outcome.status, "folder": str(outcome.folder or ""), "reason": outcome.reason}
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / f"cell-{job:06d}.json").write_text(json.dumps(facts), encoding="utf-8")


class Sweep(Callback):
    """Hydra's callback: remembers the folder of a multirun and what lay in it before; `finish` prints the table.

    The folder may be one that the user named, so only what the multirun left there is read and removed.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Remember where the cells leave word."""
        global _running
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        typed: list[str] = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # type: ignore[assignment]
        words = parser.parse_overrides(typed)
        self.cells = math.prod(sum(1 for _ in word.sweep_iterator()) for word in words if word.is_discrete_sweep())
        self.folder = Path(config.hydra.sweep.dir)
        self.was_there = self.folder.exists()
        self.before = {path: path.stat().st_mtime_ns for path in self.folder.glob("cell-*.json")}
        _running = self

    def notes(self) -> dict[Path, dict[str, Any]]:
        """The notes of this multirun's cells, in their order."""
        paths = sorted(self.folder.glob("cell-*.json"))
        return {path: json.loads(path.read_text(encoding="utf-8")) for path in paths if self.before.get(path) != path.stat().st_mtime_ns}

    def tidy(self) -> None:
        """Remove what the multirun left: notes, Hydra's multirun.yaml, the empty folders of its jobs."""
        for path in self.notes():
            path.unlink()
        if not self.was_there:
            with suppress(OSError):  # not there, or not even a folder
                (self.folder / "multirun.yaml").unlink()
        for path in [*self.folder.glob("[0-9]*"), *([] if self.was_there else [self.folder])]:
            try:
                path.rmdir()
            except OSError:  # no folder, or not empty: not ours
                continue


def finish(interrupted: bool) -> bool:
    """Print the table of the multirun that has run in this process, if any; whether all its cells are ok or skipped."""
    global _running
    if _running is None:
        return True
    entries = list(_running.notes().values())
    try:
        if not entries and not interrupted:
            print("the multirun has no cell that could run", file=sys.stderr)
        _print_table(entries)
    finally:  # also where nobody reads any more
        _running.tidy()
        _running = None
    return bool(entries) and all(entry["status"] in ("ok", "skipped") for entry in entries)


def _print_table(entries: list[dict[str, Any]]) -> None:
    """The records of the cells, then those that were refused or failed."""
    stored = [store.read(Path(entry["folder"])) for entry in entries if entry["folder"]]
    if stored:
        show.show(stored)
        print(f"records: {stored[0].folder.parent}")
    for entry in entries:
        if entry["status"] in ("refused", "failed"):
            print(f"{entry['status']}: {entry['name']}: {last_line(entry['reason'])}")
