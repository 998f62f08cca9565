"""`python -m analysis`: tables and figures from what was measured."""

import sys
from pathlib import Path

from analysis import grid
from bench import store
from bench.errors import UserError
from bench.show import print_table

USAGE = """python -m analysis grid NAME [FOLDER ...]   the cells of conf/sweep/NAME.yaml as a table (default folder: results)
python -m analysis timing FILE OUT.svg      what python -m bench.drift has measured, as a figure"""


def main() -> int:
    """0: printed; 1: a sentence on stderr."""
    match sys.argv[1:]:
        case ["grid", name, *folders] if not name.startswith("-"):
            return _grid(name, [Path(folder) for folder in folders] or [Path("results")])
        case ["timing", source, target]:
            return _timing(Path(source), Path(target))
        case ["-h" | "--help"]:
            print(USAGE)
            return 0
    print(USAGE, file=sys.stderr)
    return 1


def _timing(source: Path, target: Path) -> int:
    from analysis import timing

    if not source.is_file():
        print(f"{source}: no such file; python -m bench.drift {source} measures it", file=sys.stderr)
        return 1
    timing.draw(source, target)
    return 0


def _grid(name: str, folders: list[Path]) -> int:
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        print(f"{', '.join(missing)}: no such folder with records", file=sys.stderr)
        return 1
    found = [entry for folder in folders for entry in store.load(folder).records]
    try:
        machines = sorted({entry.record["machine"]["name"] for entry in found})
        for machine in machines or ["none yet"]:  # timings of different machines never share a table
            print(f"machine {machine}")
            here = [entry for entry in found if entry.record["machine"]["name"] == machine]
            print_table(grid.table(name, here), grid.HEADER, grid.DISPENSABLE, words=3)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
