"""Figures from records, each with the caption that says what is in it."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from analysis import published, style, tables
from analysis.dots import LIKE_BERT, ablations, points_lost
from analysis.frame import Frame
from analysis.style import Drawn

MOST_PANELS = 9
LEAST = 3  # points of a panel, ratios of a curve
SEEN = 0.01  # of a bar: what is too short to be seen is not drawn


def accuracy_against_time(frame: Frame, machine: str) -> Drawn | None:
    """Score by seconds of pruning (log), one panel for each model, task and ratio; the published score as a line, since its
    pruning time was never published."""
    found = _no_variants(tables.runs(frame, machine))
    groups = _groups(found[found.quiet & found.seconds.gt(0)], ["model", "task", "sample", "ratio"])
    if not groups:
        return None
    figure, axes = style.panels(len(groups))
    for one, (key, group) in zip(axes, groups, strict=True):
        for method, own in group.groupby("method"):
            one.plot(own.seconds, own.score, linestyle="", label=style.name(str(method)), **style.point(str(method)))
        _ends(one, group.dense_score, group.trivial)
        for score in _published(key[0], key[1], "kprune", key[3]).score:
            one.axhline(score, color=style.colour("kprune"), linewidth=1, linestyle="--", label="K-prune on BERT-base, published")
        title = f"{_title(key[:3])}, {100 * key[3]:g} % removed"
        one.set(xscale="log", xlabel="seconds of pruning", ylabel=_score_label(group), title=title)
    _same_log_axis(axes)
    style.legend_below(figure, axes)
    return Drawn(
        "accuracy-against-time",
        figure,
        f"Score by pruning time on {machine}, runs that had the machine for themselves, one point a run; ablations are left out. "
        "Dashed, beside models of BERT-base's shape: as published for K-prune (Park et al., ICLR 2024, Fig. 2 of arXiv v1, digitised), "
        "whose pruning time is not published.",
    )


def _same_log_axis(axes: list[Any]) -> None:
    """The same logarithmic x axis for all panels, so that one can be read against another."""
    ends = np.array([one.get_xlim() for one in axes])
    for one in axes:
        one.set_xlim(ends.min(), ends.max())
        style.plain_log(one.xaxis)


def accuracy_against_ratio(frame: Frame, _: str) -> Drawn | None:
    """Score by the share of FLOPs removed with intervals, one panel for each task, model and sample of three ratios or more;
    published curves hollow."""
    cells = _no_variants(tables.accuracy(frame))
    groups = _groups(cells, ["model", "task", "sample"], of="ratio")
    if not groups:
        return None
    figure, axes = style.panels(len(groups))
    for one, (key, group) in zip(axes, groups, strict=True):
        for method, own in group.groupby("method"):
            _curve(one, str(method), own)
        for method in published.METHODS:
            _published_curve(one, _published(key[0], key[1], method), method)
        _ends(one, group.dense, group.trivial)
        one.set(xlabel="share of FLOPs removed", ylabel="score", title=_title(key))
    style.legend_below(figure, axes)
    return Drawn(
        "accuracy-against-ratio",
        figure,
        "Score by the share of FLOPs removed; bars: 95 % over seeds, or over the evaluation examples where there is one run; ablations "
        "are left out. Hollow, beside models of BERT-base's shape: published for BERT-base by K-prune's authors, theirs and the others "
        "as run by them (ICLR 2024, Fig. 2 of arXiv v1, digitised).",
    )


def _published(model: str, task: str, method: str, ratio: float | None = None) -> pd.DataFrame:
    """What was published for BERT-base, at one ratio or all; nothing beside a model of another shape."""
    points = published.curves(task, method)
    at = points.ratio_removed.astype(float)
    return points[(model in LIKE_BERT) & (np.isclose(at, at if ratio is None else ratio))]


def _published_curve(axes: Any, points: pd.DataFrame, method: str) -> None:
    options: dict[str, Any] = {**style.point(method), "markerfacecolor": "none", "linewidth": 0.8, "linestyle": ":"}
    for paper, rows in points.sort_values("ratio_removed").groupby("paper"):
        source = "" if method == "kprune" or str(paper).startswith("K-prune") else ", its own paper"
        axes.plot(rows.ratio_removed, rows.score, label=f"{style.name(method)}, published{source}", **options)


def speedup_against_accuracy(frame: Frame, machine: str) -> Drawn | None:
    """Score by measured speedup, one panel for each task and model, with the Pareto front."""
    found = _no_variants(tables.runs(frame, machine))
    groups = _groups(found[found.speedup.notna() & found.quiet], ["model", "task", "sample"])
    if not groups:
        return None
    figure, axes = style.panels(len(groups), height=2.9)
    for one, (key, group) in zip(axes, groups, strict=True):
        for method, own in group.groupby("method"):
            error = [own.speedup - own.speedup_low, own.speedup_high - own.speedup]
            options = style.BARS | style.point(str(method))
            one.errorbar(own.speedup, own.score, xerr=error, linestyle="", label=style.name(str(method)), **options)
        front = pareto(group.speedup.to_numpy(float), group.score.to_numpy(float))
        one.step(group.speedup.iloc[front], group.score.iloc[front], where="pre", color=style.DARK, linewidth=0.8, label="Pareto front")
        _ends(one, group.dense_score, group.trivial)
        one.set(xlabel="measured speedup", ylabel=_score_label(group), title=_title(key))
    style.legend_below(figure, axes)
    where = _where(found)
    return Drawn(
        "speedup-against-accuracy",
        figure,
        f"Score by measured speedup on {machine}{where}, with 95 % intervals; the line joins what nothing beats in both; "
        "ablations are left out.",
    )


def accuracy_against_weights(frame: Frame, machine: str) -> Drawn | None:
    """Score by the share of single weights removed with intervals, one panel for each task and model of three ratios or more."""
    cells = tables.weights(frame, machine)
    groups = _groups(cells, ["model", "task"], of="ratio") if len(cells) else []
    if not groups:
        return None
    figure, axes = style.panels(len(groups), width=5.2, height=3.4)
    for one, ((model, task), group) in zip(axes, groups, strict=True):
        methods = list(dict.fromkeys(group.method))
        for i, method in enumerate(methods):
            _curve(one, method, group[group.method == method], shift=0.008 * (i - (len(methods) - 1) / 2))
        if model in LIKE_BERT:
            _published_weights(one, task)
        same = frame.table[(frame.table.task == task) & (frame.table.model == model)]
        _ends(one, group.dense, same.trivial.dropna())
        one.set(xlabel="share of the layers' weights removed", ylabel="score", title=_title((model, task, 100)))
        one.set_xticks(sorted(group.ratio.unique()))
    style.legend_below(figure, axes, 3)
    caption = (
        "Score by the share of single weights removed (unstructured, no speedup in dense kernels); points of one share stand a little "
        "apart, so that all are seen; bars: 95 % over seeds, or over the evaluation examples where there is one run. Hollow, beside models "
        "of BERT-base's shape: published for BERT-base (SMP, Jiang et al., ACL 2023)."
    )
    return Drawn("accuracy-against-weights", figure, caption)


def _published_weights(axes: Any, task: str) -> None:
    options: dict[str, Any] = {"marker": "o", "markersize": 4, "markerfacecolor": "none", "linewidth": 0.8, "linestyle": ":"}
    for (method, variant), rows in published.of_weights(task).sort_values("ratio_removed").groupby(["method", "variant"]):
        axes.plot(rows.ratio_removed, rows.score, label=f"{method} ({str(variant).split(',')[0]}), published", **options)


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
            label=f"{style.name(str(model))}{' (random weights)' if random else ''}",
        )  # fmt: skip
    ends = [1.0, float(found.flops_bound.max()) * 1.1]
    axes.plot(ends, ends, color=style.DARK, linewidth=0.8, linestyle=":", label="all that FLOPs allow")
    axes.set(xscale="log", yscale="log", xlabel="dense FLOPs over kept FLOPs", ylabel="measured speedup")
    style.plain_log(axes.xaxis)
    style.plain_log(axes.yaxis)
    style.legend_below(figure, [axes], 2)
    return Drawn(
        "speedup-against-bound",
        figure,
        f"Measured speedup by what the removed FLOPs allow, on {machine}{_where(found)}, with 95 % intervals.",
    )


def kept_units(frame: Frame, _: str) -> Drawn | None:
    """Heads and neurons that are left in each layer, a row for each method that chooses; the task, model and ratio with the most."""
    groups = _no_variants(tables.runs(frame)).groupby(["model", "task", "sample", "ratio"])
    if not len(groups):
        return None
    (model, task, _, ratio), group = _largest(groups)
    shares = {str(method): [_share(frame, own, kind) for kind in ("heads", "neurons")] for method, own in group.groupby("method")}
    chosen = {method: kinds for method, kinds in shares.items() if any(np.ptp(share) > 0 for share in kinds)} or shares
    layers = len(next(iter(chosen.values()))[0])
    figure, axes = style.panels(2, width=0.32 * layers + 2.0, height=0.24 * len(chosen) + 1.0)
    for one, kind, share in zip(axes, ("heads", "neurons"), zip(*chosen.values(), strict=True), strict=True):
        image = _heat(one, np.array(share), kind)
    axes[0].set_yticklabels([style.name(method) for method in chosen])
    figure.colorbar(image, ax=axes, label="share kept", shrink=0.8)
    rest = ", ".join(style.name(method) for method in shares if method not in chosen)
    where = f"{style.name(str(model))}, {_task(str(task))}, {100 * ratio:g} % of the FLOPs removed"
    caption = f"Percent of heads and neurons that are left in each layer, mean over seeds: {where}."
    return Drawn("kept-units", figure, caption + (f" The same share of every layer is left by {rest}." if rest else ""))


def _heat(axes: Any, share: np.ndarray, title: str) -> Any:
    """Methods by layers, each share as a number on its colour."""
    image = axes.imshow(share, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    axes.set(title=title, xlabel="layer", yticks=range(len(share)), yticklabels=[], xticks=range(share.shape[1]))
    axes.grid(visible=False)
    for (y, x), value in np.ndenumerate(share):
        axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color="white" if value < 0.6 else "black")
    return image


def _largest(groups: Any) -> tuple[Any, pd.DataFrame]:
    """The group with the most methods; of equals that with the highest ratio."""
    return max(groups, key=lambda pair: (pair[1].method.nunique(), pair[0][3]))  # type: ignore[no-any-return]


def _share(frame: Frame, group: pd.DataFrame, kind: str) -> Any:
    return np.mean([(frame.arrays(folder)[kind] != 0).mean(1) for folder in group.index], axis=0)


def stages(frame: Frame, machine: str) -> Drawn | None:
    """Passes by stage for every method of the task, model and ratio with the most methods on a machine."""
    found = _no_variants(tables.timed(frame, machine))
    groups = found[found.passes.gt(0.02).fillna(False)].groupby(["model", "task", "sample", "ratio"])
    if not len(groups):
        return None
    (model, task, _, ratio), group = _largest(groups)
    passes = {str(method): _passes(frame.stored[own.index[0]].record["prune"]) for method, own in group.groupby("method")}
    order = sorted(passes, key=lambda method: sum(passes[method].values()))
    names = list(dict.fromkeys(name for method in order for name, spent in passes[method].items() if spent >= SEEN))
    figure, (axes,) = style.panels(1, width=style.SHEET, height=0.3 * len(order) + 1.0)
    left = np.zeros(len(order))
    for i, name in enumerate(names):
        width = np.array([passes[method].get(name, 0.0) for method in order])
        options = {"color": list(style.COLOURS.values())[i % 12], "hatch": style.HATCHES[i % len(style.HATCHES)]}
        axes.barh(order, width, left=left, label=name, edgecolor="white", linewidth=0.5, **options)
        left += width
    for y, total in enumerate(left):
        axes.annotate(f"{total:.1f}", (total, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set(xlabel="passes over the calibration set", xlim=(0, 1.06 * left.max()))
    axes.set_yticks(range(len(order)), [style.name(method) for method in order])
    axes.grid(visible=False, axis="y")
    style.legend_below(figure, [axes])
    caption = (
        f"Pruning time by stage, in forward and backward passes of the dense model over the calibration set: {style.name(model)}, "
        f"{_task(task)}, {100 * ratio:g} % of the FLOPs removed, {machine}, one run each; methods under 0.02 passes and ablations "
        "are left out."
    )
    return Drawn("stages", figure, caption)


def _passes(prune: dict[str, Any]) -> dict[str, float]:
    """A record's passes by stage."""
    return {name: seconds / prune["pass_seconds"] for name, seconds in (prune["stages"] or {}).items()}


