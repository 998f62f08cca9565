"""Tables for a terminal: columns of words and numbers that fit its width, or all of them where there is none."""

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

DOUBT = " ?"  # behind what was measured while something else ran
NARROWEST = 14  # of a column of words, where a terminal is narrow


@dataclass(frozen=True)
class Column:
    """Of a table: what it shows of an item. Columns with a number in `drop` are left out where a terminal is narrow, 1 first."""

    header: str
    get: Callable[[Any], str]
    drop: int | None = None
    words: bool = False  # to the left, and on several lines where it has to be


def number(value: float | None, form: str, unit: str = "") -> str:
    """A number for people; - where there is none."""
    return "-" if value is None else f"{value:{form}}{unit}"


@dataclass(frozen=True)
class _Filled:
    """A column and its cells."""

    column: Column
    cells: list[str]

    @property
    def width(self) -> int:
        return max(map(len, [self.column.header, *self.cells]))

    @property
    def least(self) -> int:
        """The width that it needs, with its gap."""
        words = (len(word) for cell in [self.column.header, *self.cells] for word in cell.split())
        return 2 + (min(NARROWEST, max(words, default=0)) if self.column.words else self.width)


def print_table(cells: list[list[str]], header: list[str], dispensable: list[str], words: int = 2) -> None:
    """A table of cells; the first columns are `words`, the others numbers; `dispensable`: what is left out first."""
    drops = {name: place for place, name in enumerate(dispensable, 1)}
    draw([Column(name, itemgetter(i), drops.get(name), i < words) for i, name in enumerate(header)], cells)


def draw(columns: Sequence[Column], items: Sequence[Any]) -> None:
    """A table that fits the terminal. What does not fit is left out, and told; without a terminal nothing is."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    filled = [_Filled(column, [column.get(item) for item in items]) for column in columns]
    width = _terminal() or max(100, sum(each.width + 2 for each in filled))
    shown = _fitting(filled, width)
    fits = sum(each.least for each in shown) <= width
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for each in shown:
        words = each.column.words
        table.add_column(each.column.header, justify="left" if words else "right", overflow="fold", no_wrap=fits and not words)
    for cells in zip(*(each.cells for each in shown), strict=True):
        table.add_row(*cells)
    Console(width=width, highlight=False, markup=False).print(table)
    if any(cell.endswith(DOUBT) for each in shown for cell in each.cells):
        note(f"{DOUBT.strip()} the machine had other work too, or not all of its cores were used: not to be trusted")
    if left_out := [each.column.header for each in filled if each not in shown]:
        note(f"left out, this terminal is narrow: {', '.join(left_out)}")


def _fitting(filled: list[_Filled], width: int) -> list[_Filled]:
    shown = list(filled)
    for each in sorted((each for each in filled if each.column.drop), key=lambda each: each.column.drop or 0):
        if sum(one.least for one in shown) <= width:
            break
        shown.remove(each)
    return shown


def _terminal() -> int | None:
    """The terminal's width, where there is one."""
    limited = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return max(40, shutil.get_terminal_size().columns) if limited else None


def note(text: str) -> None:
    """Print a sentence below a table, no wider than the terminal."""
    print(textwrap.fill(text, min(100, _terminal() or 100), break_on_hyphens=False))
