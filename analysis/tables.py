"""Tables from records, each a pandas frame of numbers; `write` leaves them as CSV, Markdown and LaTeX."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.frame import CELL, Frame, newest, scored, single_weights
from analysis.published import most_saved
from analysis.statistics import calibration_error, changes, divergence, lost, over_examples, over_seeds, paired_over_seeds, ranking

HEADINGS = {"seeds": "± seeds", "examples": "± examples", "sample": "tokens (thousands)"}  # where a column's name is not enough
SPOILT = ["seconds", "peak_bytes", "speedup", "speedup_low", "speedup_high"]
WITHIN = 3.0  # points of the dense score: what "the same accuracy" means in the K-prune paper's table of speedups


@cache
def runs(frame: Frame, machine: str | None = None) -> pd.DataFrame:
    """The runs that accuracies are compared by, one for each cell and seed: the newest, of any machine or of one."""
    table = frame.table
    return newest(table if machine is None else table[table.machine == machine])


def timed(frame: Frame, machine: str) -> pd.DataFrame:
    """The runs of a machine, without what other work there has spoilt: seconds, memory, speedups."""
    found = runs(frame, machine)
    return found.assign(**{name: found[name].where(found.quiet) for name in SPOILT})


MEANS = ["trivial", "auc_dense", "auc", "matthews_dense", "matthews"]


@cache
def accuracy(frame: Frame) -> pd.DataFrame:
    """One row for each cell (task, model, sample, ratio, method).

    `runs` that differ in masks or score (a deterministic method has one); means of `dense`, `score` and of the threshold-free
    measures (MEANS); half intervals over `seeds` and over `examples`; points `lost` with its paired interval `lost_low`, `lost_high`;
    `collapsed`: at least half of the runs are no better than the trivial answer (bench.verdict); `suspect`: why the row has to
    be measured again; `wins`: no other method is as good within the paired interval. What collapsed or is suspect never wins.
    """
    rows = []
    for key, group in runs(frame).groupby(CELL):
        arrays, name = [frame.arrays(folder) for folder in group.index], str(group.score_name.iloc[0])
        kept = [np.concatenate([one["heads"].ravel(), one["neurons"].ravel()]) for one in arrays]
        distinct = max(len({one.tobytes() for one in kept}), group.score.nunique())
        loss = lost(name, arrays if distinct > 1 else arrays[:1])
        rows.append(
            dict(zip(CELL, key, strict=True))
            | {"runs": distinct, "dense": group.dense_score.mean(), "score": group.score.mean()}
            | {"seeds": over_seeds(group.score.tolist()) if distinct > 1 else None}
            | {"examples": np.mean([over_examples(name, one) for one in arrays])}
            | {"lost": loss.difference, "lost_low": loss.low, "lost_high": loss.high}
            | {
                "collapsed": bool(group.collapsed.mean() >= 0.5),
                "suspect": group.suspect.dropna().max() if group.suspect.notna().any() else None,
            }
            | group[MEANS].mean().to_dict()
        )
    columns = [*CELL, "runs", "dense", "score", "seeds", "examples", "lost", "lost_low", "lost_high", "collapsed", "suspect", *MEANS]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(wins=_winners(frame, table))


def _winners(frame: Frame, table: pd.DataFrame) -> list[bool]:
    """Of every row whether its method is the best of its task, model, sample and ratio beyond noise."""
    found = runs(frame)
    wins = pd.Series(False, index=table.index)
    for _, rivals in table[~table.collapsed & table.suspect.isna()].groupby(CELL[:-1]):
        order = rivals.sort_values("score", ascending=False)
        best, others = order.iloc[0], order.iloc[1:]
        own = _by_seed(found, best)
        wins[order.index[0]] = len(others) > 0 and all(_better(frame, own, _by_seed(found, other)) for _, other in others.iterrows())
    return wins.tolist()


def _by_seed(found: pd.DataFrame, row: pd.Series) -> pd.Series:
    """The folders of a cell's runs by their seed."""
    same = found[(found[CELL] == row[CELL]).all(axis=1)]
    return pd.Series(same.index, index=same.seed)


def _better(frame: Frame, first: pd.Series, second: pd.Series) -> bool:
    """Whether the first method is better beyond noise, by the seeds that both have."""
    common = first.index.intersection(second.index)
    if common.empty:
        return False
    name = str(frame.table.score_name[first[common[0]]])
    sides = ([frame.arrays(side[seed]) for seed in common] for side in (first, second))
    return bool(paired_over_seeds(name, *sides).low > 0)


