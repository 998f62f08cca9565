"""The report: all that the records say as one page that needs no network."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import pandas as pd
import vl_convert

from analysis import style, tables
from analysis.frame import CELL, Frame, scored
from bench.record import Record, has_random_weights, method_label, passes
from bench.show import last_line, number

Spec = dict[str, Any]
PICK = alt.selection_point(name="pick", fields=["method"], bind="legend")
NONE = "–"
UNITS = {"flops": "FLOPs", "params": "parameters"}
FILTERS = ("task", "model", "ratio", "method")
INKS = {"light": "#333333", "dark": "#d5d7da"}
GRIDS = {"light": "#e4e4e4", "dark": "#3a3d42"}
APART, SPREAD = 0.005, 0.06  # of ratio: between methods, and between the first and the last at most
MARGIN = 0.08  # of ratio, beside the lowest and the highest
PALE = 0.45  # by how much colours are mixed with white to be seen on dark
SHAPES = {  # style's markers as Vega names them, or as paths
    "s": "square",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "D": "diamond",
    "o": "circle",
    "P": "cross",
    "*": "M0,-1L0.23,-0.31L0.95,-0.31L0.36,0.12L0.59,0.81L0,0.38L-0.59,0.81L-0.36,0.12L-0.95,-0.31L-0.23,-0.31Z",
    "X": "M-0.8,-0.5L-0.5,-0.8L0,-0.3L0.5,-0.8L0.8,-0.5L0.3,0L0.8,0.5L0.5,0.8L0,0.3L-0.5,0.8L-0.8,0.5L-0.3,0Z",
    "x": "M-0.8,-0.66L-0.66,-0.8L0,-0.14L0.66,-0.8L0.8,-0.66L0.14,0L0.8,0.66L0.66,0.8L0,0.14L-0.66,0.8L-0.8,0.66L-0.14,0Z",
    "p": "M0,-0.9L0.86,-0.28L0.53,0.73L-0.53,0.73L-0.86,-0.28Z",
    "h": "M0,-0.9L0.78,-0.45L0.78,0.45L0,0.9L-0.78,0.45L-0.78,-0.45Z",
    "d": "M0,-0.9L0.5,0L0,0.9L-0.5,0Z",
    "8": "M-0.35,-0.85L0.35,-0.85L0.85,-0.35L0.85,0.35L0.35,0.85L-0.35,0.85L-0.85,0.35L-0.85,-0.35Z",
}


@dataclass(frozen=True)
class Cell:
    """What a table shows, and what it sorts by, which is None where there is nothing."""

    text: str
    value: str | float | None = None


@dataclass(frozen=True)
class Run:
    """A record as it opens below a row."""

    anchor: str
    title: str
    command: str
    configuration: str
    facts: dict[str, str]
    reason: str | None


@dataclass(frozen=True)
class Row:
    """A row of a table by its headings, and the runs that open below it; `wins`: the best of its cell beyond noise."""

    anchor: str
    cells: dict[str, Cell]
    runs: list[Run]
    wins: bool = False


@dataclass(frozen=True)
class Plot:
    """A plot without its data, for light and for dark; `words` say what is in it, by group.

    `shows`: the data and the column of it that it has a point for, where it shows one group at a time.
    """

    anchor: str
    title: str
    caption: str
    specs: dict[str, Spec]
    words: dict[str, str]
    shows: tuple[str, str] | None = None


def write(frame: Frame, machine: str, target: Path, missing: list[str]) -> None:
    """The records as one HTML file, with the timings of one machine; `missing` is what a grid has no record of."""
    timed = tables.timed(frame, machine)
    cells = _cells(frame, timed)
    runs = {str(folder): _run(frame, str(folder), i, machine) for i, folder in enumerate(frame.table.index)}
    leaderboard = list(_leaderboard(frame, cells, runs))
    shown = {run.anchor for row in leaderboard for run in row.runs}
    points = _points(frame, timed, machine)
    plots = _plots(cells, points, machine)
    page = _template().render(
        machine=machine,
        counts=_counts(frame),
        best=list(_best(cells)),
        groups=_groups(cells, points),
        plots=plots,
        specs={plot.anchor: plot.specs for plot in plots},
        data={
            "cells": _json(cells, [row.anchor for row in leaderboard]),
            "runs": _json(points, [runs[folder].anchor for folder in points.index]),
        },
        leaderboard=leaderboard,
        filters={name: _values(leaderboard, name) for name in FILTERS} if leaderboard else {},
        others=[_other(frame, folder, runs[folder], machine) for folder in _ok(frame) if runs[folder].anchor not in shown],
        failures=[_failure(frame, str(folder), runs[str(folder)]) for folder in frame.table.index[frame.table.status != "ok"]],
        software=_software(frame),
        missing=missing,
        problems=frame.problems,
        vega=_vega(),
        vega_version=vl_convert.get_vega_version(),
    )
    target.write_text(page, encoding="utf-8")


def _template() -> jinja2.Template:
    """The page; whatever is put into it is escaped."""
    here = jinja2.FileSystemLoader(Path(__file__).parent)
    templates = jinja2.Environment(loader=here, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    templates.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return templates.get_template("report.html.j2")


@cache
def _vega() -> str:
    """The scripts that draw the plots; they leave `vegaEmbed` in the window."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


