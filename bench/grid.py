"""A grid of cells that takes hours: `python -m bench.grid small [key=value ...]` runs the cells of conf/sweep/small.yaml.

Every cell is a `python -m bench` of its own, so that the grid goes on where it stopped, whatever stopped it.
"""

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import mean
from typing import Any

from omegaconf import OmegaConf

from bench import command
from bench.errors import UserError, nearest
from bench.files import CONF

STORED = 6.0  # seconds within which only a stored record answers

Cell = dict[str, Any]


def names() -> list[str]:
    """The grids that there are."""
    return sorted(path.stem for path in (CONF / "sweep").glob("*.yaml"))


def cells(name: str) -> list[Cell]:
    """The cells of a grid, in its order.

    Raises:
        UserError: there is no such grid.
    """
    if name not in names():
        raise UserError(f"unknown grid {name!r}{nearest(name, names())}")
    grid: Any = OmegaConf.to_container(OmegaConf.load(CONF / "sweep" / f"{name}.yaml"))
    return [cell for block in grid["blocks"] for cell in _product({**grid["common"], **block})]


def _product(block: dict[str, Any]) -> Iterator[Cell]:
    values = [value if isinstance(value, list) else [value] for value in block.values()]
    for chosen in itertools.product(*values):
        yield dict(zip(block, chosen, strict=True))


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
