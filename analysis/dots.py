"""Dot plots of the points of score that pruning costs: the methods over tasks and models, and the ablations apart."""

from itertools import count, pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from analysis import published, style, tables
from analysis.frame import Frame
from analysis.style import Drawn

METHODS = ["kprune", "kwon", "kcm", "flap", "magnitude"]
RATIOS = [0.5, 0.75]
SAMPLE = 100  # thousands of calibration tokens: the protocol's
LIKE_BERT = ("bert-base", "mpnet-base")  # models of BERT-base's shape
FROM, TO = -4.0, 25.0  # points that are drawn; what lost more stands at the edge as a number
LANE = 0.145  # inches of a method's lane
SMALL = 7.5
LEFT = (-105, 0)  # points from a panel to the names of its rows
COLLAPSED = "#b0b0b0"


def points_lost(frame: Frame, _: str) -> Drawn | None:
    """Points lost by method, rows by model and task, a panel for each ratio."""
    cells = tables.accuracy(frame)
    cells = cells[(cells["sample"] == SAMPLE) & cells.method.isin(METHODS) & cells.ratio.isin(RATIOS)]
    if cells.method.nunique() < 2:
        return None
    lanes = _lanes(cells)
    ratios = sorted(cells.ratio.unique())
    figure, axes = style.panels(len(ratios), width=style.SHEET / len(ratios), height=LANE * (max(lanes.values()) + 1) + 1.1)
    for one, ratio in zip(axes, ratios, strict=True):
        own = cells[cells.ratio == ratio]
        _frame(one, lanes, f"{100 * ratio:g} % of the FLOPs removed\n{_told(own)}")
        for _, group in own.groupby(["model", "task"]):
            ys = [lanes[key] for key in zip(group.model, group.task, group.method, strict=True)]
            _chance(one, group, ys)
            for y, row in zip(ys, group.itertuples(), strict=True):
                _dot(one, row, y, _published(row))
    _name_rows(axes[0], cells, lanes)
    figure.suptitle(_message(cells), fontsize=10.5, fontweight="bold", x=0.005, ha="left")
    figure.legend(handles=_key(), loc="outside lower center", ncols=3, frameon=False, columnspacing=1.0, handletextpad=0.4)
    return Drawn("points-lost", figure, CAPTION)


CAPTION = (
    f"Points of score lost to the dense model without retraining, {SAMPLE} 000 calibration tokens; grey band: at most {tables.WITHIN:g}. "
    "Lines: 95 % intervals of the paired difference, over the evaluation examples and, where there are three seeds, over those too. "
    f"An arrow with a number: more than {TO:g} points. Collapsed: no better than a trivial answer, whose score is called chance. "
    "A ?: the record is of a library with a known fault and will be measured again. No point: not measured, or out of the method's "
    "reach (KCM removes neurons alone, not three quarters of the FLOPs). Open, and in brackets at the edge: published for BERT-base by "
    "K-prune's authors, the others as run by them (ICLR 2024, Fig. 2 of arXiv v1, digitised), drawn beside mpnet-base alone, which has "
    "BERT-base's shape; ours was fine-tuned with rank-16 adapters, so the two differ in more than the code."
)


def ablations(frame: Frame, _: str) -> Drawn | None:
    """Points lost by a method and its ablations, in score and in AUC: the task, model and ratio with the most of them."""
    cells = tables.accuracy(frame)
    families = cells.method.map(style.family)
    cells = cells[(cells["sample"] == SAMPLE) & families.isin(METHODS) & ~cells.method.str.contains(" + ", regex=False)]
    groups: list[tuple[Any, pd.DataFrame]] = list(cells.groupby(["model", "task", "ratio"]))
    if not groups or (most := max(groups, key=_variants))[1].method.map(style.is_variant).sum() < 2:
        return None
    (model, task, ratio), group = most
    group = _with_variants(group)
    lanes = _lanes(group, by="family")
    sides = [group, _by_auc(group)] if group.auc.notna().all() else [group]
    figure, axes = style.panels(len(sides), width=style.SHEET / 2, height=LANE * (max(lanes.values()) + 1) + 0.8)
    for one, side, what in zip(axes, sides, ("score", "AUC, which needs no threshold"), strict=False):
        _frame(one, lanes, f"Points lost in {what}")
        for key, row in zip(zip(side.model, side.family, side.method, strict=True), side.itertuples(), strict=True):
            _dot(one, row, lanes[key])
    axes[0].set_yticks(list(lanes.values()), [_part(method) for _, _, method in lanes], fontsize=SMALL)
    where = f"{_task(task)}, {style.name(model)}, {100 * ratio:g} % of the FLOPs removed"
    figure.suptitle(f"What each part of a method is worth: {where}", fontsize=10, fontweight="bold", x=0.01, ha="left")
    caption = (
        f"Points lost to the dense model by methods and their ablations, {where}; 95 % intervals as in points-lost. "
        "Grey, collapsed: answers no better than a trivial one, though the order of the examples may be, which AUC tells."
    )
    return Drawn("ablations", figure, caption)


