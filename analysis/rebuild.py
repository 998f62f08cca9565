"""Every table and figure that some records suffice for, and the report."""

from collections.abc import Iterator
from pathlib import Path

from analysis import figures, frame, grid, published, report, style, tables
from bench.errors import UserError
from bench.grid import names as grids


def rebuild(folders: list[Path], out: Path, machine: str | None = None) -> Iterator[str]:
    """Write everything below `out`, and yield a line for each file or problem; `machine` is whose timings are shown.

    Raises:
        UserError: there is no record at all.
    """
    found = frame.load(folders)
    yield from found.problems
    if found.table.empty:
        raise UserError(f"{', '.join(map(str, folders))}: no record; python -m bench makes the first, make grid-small many")
    here = frame.known_machine(machine, found.table.machine) or grid.most_timed(list(found.stored.values()))
    for kind in ("tables", "figures"):
        (out / kind).mkdir(parents=True, exist_ok=True)
    yield f"timings: {here}"
    for name, table in [*tables.all_tables(found, here), ("published", published.compare(found.table))]:
        if table.empty:
            yield f"table {name}: no records for it"
            continue
        tables.write(table, out / "tables", name)
        yield f"{(out / 'tables' / name).as_posix()}.csv, .md, .tex"
    captions = []
    for drawn in figures.all_figures(found, here):
        style.save(drawn.figure, out / "figures", drawn.name)
        captions.append(f"![{drawn.name}]({drawn.name}.svg)\n\n{drawn.caption}\n")
        yield f"{(out / 'figures' / drawn.name).as_posix()}.svg, .png"
    (out / "figures" / "README.md").write_text("\n".join(captions), encoding="utf-8")
    missing = [line for name in grids() for line in grid.missing(name, list(found.stored.values()))]
    report.write(found, here, out / "report.html", missing)
    yield (out / "report.html").as_posix()