def best_speedups(frame: Frame, machine: str, within: float = WITHIN) -> pd.DataFrame:
    """The highest speedup on a machine at which a method's run loses at most so many points: methods by (model, task), and
    `mean`, the geometric mean over those that a method has; missing where no run reaches it or none was timed while the machine
    was quiet."""
    found = scored(frame.table)
    own = found[(found.machine == machine) & found.speedup.notna() & found.quiet]
    good = own[own.dense_score - own.score <= within]
    table = good.pivot_table(index="method", columns=["model", "task"], values="speedup", aggfunc="max")
    table = table.reindex(sorted(own.method.unique()))
    means = table.apply(_geometric, axis=1)
    table[("mean", "")] = means
    return table


def _geometric(row: pd.Series) -> float:
    values = row.dropna().astype(float)
    return float(stats.gmean(values)) if len(values) else float("nan")


def costs(frame: Frame, machine: str) -> pd.DataFrame:
    """What pruning cost on a machine: passes, and seconds and peak memory of runs that had it for themselves."""
    table = timed(frame, machine).groupby(CELL)[["passes", "seconds", "peak_bytes"]].mean().reset_index()
    return table.assign(peak_mb=table.pop("peak_bytes") / 1e6)


def kept(frame: Frame) -> pd.DataFrame:
    """Shares of FLOPs, of the layers' parameters and, where weights were pruned, of weights that are left."""
    return runs(frame).groupby(CELL)[["flops_kept", "params_kept", "weights_kept"]].mean().reset_index()


def dense(frame: Frame) -> pd.DataFrame:
    """Dense scores beside what was expected of the checkpoint, where that is known."""
    found = scored(frame.table).groupby(["task", "model"])[["dense_score", "dense_expected"]].agg(["min", "max"])
    low, high = found["dense_score"]["min"], found["dense_score"]["max"]
    expected = found["dense_expected"]["max"]
    return pd.DataFrame({"dense": high, "spread": high - low, "expected": expected, "difference": high - expected}).reset_index()


def weights(frame: Frame, machine: str) -> pd.DataFrame:
    """Methods that remove single weights, one row for each cell: `runs`, `dense`, `score`, `drop`, half intervals over seeds and
    over examples, the true share `kept`, the packed masks' size, and on one machine `passes` and the measured `speedup`."""
    found = single_weights(frame.table)
    here = (found.machine == machine).fillna(False)
    found = found.assign(passes=found.passes.where(here), speedup=found.speedup.where(here & found.quiet))
    rows = []
    for key, group in found.groupby(["task", "model", "ratio", "method"]):
        arrays = [frame.arrays(folder) for folder in group.index]
        examples = np.mean([over_examples(name, one) for name, one in zip(group.score_name, arrays, strict=True)])
        dense, score = group.dense_score.mean(), group.score.mean()
        cost = [group.weights_kept.mean(), group.mask_bytes.mean() / 1e6, group.passes.mean(), group.speedup.mean()]
        rows.append([*key, len(group), dense, score, dense - score, over_seeds(group.score.tolist()), examples, *cost])
    names = ["runs", "dense", "score", "drop", "seeds", "examples", "kept", "mask_mb", "passes", "speedup"]
    return pd.DataFrame(rows, columns=["task", "model", "ratio", "method", *names])


def retraining(frame: Frame, machine: str, against: str = "kprune") -> pd.DataFrame:
    """What pruning and retraining costs on a machine beside a method that does not retrain, of the same cell and seed: both scores
    and passes, `times`, the ratio of the passes, and the largest such ratio that was published."""
    found = timed(frame, machine)
    keys = ["task", "model", "ratio", "seed"]
    plain = found[found.method == against].set_index(keys)[["score", "passes"]]
    both = found[found.retrained].join(plain.add_suffix(f"_{against}"), on=keys).dropna(subset=[f"passes_{against}"])
    if both.empty:
        return pd.DataFrame()
    means = both.groupby(["task", "model", "ratio", "method"])[["score", f"score_{against}", "passes", f"passes_{against}"]].mean()
    times = means.passes / means[f"passes_{against}"]
    return means.assign(times=times, published_up_to=most_saved()).reset_index()