def _variants(pair: tuple[Any, pd.DataFrame]) -> tuple[int, float]:
    """How many ablations a group has; of equals the higher ratio."""
    return int(pair[1].method.map(style.is_variant).sum()), pair[0][2]


def _with_variants(group: pd.DataFrame) -> pd.DataFrame:
    """The methods that have an ablation there, with these."""
    group = group.assign(family=group.method.map(style.family))
    return group[group.family.isin(group.family[group.method.map(style.is_variant)])]


def _by_auc(group: pd.DataFrame) -> pd.DataFrame:
    """The same rows with what they lost in AUC; no interval, and nothing to call collapsed."""
    loss = group.auc_dense - group.auc
    return group.assign(lost=loss, lost_low=loss, lost_high=loss, collapsed=False)


def _part(method: str) -> str:
    """A method's name; an ablation by what is different in it."""
    return style.name(method) if not style.is_variant(method) else "· " + method.removeprefix(style.family(method) + "-")


def _lanes(cells: pd.DataFrame, by: str = "task") -> dict[tuple[str, str, str], float]:
    """The height of each model's, task's and method's lane: one below the other, a gap between rows."""
    order = sorted(set(zip(cells.model, cells[by], cells.method, strict=True)), key=_place)
    starts = count()
    rows = {row: next(starts) for row in dict.fromkeys(key[:2] for key in order)}
    return {key: lane + 1.2 * rows[key[:2]] for lane, key in enumerate(order)}


def _place(key: tuple[str, str, str]) -> tuple[Any, ...]:
    model, task, method = key
    return model, list(published.TASKS).index(task) if task in published.TASKS else 99, task, METHODS.index(style.family(method)), method


def _frame(axes: Any, lanes: dict[tuple[str, str, str], float], title: str) -> None:
    """A panel without dots: the band of small losses, the dense model's line, a line between rows."""
    axes.axvspan(FROM, tables.WITHIN, color="#eeeeee", zorder=0)
    axes.axvline(0, color=style.DARK, linewidth=1, zorder=1)
    for y in _between(lanes):
        axes.axhline(y, color="#bbbbbb", linewidth=0.6)
    axes.set(xlim=(FROM, TO), ylim=(max(lanes.values()) + 1, -1.5), xlabel="points lost; 0: as good as the dense model")
    axes.set_yticks(list(lanes.values()), [])
    axes.set_title(title, loc="left", fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _between(lanes: dict[tuple[str, str, str], float]) -> list[float]:
    heights = list(lanes.values())
    return [(one + other) / 2 for one, other in pairwise(heights) if other - one > 1]


def _name_rows(axes: Any, cells: pd.DataFrame, lanes: dict[tuple[str, str, str], float]) -> None:
    """The method's name at each lane; left of a row its task, its model and both ends of its scale."""
    axes.set_yticks(list(lanes.values()), [style.name(method) for _, _, method in lanes], fontsize=SMALL)
    for (model, task), group in cells.groupby(["model", "task"]):
        top = min(y for key, y in lanes.items() if key[:2] == (model, task))
        ends = f"dense {group.dense.mean():.1f}\nchance {group.trivial.mean():.1f}"
        lines = ((0.0, _task(str(task)), "bold", 9.0), (1.0, style.name(str(model)), "normal", SMALL), (2.5, ends, "normal", SMALL))
        for below, words, weight, size in lines:
            place: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "va": "center"}
            axes.annotate(words, (0, top + below), xytext=LEFT, fontweight=weight, fontsize=size, annotation_clip=False, **place)


