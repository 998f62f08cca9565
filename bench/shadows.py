"""Files in the folder of the command that Python would import instead of what is installed, such as a script named datasets.py.

Imported before anything else, so that it imports nothing itself that such a file may hide.
"""

import os
import sys
from importlib.machinery import PathFinder

OURS = ("bench", "methods", "analysis")
SELDOM = ("test", "this", "antigravity", "turtle", "turtledemo", "idlelib")  # of Python's library: names of scripts, never imported here


def refuse() -> None:
    """End in a sentence where a file hides a module that is needed, of Python's library or of an installed package."""
    if sys.flags.safe_path or not sys.path or os.path.realpath(sys.path[0] or ".") != os.path.realpath("."):
        return
    try:
        files = os.listdir(".")
    except OSError:  # a folder that cannot be read hides nothing
        return
    names = {name.removesuffix(".py") for name in files if name.endswith(".py") or os.path.exists(f"{name}/__init__.py")}
    hiding = sorted(name for name in names - {*OURS, *SELDOM} if name.isidentifier() and _is_hidden(name))
    library = [name for name in hiding if name in sys.stdlib_module_names]
    for name in library or filter(_is_needed, hiding):
        file = f"{name}.py" if os.path.exists(f"{name}.py") else f"{name}/"
        print(f"{file} in this folder is in the way: Python imports it instead of its own {name}; give it another name", file=sys.stderr)
        sys.exit(1)


def _is_hidden(name: str) -> bool:
    """Whether there is another module of this name, which is not loaded yet, or was loaded from here in its place."""
    if name in sys.builtin_module_names:
        return False
    if name in sys.stdlib_module_names:
        file = os.path.realpath(getattr(sys.modules.get(name), "__file__", None) or "/")
        return name not in sys.modules or os.path.dirname(file) == os.path.realpath(".")
    spec = PathFinder.find_spec(name, sys.path[1:])
    return spec is not None and spec.origin is not None and "-packages" in spec.origin


def _is_needed(name: str) -> bool:
    """Whether an installed module belongs to a package that prunebench requires, directly or through others."""
    import re
    from importlib import metadata

    def plain(package: str) -> str:
        return re.sub(r"[-_.]+", "-", package).lower()

    waiting, needed = ["prunebench"], set[str]()
    while waiting:
        package = plain(waiting.pop())
        if package in needed:
            continue
        needed.add(package)
        try:
            words = metadata.requires(package) or []
        except metadata.PackageNotFoundError:
            continue
        wanted = [word for word in words if "extra ==" not in word or (package == "prunebench" and "export" in word)]
        waiting += [re.split(r"[^\w.-]", word)[0] for word in wanted]
    return any(plain(package) in needed for package in metadata.packages_distributions().get(name, ()))
