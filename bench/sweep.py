"""What a multirun needs beside its cells: notes of how each ended, and one table over all of them at the end."""

import json
import shutil
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from bench import show, store
from bench.cell import Outcome

_folder: Path | None = None


def note(folder: str, job: int, name: str, outcome: Outcome) -> None:
    """Leave word of a cell's end in the multirun's folder, which launchers share between their processes."""
    facts = {"name": name, "status": outcome.status, "folder": str(outcome.folder or ""), "reason": outcome.reason}
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / f"cell-{job:06d}.json").write_text(json.dumps(facts), encoding="utf-8")


def finish() -> bool:
    """Print the table of the multirun that has run in this process, if any; whether all its cells are ok or skipped."""
    global _folder
    if _folder is None:
        return True
    notes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(_folder.glob("cell-*.json"))]
    stored = [store.read(Path(entry["folder"])) for entry in notes if entry["folder"]]
    if stored:
        show.show(stored)
        print(f"records: {stored[0].folder.parent}")
    for entry in notes:
        if entry["status"] in ("refused", "failed"):
            print(f"{entry['status']}: {entry['name']}: {show.last_line(entry['reason'])}")
    shutil.rmtree(_folder, ignore_errors=True)
    _folder = None
    return all(entry["status"] in ("ok", "skipped") for entry in notes)


class Sweep(Callback):
    """Hydra's callback: remembers the folder of a multirun, and prints its table when it ends."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Remember where the cells leave word."""
        global _folder
        _folder = Path(config.hydra.sweep.dir)