def _chance(axes: Any, group: pd.DataFrame, ys: list[float]) -> None:
    """Where a trivial answer would stand in a row, if that is within the panel."""
    at = float((group.dense - group.trivial).mean())
    if at < TO:
        axes.plot([at, at], [min(ys) - 0.5, max(ys) + 0.5], color=style.CHANCE, linewidth=1.2, linestyle=":", zorder=1)
        axes.text(at, min(ys) - 0.5, "chance", fontsize=6.5, color="#555555", ha="center", va="bottom")


def _dot(axes: Any, row: Any, y: float, theirs: float | None = None) -> None:
    """One cell with its interval; in grey and without one where the model has collapsed, open with a ? where the record is suspect."""
    suspect = not pd.isna(row.suspect)
    options = style.point(row.method) | ({"color": COLLAPSED} if row.collapsed else {})
    if not row.collapsed:
        axes.plot(np.clip([row.lost_low, row.lost_high], FROM, TO), [y, y], color=options["color"], linewidth=1, zorder=2)
    fill = "white" if suspect else options["color"]
    axes.plot(min(row.lost, TO), y, linestyle="", markerfacecolor=fill, clip_on=False, zorder=3, **options)
    if theirs is not None and theirs <= TO:
        axes.plot(theirs, y, linestyle="", markerfacecolor="none", markeredgewidth=0.9, zorder=4, **options | {"color": style.DARK})
    words = " ".join(["collapsed"] * row.collapsed + ["?"] * suspect)
    if row.lost <= TO and words:
        _text(axes, row.lost if row.collapsed else min(row.lost_high, TO), y, words)
    beyond = [f"{row.lost:.0f} {words}".strip()] if row.lost > TO else []
    beyond += [f"({theirs:.0f})"] if theirs is not None and theirs > TO else []
    if beyond:
        _text(axes, TO, y, "→ " + " ".join(beyond))


def _text(axes: Any, x: float, y: float, words: str) -> None:
    """Words to the right of a dot."""
    place: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center_baseline", "annotation_clip": False}
    axes.annotate(words, (x, y), fontsize=SMALL, color="#444444", **place)


def _published(row: Any) -> float | None:
    """Points that were published as lost, by K-prune's authors, where the model has the shape of theirs."""
    points = published.curves(row.task, row.method)
    points = points[np.isclose(points.ratio_removed.astype(float), row.ratio) & points.paper.str.startswith("K-prune")]
    return float(points.score_drop.iloc[0]) if row.model in LIKE_BERT and len(points) else None


def _near(cells: pd.DataFrame) -> pd.DataFrame:
    """By method and ratio in how many cells, of how many, it loses little."""
    near = (cells.lost <= tables.WITHIN) & ~cells.collapsed & cells.suspect.isna()
    return near.groupby([cells.method, cells.ratio]).agg(["sum", "size"])


def _told(cells: pd.DataFrame) -> str:
    """Which methods lose little, and how often."""
    found = _near(cells).droplevel("ratio")
    found = found[found["sum"] > 0].sort_values("sum", ascending=False)
    often = [f"{style.name(str(method))} {near} of {of}" for method, near, of in found.itertuples()]
    return f"within {tables.WITHIN:g} points (grey): {', '.join(often) or 'none'}"


def _message(cells: pd.DataFrame) -> str:
    """What the figure shows, in a sentence about the method that loses little most often."""
    found = _near(cells)
    sums = found["sum"].groupby("method").sum()
    best = str(sums.idxmax())
    if not sums[best]:
        return f"Without retraining, every method loses more than {tables.WITHIN:g} points"
    often = ", ".join(f"in {near} of {of} cases at {100 * ratio:g} %" for ratio, near, of in found.loc[best].itertuples())
    return f"Without retraining, {style.name(best)} loses at most {tables.WITHIN:g} points {often}"


def _key() -> list[Any]:
    """What the signs mean, whatever the method."""
    sign: dict[str, Any] = {"marker": "o", "color": style.DARK, "markersize": 6}
    return [
        Line2D([], [], linewidth=1, label="measured here, 95 % interval", **sign),
        Line2D([], [], linestyle="", markerfacecolor="none", label="published for BERT-base", **sign),
        Line2D([], [], linestyle="", label="collapsed: no better than chance", **sign | {"color": COLLAPSED}),
        Line2D([], [], linestyle="", label="→ 42 (68): beyond the axis, in brackets published"),
        Line2D([], [], linestyle="", label="? a faulty library, to be measured again"),
    ]


def _task(task: str) -> str:
    return published.TASKS.get(task, task)