# What is counted and compared


def _cells(frame: Frame, timed: pd.DataFrame) -> pd.DataFrame:
    """`tables.accuracy` with what was timed: means over the runs, and of speedups the widest interval."""
    costs = timed.groupby(CELL).agg(
        passes=("passes", "mean"),
        seconds=("seconds", "mean"),
        speedup=("speedup", "mean"),
        speedup_low=("speedup_low", "min"),
        speedup_high=("speedup_high", "max"),
    )
    scores = tables.accuracy(frame).astype({"sample": "Float64", "ratio": "Float64"})  # also where there is no row
    cells = scores.merge(costs.reset_index(), on=CELL, how="left")
    margin = cells.seeds.fillna(cells.examples).astype(float)
    found = cells.assign(group=_group_names(cells), low=cells.score - margin, high=cells.score + margin)
    return found.sort_values([*CELL[:-1], "score"], ascending=[True, True, True, True, False], ignore_index=True)


def _points(frame: Frame, timed: pd.DataFrame, machine: str) -> pd.DataFrame:
    """What the plots of runs show, all of one machine; only runs whose scores compare have a `group`."""
    table = frame.table
    found = table[(table.status == "ok") & (table.machine == machine)]
    columns = ["method", "model", "ratio", "score", "dense_score", "speedup", "speedup_low", "speedup_high", "flops_bound"]
    weights = found.random_weights.map({True: "random", False: "trained"})
    return found[columns].assign(weights=weights).join(timed[["passes", "seconds"]].assign(group=_group_names(timed)))


def _group_names(table: pd.DataFrame) -> list[str]:
    """Of rows with a task, a model and a sample."""
    return [
        f"{task}, {model}, {_tokens(sample)} tokens" for task, model, sample in zip(table.task, table.model, table["sample"], strict=True)
    ]


def _tokens(thousands: float) -> str:
    return _spaced(round(1000 * thousands))


def _spaced(count: int) -> str:
    return f"{count:,}".replace(",", "\N{NO-BREAK SPACE}")


def _counts(frame: Frame) -> dict[str, int]:
    table = frame.table
    kinds = {"tasks": "task", "models": "model", "methods": "method", "machines": "machine", "seeds": "seed"}
    return {"runs": len(table), **{name: table[column].nunique() for name, column in kinds.items()}}


def _best(cells: pd.DataFrame) -> Iterator[tuple[str, float, list[str]]]:
    """For each group its dense score and a phrase for each ratio."""
    for group, own in cells.groupby("group"):
        yield str(group), float(own.dense.mean()), [_leader(float(str(ratio)), rivals) for ratio, rivals in own.groupby("ratio")]


