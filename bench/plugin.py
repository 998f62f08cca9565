"""Code that a YAML names by its dotted path: methods, and functions that build a task's data."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from bench.errors import UserError, first_line


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
        spec = importlib.util.find_spec(module)  # imports the packages that it lies in
        return Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else None
    except (Exception, SystemExit):
        return None  # told when it is loaded
