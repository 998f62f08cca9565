"""`python -m analysis`: tables and figures from what was measured."""

import sys
from pathlib import Path

import yaml

from analysis import grid
from bench import store
from bench.errors import UserError
from bench.show import print_table

USAGE = """python -m analysis grid NAME [key=value ...] [FOLDER ...]
  the cells of conf/sweep/NAME.yaml as a table, from the records in folders (default: results). machine=NAME: whose timings
  are shown (default: the one with the most from a quiet hour); any other key: as set for the whole grid when it was run
python -m analysis timing FILE OUT.svg
  what python -m bench.drift has measured, as a figure"""


def main() -> int:
    """0: printed; 1: a sentence on stderr."""
    match sys.argv[1:]:
        case ["grid", name, *words] if not name.startswith("-"):
            changes = dict(word.split("=", 1) for word in words if "=" in word)
            return _grid(name, changes, [Path(word) for word in words if "=" not in word] or [Path("results")])
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


def _grid(name: str, changes: dict[str, str], folders: list[Path]) -> int:
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        print(f"{', '.join(missing)}: no such folder with records", file=sys.stderr)
        return 1
    found = [entry for folder in folders for entry in store.load(folder).records]
    machine = changes.pop("machine", grid.most_timed(found))
    try:
        rows = grid.table(name, found, machine, {key: yaml.safe_load(value) for key, value in changes.items()})
        print(f"passes, seconds and speedups: {machine}")
        print_table(rows, grid.HEADER, grid.DISPENSABLE, words=3)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