def _leader(ratio: float, rivals: pd.DataFrame) -> str:
    order = rivals.sort_values("score", ascending=False)
    first, score = order.iloc[0], f"{order.score.iloc[0]:.2f}"
    ties = sorted(order.method[order.score >= first.score - 1e-9])
    if len(order) == 1:
        return f"at {ratio:g} only {first.method} was run ({score})"
    if len(ties) > 1:
        return f"at {ratio:g} {', '.join(ties[:-1])} and {ties[-1]} are alike ({score})"
    if first.wins:
        return f"at {ratio:g} {first.method} is best ({score})"
    return f"at {ratio:g} {first.method} is ahead ({score}), within noise; next {order.method.iloc[1]} ({order.score.iloc[1]:.2f})"


def _groups(cells: pd.DataFrame, points: pd.DataFrame) -> list[tuple[str, int, int]]:
    """What the plots can show, with numbers of methods and of timed runs; the most timed one first."""
    timed = points.group[points.passes.notna() | points.speedup.notna()].value_counts()
    found = [(str(group), len(set(own.method)), int(timed.get(group, 0))) for group, own in cells.groupby("group")]
    return sorted(found, key=lambda entry: (-entry[2], -entry[1], entry[0]))


def _ok(frame: Frame) -> list[str]:
    return [str(folder) for folder in frame.table.index[frame.table.status == "ok"]]


def _json(table: pd.DataFrame, rows: list[str]) -> list[Any]:
    """The table for the plots, with the row of the page that a point leads to."""
    return [{**entry, "row": row} for entry, row in zip(json.loads(table.to_json(orient="records")), rows, strict=True)]


# Tables


def _values(rows: list[Row], name: str) -> list[str]:
    """What a column holds, in its order."""
    found = {row.cells[name].value: row.cells[name].text for row in rows}
    return [found[value] for value in sorted(found)]  # type: ignore[type-var]


def _leaderboard(frame: Frame, cells: pd.DataFrame, runs: dict[str, Run]) -> Iterator[Row]:
    """One row for each cell, with all its runs, whatever machine made them."""
    members = scored(frame.table).sort_values(["seed", "created"]).groupby(CELL).groups
    counted = set(tables.runs(frame).index)
    for i, row in cells.iterrows():
        own = [runs[folder] if folder in counted else _superseded(runs[folder]) for folder in members[tuple(row[CELL])]]
        yield Row(f"cell-{i}", _columns(row), own, bool(row.wins))


def _superseded(run: Run) -> Run:
    return replace(run, title=f"{run.title} (not in the score: a newer run of this seed is)")


def _columns(row: Any) -> dict[str, Cell]:
    """A row of the leaderboard; a cell that has one run has no interval over seeds."""
    speedup = _cell(row.speedup, ".2f")
    if speedup.value is not None:
        speedup = Cell(f"{speedup.text} [{row.speedup_low:.2f}, {row.speedup_high:.2f}]", speedup.value)
    return {
        "method": Cell(row.method, row.method),
        "task": Cell(row.task, row.task),
        "model": Cell(row.model, row.model),
        "tokens": Cell(_tokens(row["sample"]), row["sample"]),
        "ratio": _cell(row.ratio, "g"),
        "score": _cell(row.score, ".2f"),
        "± seeds": _cell(row.seeds, ".2f") if pd.notna(row.seeds) else Cell("1 run"),
        "± examples": _cell(row.examples, ".2f"),
        "dense": _cell(row.dense, ".2f"),
        "drop": _cell(row["lost"], ".2f"),
        "runs": _cell(row.runs, "d"),
        "passes": _cell(row.passes, ".2f"),
        "seconds": _cell(row.seconds, ".1f"),
        "speedup": speedup,
    }


