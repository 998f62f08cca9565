"""The figure of docs/protocol.md: repeated measurements of one speedup, sequential and paired."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "prunebench"

import matplotlib.pyplot as plt  # noqa: E402

from bench.errors import UserError  # noqa: E402

COLOURS = {"sequential": "#d55e00", "paired": "#0072b2"}  # Okabe and Ito's, told apart by everybody
LABELS = {"sequential": "all dense, then all pruned", "paired": "in alternation"}


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
        raise UserError(f"{source} is not what python -m bench.drift writes") from error
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    for name, marker in (("sequential", "o"), ("paired", "D")):
        values = series[name]
        label = f"{LABELS[name]}: {min(values):.2f} to {max(values):.2f}"
        axes.plot(series["seconds"], values, marker, color=COLOURS[name], ms=4, label=label)
    axes.set_xlabel("seconds since the start")
    axes.set_ylabel("measured speedup")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=True)
    axes.set_title(title, fontsize=10)
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None, dpi=150)
    plt.close(figure)
