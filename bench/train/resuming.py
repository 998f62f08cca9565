"""How a training goes on where it stopped: its folder, the newest checkpoint in it, and the seconds that it has taken."""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.train import processes

STATE, CLOCK = "trainer_state.json", "seconds"  # the file of a checkpoint that is written last; seconds spent so far


class Workplace:
    """The folder of a run's checkpoints. `began`: the clock when this run's pruning began; `earlier`: the seconds that were spent before
    an interruption, in vain or not."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.began, self.earlier = folder, time.perf_counter(), _seconds(folder)
        self._lock: Any = None

    def claim(self) -> None:
        """Make the folder this process's alone (and those that train with it); where another has it, take a new one.

        Raises:
            UserError: it cannot be written.
        """
        if self._lock or processes.rank():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_WRONLY | os.O_CREAT)
            weakref.finalize(self, os.close, self._lock)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if processes.world() > 1:
                raise UserError("others train this very cell already: wait for them, or change seed=") from None
            self._lock = tempfile.TemporaryDirectory(prefix="other-", dir=self.folder.parent)
            self.folder, self.earlier = Path(self._lock.name), 0.0
        except OSError as error:
            where = "set BENCH_CACHE to a folder that can be written"
            raise UserError(f"cannot write {self.folder}: {error.strerror}; {where}") from error

    def write_seconds(self) -> None:
        """Write down how many seconds the run's pruning has taken so far."""
        half = self.folder / f"{CLOCK}.half"
        half.write_text(f"{self.earlier + time.perf_counter() - self.began:.3f}")
        half.replace(self.folder / CLOCK)  # whole or as it was, whatever stops us; no wait for the disk in every step


def _seconds(folder: Path) -> float:
    try:
        return float((folder / CLOCK).read_text())
    except (OSError, ValueError):
        return 0.0


def last_checkpoint(work: Path) -> str | None:
    """The newest whole checkpoint of an interrupted training; half a one is removed."""
    found = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    while found:
        with contextlib.suppress(OSError, ValueError):
            json.loads((found[-1] / STATE).read_text(encoding="utf-8"))
            if processes.world() == 1 or all((found[-1] / f"rng_state_{k}.pth").is_file() for k in range(processes.world())):
                return str(found[-1])
        shutil.rmtree(found.pop(), ignore_errors=True)
    return None
