"""Figures from records, each with the caption that says what is in it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import published, style, tables
from analysis.frame import Frame

MOST_PANELS = 9
SEEN = 0.01  # of a bar: what is too short to be seen is not drawn


@dataclass(frozen=True)
class Drawn:
    """A figure, its file name and its caption."""

    name: str
    figure: Figure
    caption: str


def accuracy_against_time(frame: Frame, machine: str) -> Drawn | None:
    """Score by seconds of pruning (log), one panel for each model, task and ratio; the published score as a line, since its
    pruning time was never published."""
    found = tables.runs(frame, machine)
    found = found[found.quiet & found.seconds.gt(0)]
    groups = _groups(found, ["model", "task", "sample", "ratio"], least=2)
    if not groups:
        return None
    figure, axes = style.panels(len(groups))
    for one, (key, group) in zip(axes, groups, strict=True):
        for method, own in group.groupby("method"):
            one.plot(own.seconds, own.score, linestyle="", label=method, **style.point(str(method)))
        style.dense_line(one, group.dense_score.iloc[0])
        points = published.curves(str(key[1]), "kprune")
        for score in points[np.isclose(points.ratio_removed.astype(float), key[3])].score:
            one.axhline(score, color=style.colour("kprune"), linewidth=1, linestyle="--", label="K-prune on BERT-base, published")
        one.set(
            xscale="log",
            xlabel="seconds of pruning",
            ylabel=_score_label(group),
            title=f"{_title(key[:3])}\n{100 * key[3]:g} % of the FLOPs removed",
        )
        style.plain_log(one.xaxis)
    style.legend_below(figure, axes)
    return Drawn(
        "accuracy-against-time",
        figure,
        f"Score by pruning time on {machine}, runs that had the machine for themselves. "
        "Dashed: as published for K-prune (Park et al., ICLR 2024, Fig. 2 of arXiv v1, digitised), whose pruning time is not published.",
    )


def accuracy_against_ratio(frame: Frame) -> Drawn | None:
    """Score by the share of FLOPs removed with intervals, one panel for each task, model and sample; published curves hollow."""
    cells = tables.accuracy(frame)
    groups = _groups(cells, ["model", "task", "sample"], least=2)
    if not groups:
        return None
    figure, axes = style.panels(len(groups))
    for one, (key, group) in zip(axes, groups, strict=True):
        for method, own in group[~group.method.str.contains(r"^(?:kprune|kwon|kcm)-")].groupby("method"):
            _curve(one, str(method), own)
        for method in ("kprune", "kwon", "kcm"):
            options: dict[str, Any] = {**style.point(method), "markerfacecolor": "none", "linewidth": 0.8, "linestyle": ":", "alpha": 0.8}
            for paper, rows in published.curves(str(key[1]), method).groupby("paper"):
                points = rows.sort_values("ratio_removed")
                source = "" if method == "kprune" or str(paper).startswith("K-prune") else ", its own paper"
                one.plot(points.ratio_removed, points.score, label=f"{method}, published{source}", **options)
        style.dense_line(one, group.dense.iloc[0])
        one.set(xlabel="share of FLOPs removed", ylabel="score", title=_title(key))
    style.legend_below(figure, axes)
    return Drawn(
        "accuracy-against-ratio",
        figure,
        "Score by the share of FLOPs removed; bars: 95 % over seeds, or over the evaluation examples where there is one run. "
        "Hollow: published for BERT-base by K-prune's authors, theirs and the others as run by them (ICLR 2024, Fig. 2 of arXiv v1, "
        "digitised).",
    )


def speedup_against_accuracy(frame: Frame, machine: str) -> Drawn | None:
    """Score by measured speedup, one panel for each task and model, with the Pareto front."""
    found = tables.runs(frame, machine)
    groups = _groups(found[found.speedup.notna() & found.quiet], ["model", "task", "sample"], least=2)
    if not groups:
        return None
    figure, axes = style.panels(len(groups))
    for one, (key, group) in zip(axes, groups, strict=True):
        for method, own in group.groupby("method"):
            error = [own.speedup - own.speedup_low, own.speedup_high - own.speedup]
            one.errorbar(own.speedup, own.score, xerr=error, linestyle="", label=method, **style.BARS, **style.point(str(method)))
        front = pareto(group.speedup.to_numpy(float), group.score.to_numpy(float))
        one.step(group.speedup.iloc[front], group.score.iloc[front], where="pre", color="#222222", linewidth=0.8, label="Pareto front")
        style.dense_line(one, group.dense_score.iloc[0])
        one.set(xlabel="measured speedup", ylabel=_score_label(group), title=_title(key))
    style.legend_below(figure, axes)
    where = _where(found)
    return Drawn(
        "speedup-against-accuracy",
        figure,
        f"Score by measured speedup on {machine}{where}, with 95 % intervals; the line joins what nothing beats in both.",
    )


def accuracy_against_weights(frame: Frame, machine: str) -> Drawn | None:
    """Score by the share of single weights removed with intervals, one panel for each task and model; published points hollow."""
    cells = tables.weights(frame, machine)
    groups = _groups(cells, ["model", "task"], least=2) if len(cells) else []
    if not groups:
        return None
    figure, axes = style.panels(len(groups), width=5.2, height=3.4)
    for one, (key, group) in zip(axes, groups, strict=True):
        for method, own in group.groupby("method"):
            _curve(one, str(method), own)
        for (theirs, variant), rows in published.of_weights(str(key[1])).groupby(["method", "variant"]):
            points = rows.sort_values("ratio_removed")
            options: dict[str, Any] = {"marker": "o", "markersize": 4, "markerfacecolor": "none", "linewidth": 0.8, "linestyle": ":"}
            one.plot(points.ratio_removed, points.score, label=f"{theirs} ({str(variant).split(',')[0]}), published", **options)
        style.dense_line(one, group.dense.iloc[0])
        one.set(xlabel="share of the layers' weights removed", ylabel="score", title=f"{key[1]}, {key[0]}")
    style.legend_below(figure, axes, 3)
    caption = (
        "Score by the share of single weights removed (unstructured, no speedup in dense kernels); bars: 95 % over seeds, or over the "
        "evaluation examples where there is one run. Hollow, where there are any: published for BERT-base (SMP, Jiang et al., ACL 2023)."
    )
    return Drawn("accuracy-against-weights", figure, caption)


def pareto(speedup: np.ndarray, score: np.ndarray) -> list[int]:
    """Positions of the points that no other is at least as good as in both and better in one, by rising speedup."""
    front: list[int] = []
    for i in sorted(range(len(speedup)), key=lambda i: (-speedup[i], -score[i])):
        if not front or score[i] > score[front[-1]]:
            front.append(i)
    return front[::-1]


def speedup_against_bound(frame: Frame, machine: str) -> Drawn | None:
    """Measured speedup by what the removed FLOPs would allow, random weights included."""
    table = frame.table
    undisturbed = (table.status == "ok") & (table.machine == machine) & table.quiet
    found = table[undisturbed & table.speedup.notna() & table.flops_bound.notna()]
    if found.empty:
        return None
    figure, (axes,) = style.panels(1, width=5.4, height=3.6)
    for (model, random), own in found.groupby(["model", "random_weights"]):
        error = [own.speedup - own.speedup_low, own.speedup_high - own.speedup]
        number = sorted(found.model.unique()).index(model)
        axes.errorbar(
            own.flops_bound, own.speedup, yerr=error, linestyle="", marker=style.VARIANTS[number], **style.BARS,
            color=list(style.COLOURS.values())[number], markerfacecolor="none" if random else None,
            label=f"{model}{' (random weights)' if random else ''}",
        )  # fmt: skip
    ends = [1.0, float(found.flops_bound.max()) * 1.1]
    axes.plot(ends, ends, color="#222222", linewidth=0.8, linestyle=":", label="all that FLOPs allow")
    axes.set(xscale="log", yscale="log", xlabel="dense FLOPs over kept FLOPs", ylabel="measured speedup")
    style.plain_log(axes.xaxis)
    style.plain_log(axes.yaxis)
    style.legend_below(figure, [axes], 2)
    return Drawn(
        "speedup-against-bound",
        figure,
        f"Measured speedup by what the removed FLOPs allow, on {machine}{_where(found)}, with 95 % intervals.",
    )


def kept_units(frame: Frame) -> Drawn | None:
    """Heads and neurons that are left in each layer, a row for each method; the task, model and ratio with the most methods."""
    found = tables.runs(frame)
    groups = found.groupby(["model", "task", "sample", "ratio"])
    if not len(groups):
        return None
    (model, task, _, ratio), group = _largest(groups)
    methods = sorted(group.method.unique())
    shares = {kind: np.array([_share(frame, group[group.method == method], kind) for method in methods]) for kind in ("heads", "neurons")}
    figure, axes = style.panels(2, width=0.32 * shares["heads"].shape[1] + 2.0, height=0.24 * len(methods) + 1.0)
    for one, (kind, share) in zip(axes, shares.items(), strict=True):
        image = one.imshow(share, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        one.set(title=kind, xlabel="layer", yticks=range(len(methods)), xticks=range(share.shape[1]))
        one.set_yticklabels(methods if one is axes[0] else [])
        one.grid(visible=False)
        for (y, x), value in np.ndenumerate(share):
            one.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=6, color="white" if value < 0.6 else "black")
    figure.colorbar(image, ax=axes, label="share kept", shrink=0.8)
    removed = f"{100 * ratio:g} % of the FLOPs removed"
    caption = f"Percent of heads and neurons that are left in each layer, mean over seeds: {model}, {task}, {removed}."
    return Drawn("kept-units", figure, caption)


def _largest(groups: Any) -> tuple[Any, pd.DataFrame]:
    """The group with the most methods; of equals that with the highest ratio."""
    return max(groups, key=lambda pair: (pair[1].method.nunique(), pair[0][3]))  # type: ignore[no-any-return]


def _share(frame: Frame, group: pd.DataFrame, kind: str) -> Any:
    return np.mean([(frame.arrays(folder)[kind] != 0).mean(1) for folder in group.index], axis=0)


def stages(frame: Frame, machine: str) -> Drawn | None:
    """Passes by stage for every method of the task, model and ratio with the most methods on a machine."""
    found = tables.timed(frame, machine)
    groups = found[found.passes.gt(0.02).fillna(False)].groupby(["model", "task", "sample", "ratio"])
    if not len(groups):
        return None
    (model, task, _, ratio), group = _largest(groups)
    prunes = {method: frame.stored[own.index[0]].record["prune"] for method, own in group.groupby("method")}
    order = sorted(prunes, key=lambda method: prunes[method]["passes"])
    spent = [(name, seconds / prunes[method]["seconds"]) for method in order for name, seconds in (prunes[method]["stages"] or {}).items()]
    names = list(dict.fromkeys(name for name, share in spent if share >= SEEN))
    figure, (axes,) = style.panels(1, width=5.6, height=0.3 * len(order) + 1.0)
    left = np.zeros(len(order))
    for i, name in enumerate(names):
        width = np.array([(prunes[method]["stages"] or {}).get(name, 0.0) / prunes[method]["pass_seconds"] for method in order])
        axes.barh(order, width, left=left, label=name, color=list(style.COLOURS.values())[i % 12], edgecolor="white", linewidth=0.5)
        left += width
    axes.set(xlabel="passes over the calibration set")
    style.legend_below(figure, [axes], 4)
    caption = (
        f"Pruning time by stage, in forward and backward passes of the dense model over the calibration set: {model}, {task}, "
        f"{100 * ratio:g} % of the FLOPs removed, {machine}, one run each; methods under 0.02 passes are left out."
    )
    return Drawn("stages", figure, caption)


def all_figures(frame: Frame, machine: str) -> Iterator[Drawn]:
    """Every figure that the records suffice for."""
    for draw in FIGURES:
        drawn = draw(frame, machine)
        if drawn:
            yield drawn


FIGURES: tuple[Callable[[Frame, str], Drawn | None], ...] = (
    accuracy_against_time,
    lambda frame, _: accuracy_against_ratio(frame),
    speedup_against_accuracy,
    speedup_against_bound,
    accuracy_against_weights,
    lambda frame, _: kept_units(frame),
    stages,
)


def _groups(found: pd.DataFrame, keys: list[str], least: int = 1) -> list[tuple[Any, pd.DataFrame]]:
    """The groups with at least so many rows, the largest nine in the order of their keys."""
    groups = [(key, group) for key, group in found.groupby(keys) if len(group) >= least]
    largest = sorted(groups, key=lambda pair: -len(pair[1]))[:MOST_PANELS]
    return sorted(largest, key=lambda pair: pair[0])


def _curve(axes: Any, method: str, own: pd.DataFrame) -> None:
    """A method's scores by what was removed, with the interval over seeds, or over examples where there is one run."""
    own = own.sort_values("ratio")
    error = own.seeds.fillna(own.examples).astype(float)
    axes.errorbar(own.ratio, own.score, yerr=error, label=method, linewidth=1.2, **style.BARS, **style.point(method))


def _title(key: Any) -> str:
    model, task, sample = key
    return f"{task}, {model}" + ("" if sample == 100 else f", {sample:.0f} 000 tokens")


def _score_label(group: pd.DataFrame) -> str:
    names = [str(name) for name in group.score_name.dropna().unique()]
    return names[0] if len(names) == 1 else "score"


def _where(found: pd.DataFrame) -> str:
    """At which batch and length, where that is one."""
    points = {(batch, length) for batch, length in zip(found.timed_batch.dropna(), found.timed_length.dropna(), strict=True)}
    return " at batch {} and {} tokens".format(*points.pop()) if len(points) == 1 else ""