def answers(frame: Frame) -> pd.DataFrame:
    """What the score hides, means over a cell's runs: agreement with the dense model (percent), examples that were right and are
    wrong (`lost`), the other way (`gained`), wrong in another way (`changed`); calibration error of both models (percent), and
    the divergence of the pruned model's probabilities from the dense model's (nats)."""
    found = runs(frame)
    rows = [_behind(frame.arrays(folder)) for folder in found.index]
    columns = ["agreement", "lost", "gained", "changed", "calibration_dense", "calibration_pruned", "divergence"]
    table = pd.DataFrame(rows, columns=columns, index=found.index).astype("Float64")
    return pd.concat([found[CELL], table], axis=1).groupby(CELL)[columns].mean().dropna(how="all").reset_index()


def _behind(arrays: Any) -> list[Any]:
    one = changes(arrays)
    errors = [calibration_error(arrays, which) for which in ("dense", "pruned")]
    return [one.agreement, one.lost, one.gained, one.changed, *errors, divergence(arrays)]


def ranks(frame: Frame) -> pd.DataFrame:
    """Average ranks of methods (1: best) over the tasks and models in which all of them were scored, for each ratio and sample,
    with Friedman's p and Nemenyi's critical difference where there are enough of both."""
    tables = []
    for (ratio, sample), group in accuracy(frame).groupby(["ratio", "sample"]):
        scores = group.pivot_table(index=["task", "model"], columns="method", values="score", aggfunc="first")
        most = scores.loc[:, scores.notna().sum() == scores.notna().sum().max()]
        found = ranking(most)
        if found.rows < 2 or len(found.average) < 2:
            continue
        named = {"ratio": ratio, "sample": sample, "method": found.average.index, "rank": found.average.to_numpy(), "rows": found.rows}
        tables.append(pd.DataFrame({**named, "friedman_p": found.friedman, "critical_difference": found.critical}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def all_tables(frame: Frame, machine: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Every table with its name."""
    yield "accuracy", accuracy(frame)
    yield "best-speedup", best_speedups(frame, machine).reset_index()
    yield "cost", costs(frame, machine)
    yield "kept", kept(frame)
    yield "dense", dense(frame)
    yield "answers", answers(frame)
    yield "ranks", ranks(frame)
    yield "weights", weights(frame, machine)
    yield "retraining", retraining(frame, machine)


def write(table: pd.DataFrame, folder: Path, name: str) -> None:
    """`name`.csv with all digits, `name`.md and `name`.tex as they are read; what is missing is left empty."""
    flat = table.copy()
    flat.columns = pd.Index([" ".join(column).strip() if table.columns.nlevels > 1 else column for column in table.columns.tolist()])
    flat.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n", float_format="%.10g")
    shown = shaped(flat) if name == "accuracy" else flat
    text = shown.map(_text).rename(columns=HEADINGS)
    (folder / f"{name}.md").write_text(text.to_markdown(index=False) + "\n", encoding="utf-8")
    latex = text.map(_latex).rename(columns=_latex).style.hide(axis="index").to_latex(hrules=True)
    (folder / f"{name}.tex").write_text(latex, encoding="utf-8")


def shaped(table: pd.DataFrame) -> pd.DataFrame:
    """The accuracy table as people read it: a row for each method, a column for each ratio; winners in stars."""
    text = table.apply(_entry, axis=1) if len(table) else pd.Series(dtype="string")
    cells = table.assign(text=text).pivot(index=["task", "model", "sample", "method"], columns="ratio", values="text")
    cells.columns = [f"{ratio:g}" for ratio in cells.columns]
    return cells.reset_index()


def _entry(row: pd.Series) -> str:
    """Score, ± over seeds or "1 run", and (±) over examples."""
    seeds = "1 run" if pd.isna(row.seeds) else f"± {row.seeds:.1f}"
    score = f"**{row.score:.2f}**" if row.wins else f"{row.score:.2f}"
    return f"{score} {seeds} (± {row.examples:.1f})"


def _text(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _latex(text: str) -> str:
    """Signs that LaTeX reads otherwise; stars as bold."""
    if text.startswith("**"):
        bold, rest = text[2:].split("**", 1)
        return rf"\textbf{{{bold}}}{_latex(rest)}"
    return text.replace("_", r"\_").replace("%", r"\%").replace("±", r"$\pm$")
