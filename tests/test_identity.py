"""A method's identity is the meaning of its code, and records are carried over where the code means the same."""

import json
import subprocess

import pytest

from bench.errors import UserError
from bench.records import carry, identity

IMPORT = "from mypack.shared import x as y\n"
CODE = """
import numpy as np

from mypack.shared import x as y


class Method:
    size: int = 3

    def prune(self, model):
        return np.ones(self.size) * y
"""
SAME = {
    "a comment": CODE.replace("    size", "    # of it\n    size"),
    "docstrings": CODE.replace("    size", '    """A method."""\n\n    size').replace(
        "        return", '        """Ones."""\n        return'
    ),
    "layout": CODE.replace("np.ones(self.size)", "np.ones(\n            self.size,\n        )"),
    "annotations": CODE.replace("(self, model)", "(self, model: object) -> np.ndarray"),
    "where an import comes from": CODE.replace("mypack.shared", "mypack.rooms.shared"),
    "an import that nothing uses": "import json\n" + CODE,
    "imports for annotations": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import nn\n" + CODE,
    "an import inside": CODE.replace(IMPORT, "").replace("        return", f"        {IMPORT}        return"),
}
OTHER = {
    "a number": CODE.replace("3", "4"),
    "a field more": CODE.replace("    size", "    more: int\n    size"),
    "another thing imported": CODE.replace("import x as y", "import z as y"),
    "a string": CODE.replace("    size", "    name = 'm'\n    size"),
    "an argument's default": CODE.replace("(self, model)", "(self, model=None)"),
    "a line less": CODE.replace(" * y", ""),
    "no Python": CODE + "(",
}


@pytest.mark.parametrize("what", SAME)
def test_what_changes_no_meaning(what):
    assert SAME[what] != CODE
    assert identity.meaning(SAME[what]) == identity.meaning(CODE)


@pytest.mark.parametrize("what", OTHER)
def test_what_changes_the_meaning(what):
    assert identity.meaning(OTHER[what]) != identity.meaning(CODE)


def test_the_source_of_a_method_includes_what_it_shares(tmp_path, monkeypatch):
    package = tmp_path / "mypack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("from mypack.shared import x\n")
    (package / "shared.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = identity.method_source("mypack.one.Method")
    (package / "shared.py").write_text("x = 2\n")
    assert identity.method_source("mypack.one.Method") != before


IMPORTS = [
    "import aid",
    "from . import aid",
    "from .aid import x",
    "import pkg.aid as m",
    "from pkg import aid",
    "def f():\n    import aid",
    "import importlib\nimportlib.import_module('aid')",
]


@pytest.mark.parametrize("line", IMPORTS)
def test_a_methods_source_covers_the_users_own_modules(line, tmp_path, monkeypatch):
    """However they are imported, and through others; not those that are installed."""
    packed = "pkg" in line or "from ." in line
    folder = tmp_path / "pkg" if packed else tmp_path
    folder.mkdir(exist_ok=True)
    (folder / "__init__.py").write_text("")
    (folder / "drops.py").write_text(f"{line}\nimport torch.nn\nclass Method:\n    pass\n")
    (folder / "aid.py").write_text("from nested_aid import y\nx = 1\n")
    (tmp_path / "nested_aid.py").write_text("y = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    target = "pkg.drops.Method" if packed else "drops.Method"
    seen = {identity.method_source(target)}
    for file in (folder / "aid.py", tmp_path / "nested_aid.py", folder / "drops.py"):
        file.write_text(file.read_text() + "z = 2\n")
        seen.add(identity.method_source(target))
    assert len(seen) == 4


def test_the_place_of_a_module_does_not_count(tmp_path, monkeypatch):
    for package, line in (("flat", "from flat.aid import x"), ("rooms", "from rooms.deep.aid import x")):
        deep = tmp_path / package / ("deep" if "deep" in line else "")
        deep.mkdir(parents=True)
        (tmp_path / package / "__init__.py").touch()
        (deep / "__init__.py").touch()
        (deep / "aid.py").write_text("x = 1\n")
        (tmp_path / package / "one.py").write_text(f"{line}\nclass Method:\n    y = x\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert identity.method_source("flat.one.Method") == identity.method_source("rooms.one.Method")


RULE = """
import pathlib
def method_source(target):
    return "old " + pathlib.Path("methods/flap.py").read_text()
"""


@pytest.fixture
def history(tmp_path, monkeypatch):
    """A repository in which the code of flap gained a comment, then another meaning, then was rewritten; the commits' names."""
    root = tmp_path / "repository"
    for folder in ("bench", "methods", "conf/method"):
        (root / folder).mkdir(parents=True)
    (root / "bench" / "__init__.py").touch()
    (root / "bench" / "record.py").write_text(RULE)
    (root / "conf" / "method" / "flap.yaml").write_text("_target_: methods.flap.Flap")
    (root / "methods" / "__init__.py").touch()

    def git(*words):
        done = subprocess.run(
            ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-C", str(root), *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "-q")
    commits = []
    for code in ("x = 1", "x = 1  # one", "x = 2"):
        (root / "methods" / "flap.py").write_text(code)
        git("add", "-A")
        git("commit", "-qm", code)
        commits.append(git("rev-parse", "HEAD"))
    (root / "methods" / "flap.py").write_text("x = 1 + 0")
    monkeypatch.setattr(carry, "HERE", root)
    carry._known.cache_clear()
    yield commits
    carry._known.cache_clear()


def written(folder, name, commit, source):
    path = folder / name / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"method": {"name": "flap"}, "software": {"commit": commit, "method_source": source}}))
    return lambda: json.loads(path.read_text())["software"]["method_source"]


def test_records_are_carried_from_code_that_means_the_same(history, tmp_path):
    first, commented, other = history
    results = tmp_path / "results"
    same = written(results, "same", commented, "old x = 1  # one")
    older = written(results, "older", first, "old x = 1")
    left = {
        "another meaning": written(results, "meaning", other, "old x = 2"),
        "changed without a commit": written(results, "dirty", first, "old x = 3"),
        "a commit that is not here": written(results, "foreign", "0" * 40, "old x = 1"),
        "no commit": written(results, "none", None, "old x = 0"),
    }
    before = {name: source() for name, source in left.items()}
    assert carry.carry(commented, results) == (2, 6)
    assert same() == older() == "old x = 1 + 0"
    assert {name: source() for name, source in left.items()} == before
    assert carry.carry(commented, results)[0] == 0


def test_a_commit_that_is_not_there_is_told(history, tmp_path):
    with pytest.raises(UserError, match="git cannot read the methods at nowhere"):
        carry.carry("nowhere", tmp_path)
