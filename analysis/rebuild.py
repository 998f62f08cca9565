"""Every table and figure that some records suffice for, and the report."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from analysis import figures, frame, grid, layout, published, report, style, tables
from analysis.frame import Frame
from analysis.perplexity import perplexity
from bench.errors import UserError
from bench.records.grids import names as grids


def rebuild(folders: list[Path], out: Path, machine: str | None = None) -> Iterator[str]:
    """Write everything below `out`, and yield a line for each file or problem; `machine` is whose timings are shown.

    Figures and the report are made in as many processes as there are cores.

    Raises:
        UserError: there is no record at all.
    """
    found = frame.load(folders)
    yield from found.problems
    if found.table.empty and not found.texts:
        raise UserError(f"{', '.join(map(str, folders))}: no record; python -m bench makes the first, make grid-small many")
    here = frame.known_machine(machine, found.table.machine) or grid.most_timed(list(found.stored.values()))
    for kind in ("tables", "figures"):
        (out / kind).mkdir(parents=True, exist_ok=True)
    yield f"timings: {here}"
    tables.accuracy(found)  # once, for all processes
    with ProcessPoolExecutor(os.cpu_count(), initializer=_share, initargs=(found, here)) as pool:
        page = pool.submit(_report, out / "report.html")
        drawn = [pool.submit(_draw, i, out / "figures") for i in range(len(figures.FIGURES))]
        yield from _tables(found, here, out / "tables")
        yield from _captions(drawn, out / "figures")
        yield page.result()


def _tables(found: Frame, machine: str, folder: Path) -> Iterator[str]:
    written = []
    others = [("perplexity", perplexity(found)), ("published", published.compare(found.table))]
    for name, table in [*tables.all_tables(found, machine), *others]:
        if table.empty:
            yield f"table {name}: no records for it"
            continue
        layout.write(table, folder, name, machine)
        written.append(name)
        yield f"{(folder / name).as_posix()}.csv, .md, .tex"
    (folder / "README.md").write_text(layout.readme(written, machine), encoding="utf-8")


def _captions(drawn: list[Future[tuple[str, str] | None]], folder: Path) -> Iterator[str]:
    """A page with all figures, in their order, as they are done."""
    captions = []
    for name, caption in filter(None, (one.result() for one in drawn)):
        captions.append(f"![{name}]({name}.svg)\n\n{caption}\n")
        yield f"{(folder / name).as_posix()}.svg, .png"
    (folder / "README.md").write_text("\n".join(captions), encoding="utf-8")


_shared: dict[str, Any] = {}  # of a process that draws; what was computed of the frame before it was forked is there too


def _share(found: Frame, machine: str) -> None:
    _shared.update(frame=found, machine=machine)


def _draw(i: int, folder: Path) -> tuple[str, str] | None:
    """Draw and save one of the figures; its name and caption, if there are records for it."""
    drawn = figures.FIGURES[i](_shared["frame"], _shared["machine"])
    if drawn is None:
        return None
    style.save(drawn.figure, folder, drawn.name)
    return drawn.name, drawn.caption


def _report(target: Path) -> str:
    found: Frame = _shared["frame"]
    missing = [line for name in grids() for line in grid.missing(name, list(found.stored.values()))]
    report.write(found, _shared["machine"], target, missing)
    return target.as_posix()
