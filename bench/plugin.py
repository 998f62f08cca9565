"""Code that a YAML names by its dotted path: methods, and functions that build a task's data."""

import ast
import importlib
import importlib.util
import sysconfig
import threading
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from bench.errors import UserError, first_line

_PARSER = threading.Lock()  # the parser of Python 3.11 fails in two threads at once (python/cpython#106905)


def load(target: str, what: str) -> Any:
    """The object at a dotted path; `what` names it in the error.

    Raises:
        UserError: there is no such thing, or its module does not let itself be imported, whatever it raises.
    """
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        raise UserError(f"{what}: cannot import {target}: {type(error).__name__}: {first_line(error)}") from error


def source(module: str) -> str | None:
    """The source of a module by its dotted path, without importing it; None where there is none to read."""
    try:
        spec = find(module)
        return importlib.util.decode_source(Path(spec.origin).read_bytes()) if spec and spec.origin else None
    except Exception:
        return None  # told when it is loaded


def find(module: str) -> ModuleSpec | None:
    """Where a module lies, without importing it or the packages that it lies in."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # __main__
        return None
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", list(spec.submodule_search_locations))
    return spec


def own_modules(module: str) -> dict[str, Path]:
    """The files of a module and of all modules that it imports, itself or through others, by their names: those of its own package
    and the user's, not the harness's nor installed ones. A package counts where its `__init__` holds code."""
    waiting, found, top = [module], dict[str, Path](), module.partition(".")[0]
    while waiting:
        name = waiting.pop()
        spec = None if name in found else find(name)
        if spec is None or not spec.origin or not spec.has_location or not (name.partition(".")[0] == top or _is_users(spec.origin)):
            continue
        tree = _parsed(name)
        if spec.submodule_search_locations is None or name == module or _has_code(tree):
            found[name] = Path(spec.origin)
        package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
        imported = [candidate for line in ast.walk(tree) for candidate in _imported(line, package)]
        waiting += {".".join(parts[:n]) for parts in map(_parts, imported) for n in range(1, len(parts) + 1)} - found.keys()
    return found


def _parts(name: str) -> list[str]:
    return name.split(".")


def parsed(source: str) -> ast.Module:
    """The syntax tree of a source, for any number of threads at once.

    Raises:
        SyntaxError, ValueError, RecursionError: Python cannot read it.
    """
    with _PARSER:
        return ast.parse(source)


def _parsed(module: str) -> ast.Module:
    try:
        return parsed(source(module) or "")
    except (SyntaxError, ValueError, RecursionError):
        return ast.Module([], [])  # told when it is loaded


def _has_code(tree: ast.Module) -> bool:
    return any(not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)) for line in tree.body)


def _is_users(origin: str) -> bool:
    """Whether a file is neither the harness's nor installed."""
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    harness = Path(__file__).resolve().parent
    places = [*map(Path, installed), harness, harness.parent / "analysis"]
    path = Path(origin).resolve()
    return not {"site-packages", "dist-packages"} & set(path.parts) and not any(path.is_relative_to(place) for place in places)


def _imported(line: ast.AST, package: str) -> Iterator[str]:
    """The dotted names that a statement of a module of this package may import; `from x import y` may mean the module x.y."""
    if isinstance(line, ast.Import):
        yield from (alias.name for alias in line.names)
    elif isinstance(line, ast.ImportFrom):
        above = _parts(package)[: len(_parts(package)) - line.level + 1] if line.level else []
        base = ".".join([*above, *filter(None, [line.module])])
        yield from (f"{base}.{alias.name}" for alias in line.names)
    elif isinstance(line, ast.Call) and ast.unparse(line.func).endswith(("import_module", "__import__")):
        yield from (word.value for word in line.args[:1] if isinstance(word, ast.Constant) and isinstance(word.value, str))
