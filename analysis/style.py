"""How everything is drawn: one colour and marker for a method everywhere, told apart by everybody and in print."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

COLOURS = {  # Okabe and Ito's palette, and three greys and browns
    "kprune": "#0072b2",
    "kwon": "#d55e00",
    "kcm": "#009e73",
    "flap": "#cc79a7",
    "wanda-sp": "#e69f00",
    "fisher": "#56b4e9",
    "taylor": "#7a5195",
    "magnitude": "#222222",
    "random": "#8a8a8a",
    "tp": "#7f6b3a",
    "smp": "#b03060",
    "movement": "#0b7a75",
    "soft-movement": "#3c6e9e",
    "l0": "#9a8c00",
    "weight-magnitude": "#4d4d4d",
    "cofi": "#5a8f29",
    "wanda": "#b8860b",
    "sparsegpt": "#6a3d9a",
    "llm-pruner": "#2f6f4f",
    "minitron": "#a65628",
    "shortgpt": "#4a6fa5",
}
MARKERS = {
    "kprune": "*",
    "kwon": "s",
    "kcm": "^",
    "flap": "D",
    "wanda-sp": "v",
    "fisher": "o",
    "taylor": "P",
    "magnitude": "X",
    "random": "x",
    **dict(zip(("kprune-no-tuning", "kprune-one-shot", "kprune-every-2", "kprune-every-4"), "od8p", strict=True)),
    **dict(zip(("kprune-rep-only", "kprune-pred-only", "kprune-spare-1"), "<>h", strict=True)),
    **dict(zip(("kwon-no-tuning", "kwon-no-rearrangement", "kcm-r2", "kcm-d2"), "v^v<", strict=True)),
    "taylor-uniform": "p",
    **dict(zip(("tp-magnitude-l1", "tp-magnitude-l2", "tp-taylor", "tp-hessian"), "ov^<", strict=True)),
    **dict(zip(("tp-lamp", "tp-fpgm", "tp-random"), ">ph", strict=True)),
    **dict(zip(("wanda", "wanda-2-4", "sparsegpt", "sparsegpt-2-4"), "d8d8", strict=True)),
    **dict(zip(("smp", "smp-l", "smp-distil", "smp-l-distil"), "<>ph", strict=True)),
}
NAMES = {"kprune": "K-prune", "kwon": "Kwon et al.", "kcm": "KCM", "flap": "FLAP", "minilm": "MiniLM"}
VARIANTS = ("o", "v", "^", "<", ">", "p", "h", "d", "8")
BARS: dict[str, Any] = {"capsize": 2, "elinewidth": 0.8}
OTHER = "#606060"
DARK, CHANCE = "#222222", "#888888"
HATCHES = ("", "////", "....", "xxxx", "----", "oo")
SHEET = 8.65  # inches: as wide as GitHub shows a page
HANDLE, LETTER = 0.6, 0.065  # inches of a legend's entry: its sign with the space around it, a letter
SETTINGS: Any = {
    "svg.hashsalt": "prunebench",
    "font.size": 9.0,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.0,
}
matplotlib.rcParams.update(SETTINGS)


@dataclass(frozen=True)
class Drawn:
    """A figure, its file name and its caption."""

    name: str
    figure: Figure
    caption: str


def name(thing: str) -> str:
    """A method's or a model's name as people write it, in short."""
    return NAMES.get(thing, thing.replace(" distilled in ", ", "))


def family(method: str) -> str:
    """The method that a variant belongs to: kprune-one-shot to kprune, tp-lamp to tp, magnitude + 5 epochs to magnitude."""
    method = method.split(" + ")[0]
    return next((name for name in COLOURS if method == name or method.startswith(f"{name}-")), method)


def is_variant(method: str) -> bool:
    """Whether it is an ablation or one setting of another method; retraining makes no variant."""
    return method.split(" + ")[0] != family(method)


def colour(method: str) -> str:
    """A variant has its method's colour."""
    return COLOURS.get(family(method), OTHER)


def marker(method: str) -> str:
    """A variant has a marker of its own, the same everywhere."""
    return MARKERS.get(method) or VARIANTS[sum(map(ord, method)) % len(VARIANTS)]


def point(method: str) -> dict[str, Any]:
    """Keywords of a method's line or points."""
    return {"color": colour(method), "marker": marker(method), "markersize": 9 if marker(method) == "*" else 6}


def panels(count: int, width: float = SHEET / 3, height: float = 2.4, most: int = 3) -> tuple[Figure, list[Any]]:
    """A figure with so many panels, at most `most` beside each other."""
    columns = max(1, min(count, most))
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def plain_log(axis: Any) -> None:
    """Plain numbers along a logarithmic axis, which is at least a decade long; where it is shorter than two, twos and fives too."""
    low, high = axis.get_view_interval()
    wider = max(1.0, (10 * low / high) ** 0.5)
    axis.set_view_interval(low / wider, high * wider, ignore=True)

    def between(value: float, _: Any) -> str:
        low, high = axis.get_view_interval()
        return f"{value:g}" if high < 100 * low and f"{value:e}"[0] in "25" else ""

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(between))


def dense_line(axes: Any, score: float) -> None:
    """The dense model's score across a panel."""
    axes.axhline(score, color=DARK, linewidth=1, linestyle=":", label="dense")


def chance_line(axes: Any, score: float) -> None:
    """The score of a trivial answer across a panel."""
    axes.axhline(score, color=CHANCE, linewidth=1, linestyle="-.", label="chance")


def legend_below(figure: Figure, axes: list[Any], columns: int = 6) -> None:
    """One legend for all panels, every name once, in at most so many columns as the figure is wide enough for."""
    entries: dict[str, Any] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        columns = next(most for most in range(columns, 0, -1) if most == 1 or _width(list(entries), most) < figure.get_figwidth())
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False)


def _width(labels: list[str], columns: int) -> float:
    """Inches of a legend in so many columns."""
    parts = [part for part in np.array_split(np.array(labels), columns) if len(part)]
    return sum(HANDLE + LETTER * max(map(len, part)) for part in parts)


def save(figure: Figure, folder: Path, name: str) -> None:
    """As SVG and PNG, the same bytes for the same content; laid out once, for both."""
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    figure.set_layout_engine("none")
    figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
