"""A grid of cells that takes hours: `python -m bench.grid small [key=value ...]` runs the cells of conf/sweep/small.yaml.

Every cell is a `python -m bench` of its own, so that the grid goes on where it stopped, whatever stopped it.
"""

import subprocess
import sys
import time
from statistics import mean

from bench import command
from bench.errors import UserError
from bench.records.grids import Cell, cells, names

STORED = 6.0  # seconds within which only a stored record answers


def seconds_left(rest: list[Cell], measured: list[tuple[Cell, float]]) -> float | None:
    """What the rest will take, by the mean of measured cells that are most like each; None where nothing was measured."""
    total = 0.0
    for cell in rest:
        for keys in (("method", "task", "model"), ("method", "model"), ("model",), ()):
            alike = [seconds for other, seconds in measured if all(other.get(key) == cell.get(key) for key in keys)]
            if alike:
                total += mean(alike)
                break
        else:
            return None
    return total


def run(name: str, extra: list[str]) -> int:
    """Run a grid, cell by cell. 0: all ok, skipped or stored; 1: a cell failed; 130: interrupted."""
    todo, measured, code = cells(name), list[tuple[Cell, float]](), 0
    for i, cell in enumerate(todo):
        left = seconds_left(todo[i:], measured)
        words = [f"{key}={value}" for key, value in cell.items()]
        hours = "" if left is None else f", about {left / 3600:.1f} h left"
        print(f"cell {i + 1} of {len(todo)}{hours}: {' '.join(words)}", flush=True)
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "bench", *words, *extra], check=False)
        if done.returncode == 130:
            return 130
        code = code or done.returncode
        seconds = time.monotonic() - start
        if done.returncode == 0 and seconds > STORED:
            measured.append((cell, seconds))
    return code


def main() -> int:
    """`python -m bench.grid NAME [key=value ...]`; further overrides go to every cell."""
    usage = f"python -m bench.grid NAME [key=value ...]   run a grid of cells, resumable; NAME: {', '.join(names())}"

    def body(words: list[str]) -> int:
        if not words:
            raise UserError(usage)
        return run(words[0], words[1:])

    return command.run(body, usage)


if __name__ == "__main__":
    sys.exit(main())
