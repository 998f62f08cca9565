"""The figure of docs/protocol.md: repeated measurements of one speedup, sequential and paired."""

import json
from pathlib import Path
from statistics import median

from analysis import style
from bench.errors import UserError

WAYS = {  # label, colour, marker, fill
    "sequential": ("all dense, then all pruned", style.COLOURS["kwon"], "o", "none"),
    "paired": ("in alternation", style.COLOURS["kprune"], "D", style.COLOURS["kprune"]),
}


def draw(source: Path, target: Path) -> None:
    """Speedups against the time of their measurement, as an SVG or PNG.

    Raises:
        UserError: the source is something else.
    """
    try:
        found = json.loads(source.read_text(encoding="utf-8"))
        series = {name: [float(value) for value in found[name]] for name in ("seconds", "sequential", "paired")}
        title = f"One pair of models, {found['rounds']} rounds a point ({found['machine']})"
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{source} is not what python -m bench.speed.repeatability writes") from error
    figure, (axes,) = style.panels(1, width=7, height=2.7)
    for name, (label, colour, marker, fill) in WAYS.items():
        label = f"{label}: {min(series[name]):.2f} to {max(series[name]):.2f}"
        axes.plot(series["seconds"], series[name], marker, color=colour, markerfacecolor=fill, ms=5, label=label)
    middle = median(series["paired"])
    axes.axhline(middle, color=style.DARK, linewidth=1, linestyle="--", label=f"median of all in alternation: {middle:.2f}")
    axes.set(yscale="log", xlabel="seconds since the start", ylabel="measured speedup", title=title)
    style.plain_log(axes.yaxis)
    axes.legend(loc="upper right")
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None, dpi=150)