def _cell(value: Any, form: str) -> Cell:
    if pd.isna(value):
        return Cell(NONE)
    return Cell(f"{value:{form}}" if form == "d" else f"{round(value, 4) + 0.0:{form}}", value)


def _other(frame: Frame, folder: str, run: Run, machine: str) -> Row:
    """A run that is not in the leaderboard, and why."""
    row: Any = frame.table.loc[folder]
    cells = {
        "method": Cell(row.method, row.method),
        "task": Cell(row.task, row.task),
        "model": Cell(row.model, row.model),
        "apart for": Cell(_apart(row), _apart(row)),
        "ratio": _cell(row.ratio, "g"),
        "seed": _cell(row.seed, "d"),
        "score": _cell(row.score, ".2f"),
        "speedup": _cell(row.speedup if row.machine == machine else None, ".2f"),
    }
    return Row(f"other-{run.anchor}", cells, [run])


def _apart(row: Any) -> str:
    """What keeps a run from comparing with the leaderboard's."""
    reasons = {
        "random weights": row.random_weights,
        row.precision: row.precision != "fp32",
        f"ratio of {row.unit}": row.unit != "flops",
        f"rounded to {row.round_to}": pd.notna(row.round_to),
        f"sampler {row['sampler']}": row["sampler"] != "tokens",
        "replayed masks": row.method == "replay",
    }
    return ", ".join(reason for reason, holds in reasons.items() if holds) or "no sample"


def _failure(frame: Frame, folder: str, run: Run) -> Row:
    row: Any = frame.table.loc[folder]
    cells = {name: Cell(str(row[name]), row[name]) for name in ("status", "method", "task", "model")}
    cells |= {"ratio": _cell(row.ratio, "g"), "seed": _cell(row.seed, "d"), "machine": Cell(row.machine, row.machine)}
    reason = last_line(run.reason) or "no reason recorded"
    return Row(f"failed-{run.anchor}", {**cells, "reason": Cell(reason, reason)}, [run])


def _software(frame: Frame) -> list[dict[str, str]]:
    """Machines with the versions that ran there, and how often."""
    rows = pd.DataFrame([_versions(entry.record) for entry in frame.stored.values()])
    if rows.empty:
        return []
    return [dict(zip([*rows, "runs"], map(str, (*key, len(own))), strict=True)) for key, own in rows.groupby(list(rows))]


def _versions(record: Record) -> dict[str, str]:
    machine, software = record["machine"], record["software"]
    parts = [machine.get("gpu"), machine.get("cpu"), f"{machine['cores']} cores" if machine.get("cores") else None]
    parts += [f"{machine['ram_gib']} GiB" if machine.get("ram_gib") else None]
    names = ("python", "torch", "transformers", "prunebench")
    hardware = ", ".join(part for part in parts if part) or NONE
    system = ", ".join(part for part in (machine.get("os"), machine.get("driver")) if part) or NONE
    return {"machine": machine["name"], "hardware": hardware, "system": system, **{name: str(software[name] or NONE) for name in names}}


# A run


def _run(frame: Frame, folder: str, position: int, machine: str) -> Run:
    record = frame.stored[folder].record
    row: Any = frame.table.loc[folder]
    title = f"{record['method']['name']}, seed {record['seed']}, {record['machine']['name']}, {record['created'][:10]}"
    timings = _timings(record, bool(row.quiet)) if row.machine == machine else {}
    facts = {name: text for name, text in {**_facts(record), **timings, **_origin(record)}.items() if text}
    return Run(f"run-{position}", title, record["command"], _configuration(record), facts, record["reason"])


