"""Carry stored records over a change of the methods' code that moves no result: `python -m bench.records.carry COMMIT [FOLDER]`.

A record answers a run as long as its `software.method_source` is the identity of the method's code. A change that moves no mask and
no score gives the code a new identity all the same, and the records would have to be made again. This command spares that. COMMIT is
the last one before the change. A record gets the identity of its method's code here where it was made by the method's code at COMMIT:

- it has the identity that the code at COMMIT gives the method, by the rule of that commit, or
- it has the identity that the code at the record's own commit gives the method, by the rule of that commit, and that code means the
  same as the code at COMMIT.

Every other record stays as it is. Show first that the change moves no result (docs/records.md).
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from bench import command
from bench.errors import UserError

HERE = Path(__file__).resolve().parents[2]
# run inside the code that is asked, where the rule may lie in its old place
_ASK = """
import json, pathlib, yaml
try:
    from bench.records.identity import method_source
except ImportError:
    from bench.record import method_source
methods = {path.stem: yaml.safe_load(path.read_text()) for path in pathlib.Path("conf/method").glob("*.yaml")}
print(json.dumps({name: method_source(method["_target_"]) for name, method in methods.items()}))
"""
Identities = dict[str, str]  # by the name of the method


def carry(commit: str, results: Path) -> tuple[int, int]:
    """Carry the records in a folder over from a commit; how many were carried, of how many.

    Raises:
        UserError: git does not know the commit, or the code there has no methods.
    """
    with code_at(commit) as root:
        theirs, meant, here = identities(root / "whole"), identities(root / "methods"), identities(HERE)
    carried, paths = 0, sorted(results.rglob("record.json"))
    for path in paths:
        text = path.read_text(encoding="utf-8")
        record = json.loads(text)
        name, source, own = record["method"]["name"], record["software"]["method_source"], record["software"]["commit"]
        if name in here and (source == theirs.get(name) or (source, meant.get(name)) == known(own, name)):
            path.write_text(text.replace(f'"{source}"', f'"{here[name]}"'), encoding="utf-8")
            carried += 1
    return carried, len(paths)


def known(commit: str | None, name: str) -> tuple[str | None, str | None]:
    """What the code at a commit calls a method, by its own rule and by today's; None where there is no such commit or method."""
    own, meant = _known(commit) if commit else ({}, {})
    return own.get(name), meant.get(name)


@cache
def _known(commit: str) -> tuple[Identities, Identities]:
    try:
        with code_at(commit) as root:
            return identities(root / "whole"), identities(root / "methods")
    except UserError:  # a commit of another repository, or of code that cannot be asked any more
        return {}, {}


def identities(root: Path) -> Identities:
    """The identities of all methods in a folder: by the rule of the harness that lies beside them, else by today's."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    asked = subprocess.run([sys.executable, "-c", _ASK], cwd=root, env=environment, capture_output=True, text=True)
    if asked.returncode:
        raise UserError(f"the code does not say what its methods are: {asked.stderr.strip().splitlines()[-1]}")
    answer: Identities = json.loads(asked.stdout)
    return answer


@contextmanager
def code_at(commit: str) -> Iterator[Path]:
    """A folder with two copies of this repository's code at a commit: `whole`, and `methods` without the harness."""
    with tempfile.TemporaryDirectory() as folder:
        for name, parts in {"whole": ["bench", "methods", "conf"], "methods": ["methods", "conf"]}.items():
            packed = Path(folder) / f"{name}.tar"
            words = ["git", "-C", str(HERE), "archive", f"--output={packed}", commit, *parts]
            if subprocess.run(words, capture_output=True).returncode:
                raise UserError(f"git cannot read the methods at {commit}")
            with tarfile.open(packed) as archive:
                archive.extractall(Path(folder) / name, filter="data")
        yield Path(folder)


def main() -> int:
    """Carry the records and say how many."""
    return command.run(_command, __doc__ or "")


def _command(words: list[str]) -> None:
    if len(words) not in (1, 2):
        raise UserError("name a commit, and the folder of the records unless it is results: python -m bench.records.carry COMMIT [FOLDER]")
    commit, folder = words[0], Path([*words, "results"][1])
    carried, of = carry(commit, folder)
    print(f"{carried} of {of} records in {folder} carried over from {commit}")


if __name__ == "__main__":
    sys.exit(main())
