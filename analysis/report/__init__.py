"""The report: all that the records say as one page that needs no network."""

from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

import jinja2
import pandas as pd
import vl_convert

from analysis.frame import Frame
from analysis.report import data, rows, summary
from analysis.report.plots import legend, plots
from analysis.report.runs import Run, run_of
from bench.files import cache_folder, keep_file

FILTERS = ("task", "model", "ratio", "method")


def write(frame: Frame, machine: str, target: Path, missing: list[str]) -> None:
    """The records as one HTML file that shows the timings of `machine` first; `missing` is what a grid has no record of."""
    runs = {str(folder): run_of(frame, str(folder), i) for i, folder in enumerate(frame.table.index)}
    cells = data.cells(frame)
    costs = data.costs(frame, cells)
    leaderboard = list(rows.leaderboard(frame, cells, costs[costs.machine == machine], runs))
    drawn = plots(cells, costs, data.points(frame), data.published(cells))
    page = _template("page.html.j2").render(
        machine=machine,
        machines=sorted(set(frame.table.machine), key=lambda name: (name != machine, name)),
        counts=summary.counts(frame),
        best=list(summary.best(cells)),
        nothing=summary.nothing(frame),
        groups=data.groups(cells, costs),
        matrix=rows.matrix(cells),
        legend=legend(cells),
        plots=drawn,
        specs={plot.anchor: plot.specs for plot in drawn},
        data=_plotted(frame, cells, costs, runs),
        timings=rows.timings(costs),
        leaderboard=leaderboard,
        filters={name: rows.values(leaderboard, name) for name in FILTERS} if leaderboard else {},
        published=[rows.published(i, row) for i, row in data.comparison(frame).iterrows()],
        others=rows.others(frame, runs, leaderboard),
        failures=rows.failures(frame, runs),
        software=summary.software(frame),
        missing=missing,
        problems=frame.problems,
        vega=_vega(),
        vega_version=vl_convert.get_vega_version(),
    )
    target.write_text(page, encoding="utf-8")


def _plotted(frame: Frame, cells: pd.DataFrame, costs: pd.DataFrame, runs: dict[str, Run]) -> dict[str, list[data.Point]]:
    """The tables that plots draw, by name; `row`: what a point leads to."""
    points = data.points(frame)
    return {
        "cells": data.records(cells.assign(row=cells.anchor)),
        "costs": data.records(costs.assign(row=costs.anchor)),
        "runs": data.records(points.assign(row=[runs[folder].anchor for folder in points.index])),
        "published": data.records(data.published(cells)),
    }


def _template(name: str) -> jinja2.Template:
    """Whatever is put into the page is escaped."""
    here = jinja2.FileSystemLoader(Path(__file__).parent)
    templates = jinja2.Environment(loader=here, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    templates.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return templates.get_template(name)


@cache
def _vega() -> str:
    """The scripts that draw the plots; they leave `vegaEmbed` in the window. Bundling takes seconds, so the cache keeps them."""
    kept = cache_folder() / "vega" / f"{version('vl-convert-python')}.js"
    with suppress(OSError):
        return kept.read_text(encoding="utf-8")
    scripts = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    with suppress(OSError):
        keep_file(kept, lambda file: file.write(scripts.encode()))
    return scripts
