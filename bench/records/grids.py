"""The grids of conf/sweep: which cells each is made of."""

import itertools
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from bench.errors import UserError, nearest
from bench.files import CONF

Cell = dict[str, Any]  # what is set for one run, by its key


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