def _facts(record: Record) -> dict[str, str]:
    """What was run, and what is left."""
    pruned = record["pruned"]
    metrics = (pruned["metrics"] or {}).items()
    return {
        "method": method_label(record),
        "task": record["task"],
        "model": record["model"] + " (random weights)" * has_random_weights(record),
        "removed": f"{record['ratio']:g} of the {UNITS.get(record['unit'], record['unit'])}",
        "seed": str(record["seed"]),
        "score": _number(pruned["score"], ".2f"),
        "dense score": _number(record["dense"]["score"], ".2f"),
        "metrics": ", ".join(f"{name} {value:.2f}" for name, value in metrics if value is not None) if len(metrics) > 1 else "",
        "FLOPs kept": _percent(pruned["flops_kept"]),
        "parameters kept": _percent(pruned["params_kept"]),
        "single weights kept": _percent(pruned["weights_kept"]),
        "heads left": " ".join(map(str, pruned["heads"] or [])),
        "neurons left": " ".join(map(str, pruned["neurons"] or [])),
    }


def _timings(record: Record, quiet: bool) -> dict[str, str]:
    """What pruning cost, and what it gained."""
    prune, timing = record["prune"], record["latency"]["headline"] or {}
    speedup = f"{timing['speedup']:.2f} [{timing['low']:.2f}, {timing['high']:.2f}]" if timing.get("speedup") else ""
    limits = record["latency"].get("limits") or {}
    return {
        "passes": _number(passes(record), ".2f"),
        "pruning": _number(prune["seconds"], ".1f", " s") if quiet else "not alone on the machine",
        "peak memory": _number(prune["peak_bytes"] and prune["peak_bytes"] / 1e6, ".0f", " MB"),
        "speedup": speedup and f"{speedup} at batch {timing['batch']}, {timing['length']} tokens",
        "FLOPs would allow": _number(limits.get("flops_bound"), ".2f"),
        "what limits": limits.get("verdict") or "",
        "notes": "; ".join(prune["notes"] + record["latency"]["notes"]),
    }


def _origin(record: Record) -> dict[str, str]:
    """Where, when and by what it was made."""
    calibration, software = record["calibration"], record["software"]
    return {
        "calibration": f"{_spaced(calibration['tokens'])} tokens, {calibration['examples']} examples" if calibration["tokens"] else "",
        "machine": f"{record['machine']['name']}, {record['device']}",
        "made": record["created"][:10],
        "versions": ", ".join(f"{name} {software[name]}" for name in ("python", "torch", "transformers") if software[name]),
        "commit": (software["commit"] or "")[:12] + " and changes" * bool(software["dirty"]),
    }


def _configuration(record: Record) -> str:
    """All that was set, as JSON."""
    keys = ("method", "unit", "ratio", "seed", "device", "precision", "attention", "round_to", "recover")
    found = {key: record.get(key) for key in keys}
    sample = {key: record["calibration"][key] for key in ("sampler", "tokens", "batch")}
    checkpoint = record["dense"]["checkpoint"]
    settings = {**found, "calibration": sample, "checkpoint": checkpoint, "latency": record["latency"]["plan"]}
    return json.dumps(settings, ensure_ascii=False)


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else number(value, form, unit)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


# Plots


def _plots(cells: pd.DataFrame, points: pd.DataFrame, machine: str) -> list[Plot]:
    """All that there are points for."""
    methods = sorted({*cells.method, *points.method})
    plots = []
    for column, title in (("passes", "passes over the calibration set"), ("seconds", "seconds")):
        timed = points[points.group.notna() & points[column].gt(0)]
        if len(timed):
            specs = {mode: _by_cost(column, f"pruning, {title}", methods, mode) for mode in INKS}
            caption = f"Each point is one run on {machine}, the larger the more was removed; dashed: the dense model."
            words = dict(_cost_words(timed, column))
            plots.append(Plot(f"by-{column}", f"Accuracy by pruning {column}", caption, specs, words, ("runs", column)))
    if len(cells):
        ends = [float(cells.ratio.min()) - MARGIN, float(cells.ratio.max()) + MARGIN]
        specs = {mode: _by_ratio(methods, ends, mode) for mode in INKS}
        caption = (
            "Each point is the mean over seeds, methods of a ratio side by side; bars: 95 % over seeds, or over the evaluation "
            "examples where there is one run; dashed: the dense model. Scores of all machines."
        )
        plots.append(Plot("by-ratio", "Accuracy by ratio", caption, specs, dict(_ratio_words(cells)), ("cells", "score")))
    bounded = points[points.speedup.notna() & points.flops_bound.notna()]
    if len(bounded):
        end = 1.05 * float(bounded[["flops_bound", "speedup_high"]].max().max())
        specs = {mode: _by_bound(sorted(set(bounded.model)), end, mode) for mode in INKS}
        caption = f"Each point is one run on {machine} with its 95 % interval; dashed: all that the removed FLOPs would allow."
        plots.append(Plot("by-bound", "Speedup by what the FLOPs allow", caption, specs, dict(_bound_words(bounded))))
    return plots


