"""The methods for `python -m bench --help`: groups, a line each, from the first comments of the YAMLs.

The comment of a method is `# GROUP: what it is`; a YAML of a user's own needs none.
"""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from bench.files import CONF

HEADINGS = {"recommended": "recommended", "baseline": "baselines", "ablation": "ablations", "training": "training", "yours": "yours"}
WIDTH = 100


def methods(names: Sequence[str], search: Sequence[str]) -> str:
    """Lines for the methods of these names; `search`: overrides of hydra.searchpath, where a user's own YAMLs lie."""
    folders = [CONF, *(Path(path) for word in search for path in re.findall(r"file://([^\],'\"]+)", word))]
    groups: dict[str, list[str]] = {group: [] for group in HEADINGS}
    widest = max(map(len, names), default=0)
    for name in names:
        group, text = _described(name, folders)
        groups[group].append(_line(name, text, widest))
    return "\n".join("\n".join([f"  methods, {HEADINGS[group]}", *lines]) for group, lines in groups.items() if lines)


def _line(name: str, text: str, widest: int) -> str:
    start = f"    {name:<{widest}}  "
    return textwrap.fill(start + text, WIDTH, subsequent_indent=" " * len(start), break_on_hyphens=False).rstrip()


def _described(name: str, folders: Sequence[Path]) -> tuple[str, str]:
    """A method's group and line, by the first of the folders that has it."""
    paths = [path for folder in folders if (path := folder / "method" / f"{name}.yaml").is_file()]
    first = paths[0].read_text(encoding="utf-8", errors="replace").partition("\n")[0] if paths else ""
    comment = first.lstrip("# ") if first.startswith("#") else ""
    group, colon, text = comment.partition(": ")
    ours = bool(paths) and paths[0].is_relative_to(CONF)
    return (group, text) if ours and colon and group in HEADINGS else ("yours", comment)
