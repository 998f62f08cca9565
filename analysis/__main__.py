"""`python -m analysis`: tables, figures and a report from what was measured."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from analysis import grid
from analysis.frame import known_machine
from bench import command
from bench.errors import UserError, nearest
from bench.records import store
from bench.records.table import print_table

CHANGES: dict[str, Callable[[str], Any]] = {  # what all cells of a grid may be asked for with
    **dict.fromkeys(("model", "precision", "task", "unit"), str),
    **dict.fromkeys(("calibration.tokens", "recover.rounds", "seed"), int),
    **dict.fromkeys(("ratio", "recover.epochs"), float),
    "recover.distil": {"true": True, "false": False}.__getitem__,
}
GOALS = {"task", "model", "speedup", "drop", "machine"}  # what choose may be asked for with
FAR = 10  # points below the dense score
FEW = 5  # runs that are named
USAGE = """python -m analysis [FOLDER ...] [--out DIR] [--machine NAME]
  every table and figure that the records in the folders suffice for, and the report (default: results, to results)
python -m analysis grid NAME [key=value ...] [FOLDER ...]
  the cells of conf/sweep/NAME.yaml as a table. machine=NAME: whose timings are shown (default: the one with the most from
  a quiet hour); any other key: as set for the whole grid when it was run
python -m analysis choose task=TASK model=MODEL speedup=S|drop=D [machine=NAME] [FOLDER ...]
  methods and ratios that are S times as fast, or lose at most D points: by the scores of all records, and the speedups of this
  machine or, where it has none, of the one with most of them
python -m analysis compare A B
  what changed between two folders of records beyond noise
python -m analysis timing FILE OUT.svg
  what python -m bench.speed.repeatability has measured, as a figure"""


def main() -> int:
    """0: printed or written; 1: a sentence on stderr."""
    return command.run(_command, USAGE)


def _command(words: list[str]) -> None:
    match words:
        case ["grid", name, *rest] if not name.startswith("-"):
            _grid(name, *_split(rest))
        case ["choose", *rest]:
            _choose(*_split(rest))
        case ["compare", a, b]:
            _compare(Path(a), Path(b))
        case ["timing", source, target]:
            _timing(Path(source), Path(target))
        case ["compare", *_]:
            raise UserError("compare needs two folders of records: make compare A=FOLDER B=FOLDER")
        case ["grid" | "timing", *_]:
            raise UserError(USAGE)
        case _:
            _everything(words)


def _split(words: list[str]) -> tuple[dict[str, str], list[Path]]:
    """key=value words, and folders (results where none is named), which have to be there."""
    return dict(word.split("=", 1) for word in words if "=" in word), _folders([word for word in words if "=" not in word])


def _folders(words: list[str]) -> list[Path]:
    folders = [Path(word) for word in words or ["results"]]
    for folder in folders:
        if not folder.is_dir():
            beside = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
            told = nearest(folder.name, beside)
            hint = told if "did you mean" in told else "; python -m bench makes the first"
            raise UserError(f"{folder}: no such folder with records{hint}")
    return folders


def _everything(words: list[str]) -> None:
    from analysis import rebuild

    parser = argparse.ArgumentParser(prog="python -m analysis", add_help=False)
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--out", default="results")
    parser.add_argument("--machine")
    parser.error = _refuse  # type: ignore[method-assign]
    given = parser.parse_args(words)
    for line in rebuild.rebuild(_folders(given.folders), Path(given.out), given.machine):
        print(line)


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}\n{USAGE}")


def _grid(name: str, changes: dict[str, str], folders: list[Path]) -> None:
    found = [entry for folder in folders for entry in store.load(folder).records]
    machine = known_machine(changes.pop("machine", None), (entry.record["machine"]["name"] for entry in found)) or grid.most_timed(found)
    rows = grid.table(name, found, machine, {key: _value(key, value) for key, value in changes.items()})
    print(f"passes, seconds and speedups: {machine}")
    print_table(rows, grid.HEADER, grid.DISPENSABLE, words=3)


def _value(key: str, text: str) -> Any:
    """What a cell of a grid is changed to."""
    if key not in CHANGES:
        raise UserError(f"unknown key {key!r}{nearest(key, CHANGES)}")
    try:
        return CHANGES[key](text)
    except (ValueError, KeyError):
        raise UserError(f"{key}={text}: not a value of this key") from None


def _choose(keys: dict[str, str], folders: list[Path]) -> None:
    from analysis import choose, frame
    from bench import machine

    for key in sorted(set(keys) - GOALS):
        raise UserError(f"unknown key {key!r}{nearest(key, GOALS)}")
    if not {"task", "model"} <= set(keys):
        raise UserError("choose needs task= and model=, and speedup= or drop=")
    goal = choose.Goal(*(_number(keys, name) for name in ("speedup", "drop")))
    found = frame.load(folders)
    if found.table.empty:
        raise UserError(f"{', '.join(map(str, folders))}: no record; python -m bench makes the first")
    wanted = known_machine(keys.get("machine"), found.table.machine) or machine.machine_name(machine.resolve_device("auto"))
    answer = choose.choose(found, wanted, keys["task"], keys["model"], goal)
    print(_whose(wanted, answer.machine))
    if answer.rows:
        print_table(answer.rows, choose.HEADER, ["tokens", "runs"], words=1)
        if answer.least is not None and answer.least > FAR:
            print(f"all of these lose more than {FAR} points: no pruned model worth having is among them")
        print(f"the first of these models is made by\n  {answer.command}")
    else:
        print("no run reaches it")
    if answer.to_run:
        print("what would settle the rest:\n" + "\n".join(f"  {command}" for command in answer.to_run))


def _whose(wanted: str, timed: str | None) -> str:
    """Whose the speedups are."""
    if timed == wanted:
        return f"speedups: {wanted}"
    if timed is None:
        return f"speedups: none was timed, on {wanted} or elsewhere"
    return f"speedups: {timed}, which has most of them; {wanted} has timed none"


def _number(keys: dict[str, str], name: str) -> float | None:
    try:
        return float(keys[name]) if name in keys else None
    except ValueError:
        raise UserError(f"{name}={keys[name]}: a number") from None


def _compare(a: Path, b: Path) -> None:
    from analysis import changes, frame

    found = changes.between(*(frame.load(_folders([str(folder)])) for folder in (a, b)))
    if found.rows:
        print_table(found.rows, changes.HEADER, ["seed"], words=5)
    print(f"{found.both} runs in both, {len({tuple(row[1:6]) for row in found.rows})} of them changed beyond noise")
    for name, only in ((a, found.only_a), (b, found.only_b)):
        print(f"only in {name}: {len(only)}{': ' + '; '.join(only[:FEW]) + '; …' * (len(only) > FEW) if only else ''}")


def _timing(source: Path, target: Path) -> None:
    from analysis import timing

    if not source.is_file():
        raise UserError(f"{source}: no such file; python -m bench.speed.repeatability {source} measures it")
    timing.draw(source, target)


if __name__ == "__main__":
    sys.exit(main())