def _cost_words(points: pd.DataFrame, column: str) -> Iterator[tuple[str, str]]:
    for group, own in points.groupby("group"):
        runs = own.sort_values(column)
        texts = [f"{row.method} at {row.ratio:g}: {row.score:.2f} for {getattr(row, column):.3g}" for row in runs.itertuples()]
        yield str(group), "; ".join(texts)


def _ratio_words(cells: pd.DataFrame) -> Iterator[tuple[str, str]]:
    for group, own in cells.groupby("group"):
        texts = [f"{row.method} at {row.ratio:g}: {row.score:.2f}" for row in own.sort_values(["method", "ratio"]).itertuples()]
        yield str(group), f"dense {own.dense.mean():.2f}; {'; '.join(texts)}"


def _bound_words(points: pd.DataFrame) -> Iterator[tuple[str, str]]:
    for (model, weights), own in points.groupby(["model", "weights"]):
        texts = [
            f"{row.method} at {row.ratio:g}: {row.speedup:.2f} of {row.flops_bound:.2f}"
            for row in own.sort_values("flops_bound").itertuples()
        ]
        yield f"{model}, {weights} weights", "; ".join(texts)


def _by_cost(column: str, title: str, methods: list[str], mode: str) -> Spec:
    """Score by what pruning cost, for one group at a time."""
    chosen = alt.Chart(alt.NamedData("runs")).transform_filter(f"datum.group === group && datum.{column} > 0")
    x = alt.X(column, type="quantitative", title=title).scale(type="log", nice=False, padding=24).axis(format="~g", tickCount=5)
    y = _score("score")
    size = alt.Size("ratio:O", title="removed").scale(range=[70, 220])
    points = chosen.mark_point(**_point()).encode(x, y, size, *_by_method(methods, mode))
    dense = chosen.mark_rule(strokeDash=[4, 4]).encode(y=alt.Y("mean(dense_score):Q"))
    return _layered(mode, dense, points.add_params(PICK))


def _by_ratio(methods: list[str], ends: list[float], mode: str) -> Spec:
    """Score by the share removed, for one group at a time; what would lie on each other is set side by side."""
    apart = f"min({APART}, {SPREAD} / length(shown))"
    beside = f"datum.ratio + {apart} * (indexof(shown, datum.method) - (length(shown) - 1) / 2)"
    chosen = alt.Chart(alt.NamedData("cells")).transform_filter("datum.group === group").transform_calculate(beside=beside)
    x = alt.X("beside:Q", title="share of FLOPs removed").scale(domain=ends, nice=False).axis(tickCount=5)
    colour, shape, picked = _by_method(methods, mode)
    points = chosen.mark_point(**_point()).encode(x, _score("score"), colour, shape, picked)
    lines = chosen.mark_line(strokeWidth=1.2).encode(x, _score("score"), colour, picked)
    bars = chosen.mark_rule().encode(x, _score("low"), alt.Y2("high:Q"), colour, picked)
    dense = chosen.mark_rule(strokeDash=[4, 4]).encode(y=alt.Y("mean(dense):Q"))
    return _layered(mode, dense, lines, bars, points.add_params(PICK))