def all_figures(frame: Frame, machine: str) -> Iterator[Drawn]:
    """Every figure that the records suffice for."""
    for draw in FIGURES:
        drawn = draw(frame, machine)
        if drawn:
            yield drawn


FIGURES: tuple[Callable[[Frame, str], Drawn | None], ...] = (
    points_lost,
    ablations,
    accuracy_against_time,
    accuracy_against_ratio,
    speedup_against_accuracy,
    speedup_against_bound,
    accuracy_against_weights,
    kept_units,
    stages,
)


def _no_variants(found: pd.DataFrame) -> pd.DataFrame:
    """Without ablations and settings, which have a figure of their own."""
    return found[~found.method.map(style.is_variant).astype(bool)]


def _groups(found: pd.DataFrame, keys: list[str], of: str = "method") -> list[tuple[Any, pd.DataFrame]]:
    """The groups with at least three methods, or ratios, the largest nine in the order of their keys."""
    groups = [(key, group) for key, group in found.groupby(keys) if group[of].nunique() >= LEAST]
    largest = sorted(groups, key=lambda pair: -len(pair[1]))[:MOST_PANELS]
    return sorted(largest, key=lambda pair: pair[0])


def _curve(axes: Any, method: str, own: pd.DataFrame, shift: float = 0.0) -> None:
    """A method's scores by what was removed, with the interval over seeds, or over examples where there is one run; a line through
    three points or more."""
    own = own.sort_values("ratio")
    error = own.seeds.fillna(own.examples).astype(float)
    line = {"linestyle": "-" if len(own) >= LEAST else "", "linewidth": 1.2}
    axes.errorbar(own.ratio + shift, own.score, yerr=error, label=style.name(method), **line, **style.BARS, **style.point(method))


def _ends(axes: Any, dense: pd.Series, trivial: pd.Series) -> None:
    """The scores of the dense model and of a trivial answer."""
    style.dense_line(axes, dense.iloc[0])
    if len(trivial) and not pd.isna(trivial.iloc[0]):
        style.chance_line(axes, trivial.iloc[0])


def _task(task: str) -> str:
    return published.TASKS.get(task, task)


def _title(key: Any) -> str:
    model, task, sample = key
    return f"{_task(task)}, {style.name(model)}" + ("" if sample == 100 else f", {sample:.0f} 000 tokens")


def _score_label(group: pd.DataFrame) -> str:
    names = [str(name) for name in group.score_name.dropna().unique()]
    return names[0] if len(names) == 1 else "score"


def _where(found: pd.DataFrame) -> str:
    """At which batch and length, where that is one."""
    points = {(batch, length) for batch, length in zip(found.timed_batch.dropna(), found.timed_length.dropna(), strict=True)}
    return " at batch {} and {} tokens".format(*points.pop()) if len(points) == 1 else ""
