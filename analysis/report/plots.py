"""The page's plots as Vega-Lite knows them, without their data, and the legend that they share.

The page sets the signals `group`, `task`, `machine` and `picked` (the methods that stand out; none: all do).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd
from altair.utils.schemapi import debug_mode

from analysis import style
from analysis.report.data import PUBLISHED_MODEL
from analysis.report.text import within

Spec = dict[str, Any]
MODES = ("light", "dark")
INKS = {"light": "#333333", "dark": "#d5d7da"}
GRIDS = {"light": "#e4e4e4", "dark": "#3a3d42"}
MARGIN = 0.08  # of ratio, beside the lowest and the highest
APART, SPREAD = 0.005, 0.06  # of ratio: between methods, and between the first and the last at most
PALE = 0.45  # by how much colours are mixed with white to be seen on dark
SIZES = (70, 220)
PICKED: Any = alt.ExprRef("!length(picked) || indexof(picked, datum.method) >= 0 ? 1 : 0.08")
SHAPES = {  # style's markers as paths within [-1, 1]
    "s": "M-.8,-.8H.8V.8H-.8Z",
    "^": "M0,-.9L.95,.75H-.95Z",
    "v": "M0,.9L.95,-.75H-.95Z",
    "<": "M-.9,0L.75,-.95V.95Z",
    ">": "M.9,0L-.75,-.95V.95Z",
    "D": "M0,-1L1,0L0,1L-1,0Z",
    "o": "M-.9,0A.9,.9,0,1,1,.9,0A.9,.9,0,1,1,-.9,0Z",
    "P": "M-.35,-.95H.35V-.35H.95V.35H.35V.95H-.35V.35H-.95V-.35H-.35Z",
    "*": "M0,-1L0.23,-0.31L0.95,-0.31L0.36,0.12L0.59,0.81L0,0.38L-0.59,0.81L-0.36,0.12L-0.95,-0.31L-0.23,-0.31Z",
    "X": "M-0.8,-0.5L-0.5,-0.8L0,-0.3L0.5,-0.8L0.8,-0.5L0.3,0L0.8,0.5L0.5,0.8L0,0.3L-0.5,0.8L-0.8,0.5L-0.3,0Z",
    "x": "M-0.8,-0.66L-0.66,-0.8L0,-0.14L0.66,-0.8L0.8,-0.66L0.14,0L0.8,0.66L0.66,0.8L0,0.14L-0.66,0.8L-0.8,0.66L-0.14,0Z",
    "p": "M0,-0.9L0.86,-0.28L0.53,0.73L-0.53,0.73L-0.86,-0.28Z",
    "h": "M0,-0.9L0.78,-0.45L0.78,0.45L0,0.9L-0.78,0.45L-0.78,-0.45Z",
    "d": "M0,-0.9L0.5,0L0,0.9L-0.5,0Z",
    "8": "M-0.35,-0.85L0.35,-0.85L0.85,-0.35L0.85,0.35L0.35,0.85L-0.35,0.85L-0.85,0.35L-0.85,-0.35Z",
}


@dataclass(frozen=True)
class Plot:
    """A plot for light and for dark; `words` say what is in it, by group.

    `source` names its data; `needs`: what has to hold of a point (by Vega's words) for the page to draw the plot.
    """

    anchor: str
    title: str
    caption: str
    specs: dict[str, Spec]
    words: dict[str, str]
    source: str
    needs: list[str]


@dataclass(frozen=True)
class Entry:
    """A method in the legend, its sign a path within [-1, 1]."""

    method: str
    path: str
    light: str
    dark: str
    ablation: bool


def legend(cells: pd.DataFrame) -> list[Entry]:
    """Every method once."""
    methods = cells.drop_duplicates("method").sort_values("method")
    return [_entry(str(row.method), bool(row.ablation)) for row in methods.itertuples()]


def _entry(method: str, ablation: bool) -> Entry:
    light, dark = (_seen(style.colour(method), mode) for mode in MODES)
    return Entry(method, SHAPES[style.marker(method)], light, dark, ablation)


def plots(cells: pd.DataFrame, costs: pd.DataFrame, points: pd.DataFrame, published: pd.DataFrame) -> list[Plot]:
    """All that there are points for."""
    methods = sorted(set(cells.method))
    ends = [float(cells.ratio.min()) - MARGIN, float(cells.ratio.max()) + MARGIN] if len(cells) else [0.0, 1.0]
    with debug_mode(False):  # the tests hold the specs against the schema, which takes longer than all else here
        drawn = [
            _plot_cost(costs, "speedup", "measured speedup", methods, "The line joins what nothing beats."),
            _plot_cost(costs, "passes", "passes over the calibration set", methods, "Lines join what nothing of the same ratio beats."),
            _plot_ratio(cells, methods, ends),
            _plot_published(cells, published, methods),
            _plot_bound(points),
        ]
    return [plot for plot in drawn if plot.words]


def _plot_cost(costs: pd.DataFrame, column: str, title: str, methods: list[str], front: str) -> Plot:
    """Score by what pruning cost or gained."""
    caption = f"Means over the runs, scores of all machines; the larger a point the more was removed; dashed: the dense model. {front}"
    hollow = " Hollow: collapsed or suspect, and on no line."
    specs = {mode: _by_cost(column, title, methods, mode) for mode in MODES}
    words = dict(_cost_words(costs[costs[column].notna()], column))
    return Plot(f"by-{column}", f"Accuracy by {column}", caption + hollow, specs, words, "costs", ["group", "machine", column])


def _plot_ratio(cells: pd.DataFrame, methods: list[str], ends: list[float]) -> Plot:
    caption = (
        "Means over seeds, methods of a ratio side by side; bars: 95 % over seeds, or over the evaluation examples where there is "
        "one run; dashed: the dense model. Hollow: collapsed or suspect."
    )
    specs = {mode: _by_ratio(methods, ends, mode) for mode in MODES}
    return Plot("by-ratio", "Accuracy by ratio", caption, specs, dict(_ratio_words(cells)), "cells", ["group"])


def _plot_published(cells: pd.DataFrame, published: pd.DataFrame, methods: list[str]) -> Plot:
    caption = (
        f"Filled: ours. Hollow and dashed: published, of {PUBLISHED_MODEL}. They are other models with other dense scores; our mpnet-base "
        "was fine-tuned by adapters with frozen embeddings. So compare the points lost, not the scores."
    )
    specs = {mode: _by_published(methods, mode) for mode in MODES}
    return Plot("by-published", "Published numbers beside ours", caption, specs, dict(_published_words(published)), "published", ["task"])


def _plot_bound(points: pd.DataFrame) -> Plot:
    caption = "Each point is one run of any task with its 95 % interval; dashed: all that FLOPs would allow. Hollow: random weights."
    end = 1.05 * float(points[["flops_bound", "speedup_high"]].max().max()) if len(points) else 1.0
    specs = {mode: _by_bound(sorted(set(points.model)), end, mode) for mode in MODES}
    return Plot("by-bound", "Speedup by what the FLOPs allow", caption, specs, dict(_bound_words(points)), "runs", ["machine"])


# In words


def _cost_words(costs: pd.DataFrame, column: str) -> Iterator[tuple[str, str]]:
    for (group, machine), own in costs.groupby(["group", "machine"]):
        rows = own.sort_values(column)
        texts = [
            f"{row.method} at {row.ratio:g}: {row.score:.2f} for {getattr(row, column):.3g}{_beaten(row, column)}"
            for row in rows.itertuples()
        ]
        yield f"{group}, {machine}", "; ".join(texts)


def _beaten(row: Any, column: str) -> str:
    return " (nothing beats it)" if getattr(row, f"front_{column}") else ""


def _ratio_words(cells: pd.DataFrame) -> Iterator[tuple[str, str]]:
    for group, own in cells.groupby("group"):
        texts = [f"{row.method} at {row.ratio:g}: {row.score:.2f}" for row in own.sort_values(["method", "ratio"]).itertuples()]
        yield str(group), f"dense {own.dense.mean():.2f}; {'; '.join(texts)}"


def _published_words(published: pd.DataFrame) -> Iterator[tuple[str, str]]:
    for task, own in published.groupby("task"):
        rows = own.sort_values(["method", "ratio"]).itertuples()
        yield str(task), "; ".join(f"{row.method} at {row.ratio:g} loses {row.lost:.1f} ({row.paper})" for row in rows)


def _bound_words(points: pd.DataFrame) -> Iterator[tuple[str, str]]:
    for (model, weights, machine), own in points.groupby(["model", "weights", "machine"]):
        texts = [
            f"{row.method} at {row.ratio:g}: {within(row.speedup, row.speedup_low, row.speedup_high, '.2f')} of {row.flops_bound:.2f}"
            for row in own.sort_values("flops_bound").itertuples()
        ]
        yield f"{model}, {weights} weights, {machine}", "; ".join(texts)


# As Vega-Lite


def _by_cost(column: str, title: str, methods: list[str], mode: str) -> Spec:
    """Score by cost, for one group and machine at a time, with the front."""
    chosen = alt.Chart(alt.NamedData("costs")).transform_filter(
        f"datum.group === group && datum.machine === machine && isValid(datum.{column})"
    )
    x = alt.X(column, type="quantitative", title=title).scale(type="log", nice=False, padding=24).axis(format="~g", tickCount=5)
    y = alt.Y("score:Q", title="score (%)").scale(zero=False, padding=16)
    size = alt.Size("ratio:O", legend=None).scale(range=list(SIZES))
    front = chosen.transform_filter(f"datum.front_{column}").mark_line(color=INKS[mode], strokeWidth=1.2, opacity=0.7)
    line = front.encode(x, y, *([alt.Detail("ratio:N")] if column == "passes" else []), order=alt.Order(column, type="quantitative"))
    dense = chosen.mark_rule(strokeDash=[4, 4]).encode(y=alt.Y("mean(dense):Q"))
    return _layered(mode, dense, line, _points(chosen, methods, mode).encode(x, y, size))


def _by_ratio(methods: list[str], ends: list[float], mode: str) -> Spec:
    """Score by the share removed, for one group at a time; what would lie on each other is set side by side."""
    apart = f"min({APART}, {SPREAD} / length(shown))"
    beside = f"datum.ratio + {apart} * (indexof(shown, datum.method) - (length(shown) - 1) / 2)"
    chosen = alt.Chart(alt.NamedData("cells")).transform_filter("datum.group === group").transform_calculate(beside=beside)
    x = alt.X("beside:Q", title="share of FLOPs removed").scale(domain=ends, nice=False).axis(tickCount=5)
    y = alt.Y("score:Q", title="score (%)").scale(zero=False, padding=16)
    lines = chosen.mark_line(strokeWidth=1.2, opacity=PICKED).encode(x, y, _colour(methods, mode))
    bars = chosen.mark_rule(opacity=PICKED).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), _colour(methods, mode))
    dense = chosen.mark_rule(strokeDash=[4, 4]).encode(y=alt.Y("mean(dense):Q"))
    return _layered(mode, dense, lines, bars, _points(chosen, methods, mode).encode(x, y))


def _by_published(methods: list[str], mode: str) -> Spec:
    """Points lost by the share removed: ours of one group, and what was published of its task."""
    x = alt.X("ratio:Q", title="share of FLOPs removed").scale(zero=False, padding=20).axis(tickCount=5)
    y = alt.Y("lost:Q", title="points lost").scale(padding=16)
    ours = alt.Chart(alt.NamedData("cells")).transform_filter("datum.group === group && indexof(compared, datum.method) >= 0")
    theirs = alt.Chart(alt.NamedData("published")).transform_filter("datum.task === task")
    colour = _colour(methods, mode)
    dashed = theirs.mark_line(strokeDash=[3, 3], strokeWidth=1.2, opacity=PICKED).encode(x, y, colour, alt.Detail("series:N"))
    hollow = theirs.mark_point(filled=False, size=90, strokeWidth=1, opacity=PICKED, tooltip={"content": "data"}).encode(
        x, y, colour, _shape(methods)
    )
    lines = ours.mark_line(strokeWidth=1.2, opacity=PICKED).encode(x, y, colour)
    return _layered(mode, dashed, hollow, lines, _points(ours, methods, mode).encode(x, y))


def _by_bound(models: list[str], end: float, mode: str) -> Spec:
    """Measured speedup by the inverse of the share of FLOPs that is kept; models by colour and shape, random weights hollow."""
    chosen = alt.Chart(alt.NamedData("runs")).transform_filter("datum.machine === machine")
    colours = [_seen(list(style.COLOURS.values())[i % len(style.COLOURS)], mode) for i in range(len(models))]
    colour = alt.Color("model:N").scale(domain=models, range=colours)
    stroke = alt.Stroke("model:N").scale(domain=models, range=colours)
    shape = alt.Shape("model:N").scale(domain=models, range=[SHAPES[sign] for sign in style.VARIANTS[: len(models)]])
    hollow = alt.FillOpacityValue(1.0, condition={"test": "datum.weights === 'random'", "value": 0.0})
    x = alt.X("flops_bound:Q", title="dense FLOPs over kept FLOPs").scale(type="log", nice=False, padding=24).axis(format="~g", tickCount=5)
    y = alt.Y("speedup:Q", title="measured speedup").scale(type="log", nice=False, padding=16).axis(format="~g", tickCount=5)
    points = chosen.mark_point(filled=True, size=110, opacity=1, cursor="pointer", tooltip=alt.ExprRef("datum.facts"), strokeWidth=1.5)
    bars = chosen.mark_rule().encode(x, alt.Y("speedup_low:Q"), alt.Y2("speedup_high:Q"), colour)
    ends = alt.Chart(alt.InlineData([{"x": 1.0}, {"x": end}]))
    diagonal = ends.mark_line(strokeDash=[4, 4], color=INKS[mode], strokeWidth=1).encode(alt.X("x:Q"), alt.Y("x:Q"))
    return _layered(mode, diagonal, bars, points.encode(x, y, colour, stroke, shape, hollow))


def _points(chart: alt.Chart, methods: list[str], mode: str) -> Any:
    """Marks of methods that tell their facts and lead to their runs; hollow where the score has no rank."""
    marks = chart.mark_point(filled=True, size=110, opacity=PICKED, cursor="pointer", tooltip=alt.ExprRef("datum.facts"), strokeWidth=1.5)
    hollow = alt.FillOpacityValue(0.0, condition={"test": "datum.valid", "value": 1.0})
    colours = {"stroke": alt.Stroke("method:N", legend=None).scale(domain=methods, range=_colours(methods, mode))}
    return marks.encode(_colour(methods, mode), _shape(methods), hollow, **colours)


def _colour(methods: list[str], mode: str) -> alt.Color:
    return alt.Color("method:N", legend=None).scale(domain=methods, range=_colours(methods, mode))


def _colours(methods: list[str], mode: str) -> list[str]:
    return [_seen(style.colour(method), mode) for method in methods]


def _shape(methods: list[str]) -> alt.Shape:
    return alt.Shape("method:N", legend=None).scale(domain=methods, range=[SHAPES[style.marker(method)] for method in methods])


def _seen(colour: str, mode: str) -> str:
    """A colour as it is seen on light or on dark."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return colour if mode == "light" else "#" + "".join(f"{round(part + PALE * (255 - part)):02x}" for part in parts)


def _layered(mode: str, *layers: alt.Chart) -> Spec:
    """Layers that zoom together: by wheel or pinch with Control, so that a page still scrolls over them."""
    zoom = alt.selection_interval(name="zoom", bind="scales", zoom="wheel![event.ctrlKey || event.metaKey]")
    chart = alt.layer(*layers[:-1], layers[-1].add_params(zoom)).properties(width="container", height=340)
    return {**chart.to_dict(validate=False), "config": _config(mode)}


def _config(mode: str) -> Spec:
    """How a plot looks on the page."""
    ink, grid = INKS[mode], GRIDS[mode]
    axis = {"labelColor": ink, "titleColor": ink, "gridColor": grid, "domainColor": grid, "tickColor": grid}
    symbols = {"symbolBaseFillColor": ink, "symbolBaseStrokeColor": ink, "symbolSize": 90}
    return {
        "background": "transparent",
        "font": "system-ui, sans-serif",
        "axis": {**axis, "titleFontWeight": "normal", "labelFontSize": 11, "titleFontSize": 12},
        "legend": {"labelColor": ink, "titleColor": ink, "orient": "bottom", "title": None, "labelFontSize": 11, **symbols},
        "rule": {"color": ink},
        "view": {"stroke": None},
    }