def _by_bound(models: list[str], end: float, mode: str) -> Spec:
    """Measured speedup by the inverse of the share of FLOPs that is kept."""
    chosen = alt.Chart(alt.NamedData("runs")).transform_filter("isValid(datum.speedup) && isValid(datum.flops_bound)")
    colours = [_seen(list(style.COLOURS.values())[i % len(style.COLOURS)], mode) for i in range(len(models))]
    colour = alt.Color("model:N").scale(domain=models, range=colours)
    shape = alt.Shape("weights:N").scale(domain=["trained", "random"], range=["circle", "triangle-up"])
    x = alt.X("flops_bound:Q", title="dense FLOPs over kept FLOPs").scale(type="log", nice=False, padding=24).axis(format="~g", tickCount=5)
    y = alt.Y("speedup:Q", title="measured speedup").scale(type="log", nice=False, padding=16).axis(format="~g", tickCount=5)
    points = chosen.mark_point(**_point()).encode(x, y, colour, shape)
    bars = chosen.mark_rule().encode(x, alt.Y("speedup_low:Q"), alt.Y2("speedup_high:Q"), colour)
    ends = alt.Chart(alt.InlineData([{"x": 1.0}, {"x": end}]))
    diagonal = ends.mark_line(strokeDash=[4, 4], color=INKS[mode], strokeWidth=1).encode(alt.X("x:Q"), alt.Y("x:Q"))
    return _layered(mode, diagonal, bars, points)


def _point() -> dict[str, Any]:
    return {"filled": True, "size": 110, "opacity": 1, "cursor": "pointer", "tooltip": alt.ExprRef("datum.facts")}


def _score(column: str) -> alt.Y:
    return alt.Y(column, type="quantitative", title="score (%)").scale(zero=False, padding=16)


def _by_method(methods: list[str], mode: str) -> list[Any]:
    """Colour and marker of a method, as everywhere; a legend of those that are shown, where one can be picked to stand out."""
    legend = alt.Legend(values=alt.ExprRef("shown"))
    colours = [_seen(style.colour(method), mode) for method in methods]
    shapes = [SHAPES[style.marker(method)] for method in methods]
    colour = alt.Color("method:N", legend=legend).scale(domain=methods, range=colours)
    picked = alt.OpacityValue(0.1, condition={"param": PICK.name, "value": 1})
    return [colour, alt.Shape("method:N", legend=legend).scale(domain=methods, range=shapes), picked]


def _seen(colour: str, mode: str) -> str:
    """A colour as it is seen on light or on dark."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return colour if mode == "light" else "#" + "".join(f"{round(part + PALE * (255 - part)):02x}" for part in parts)


def _layered(mode: str, *layers: alt.Chart) -> Spec:
    """Layers that zoom together: by wheel or pinch with Control, so that a page still scrolls over them."""
    zoom = alt.selection_interval(name="zoom", bind="scales", zoom="wheel![event.ctrlKey || event.metaKey]")
    chart = alt.layer(*layers[:-1], layers[-1].add_params(zoom)).properties(width="container", height=340)
    return {**chart.to_dict(), "config": _config(mode)}


def _config(mode: str) -> Spec:
    """How a plot looks on the page."""
    ink, grid = INKS[mode], GRIDS[mode]
    return {
        "background": "transparent",
        "font": "system-ui, sans-serif",
        "axis": {
            "labelColor": ink,
            "titleColor": ink,
            "gridColor": grid,
            "domainColor": grid,
            "tickColor": grid,
            "titleFontWeight": "normal",
            "labelFontSize": 11,
            "titleFontSize": 12,
        },
        "legend": {
            "labelColor": ink,
            "titleColor": ink,
            "orient": "bottom",
            "title": None,
            "symbolBaseFillColor": ink,
            "symbolBaseStrokeColor": ink,
            "symbolSize": 90,
            "labelFontSize": 11,
        },
        "rule": {"color": ink},
        "view": {"stroke": None},
    }
