"""Tables from records, each a pandas frame of numbers."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from analysis.frame import CELL, Frame, newest, scored, single_weights
from analysis.published import most_saved
from analysis.statistics import (
    Difference,
    calibration_error,
    changes,
    divergence,
    lost,
    over_examples,
    over_seeds,
    paired_over_seeds,
    ranking,
)

Cell = tuple[Any, ...]  # values of CELL
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


SCORES = ["score_name", "dense_score", "score", "collapsed", "suspect"]
MEANS = ["trivial", "auc_dense", "auc", "matthews_dense", "matthews"]
FREE = ["auc_dense", "auc", "matthews_dense", "matthews", "pearson_dense", "pearson", "spearman_dense", "spearman"]


@cache
def accuracy(frame: Frame) -> pd.DataFrame:
    """One row for each cell (task, model, sample, ratio, method).

    `runs` that differ in masks or score (a deterministic method has one); means of `dense`, `score` and of the threshold-free
    measures (MEANS); half intervals over `seeds` and over `examples`; points `lost` with its paired interval `lost_low`, `lost_high`;
    `collapsed`: at least half of the runs are no better than the trivial answer (bench.records.verdict); `suspect`: why the row has to
    be measured again; `wins`: no other method is as good within the paired interval. What collapsed or is suspect never wins.
    """
    found = runs(frame)[[*CELL, *SCORES, *MEANS]]
    rows = [dict(zip(CELL, key, strict=True)) | _cell(frame, group) for key, group in found.groupby(CELL)]
    columns = [*CELL, "runs", "dense", "score", "seeds", "examples", "lost", "lost_low", "lost_high", "collapsed", "suspect", *MEANS]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(wins=_winners(frame, table))


def _cell(frame: Frame, group: pd.DataFrame) -> dict[str, Any]:
    """What `accuracy` says of the runs of one cell."""
    arrays, name = [frame.arrays(folder) for folder in group.index], str(group.score_name.iloc[0])
    masks = {np.concatenate([one["heads"].ravel(), one["neurons"].ravel()]).tobytes() for one in arrays}
    distinct = max(len(masks), group.score.nunique())
    loss = lost(name, arrays if distinct > 1 else arrays[:1])
    return {
        "runs": distinct,
        "dense": group.dense_score.mean(),
        "score": group.score.mean(),
        "seeds": over_seeds(group.score.tolist()) if distinct > 1 else None,
        "examples": np.mean([over_examples(name, one) for one in arrays]),
        **{"lost": loss.difference, "lost_low": loss.low, "lost_high": loss.high},
        "collapsed": bool(group.collapsed.mean() >= 0.5),
        "suspect": next(iter(group.suspect.dropna()), None),
        **{name: group[name].mean() for name in MEANS},
    }


def _winners(frame: Frame, table: pd.DataFrame) -> list[bool]:
    """Of every row whether its method is the best of its task, model, sample and ratio beyond noise."""
    wins = pd.Series(False, index=table.index)
    for _, rivals in table[~table.collapsed & table.suspect.isna()].groupby(CELL[:-1]):
        order = rivals.sort_values("score", ascending=False)
        best, *others = order[CELL].itertuples(index=False, name=None)
        found = (between(frame, best, other) for other in others)  # until one is as good
        wins.loc[order.index[:1]] = bool(others) and all(one is not None and one.low > 0 for one in found)
    return wins.tolist()


@cache
def _by_seed(frame: Frame) -> dict[Cell, dict[int, str]]:
    """The folders of each cell's runs by their seed."""
    return {key: dict(zip(group.seed, group.index, strict=True)) for key, group in runs(frame)[[*CELL, "seed"]].groupby(CELL)}


def between(frame: Frame, first: Cell, second: Cell) -> Difference | None:
    """By how much the first cell scores above the second, paired by the seeds that both have; None where they share none."""
    sides = [_by_seed(frame)[cell] for cell in (first, second)]
    common = sorted(sides[0].keys() & sides[1].keys())
    if not common:
        return None
    name = str(frame.table.score_name[sides[0][common[0]]])
    return paired_over_seeds(name, *([frame.arrays(side[seed]) for seed in common] for side in sides))


def threshold_free(frame: Frame) -> pd.DataFrame:
    """For each cell what no threshold can spoil, of the dense and the pruned model, means over runs: AUC (percent) and Matthews'
    correlation (times 100) of classes, Pearson's and Spearman's of numbers."""
    return runs(frame).groupby(CELL)[FREE].mean().dropna(how="all").reset_index()


def differences(frame: Frame, against: str = "kprune", most: int = 3) -> pd.DataFrame:
    """For each task, model, sample and ratio the `difference` of a method from each of the best others that have not collapsed, in
    points, with the ends of its paired interval (`low`, `high`) and the number of `seeds` that both have.

    `verdict` names who is ahead, where the interval excludes zero. Suspect cells and variants of the method are left out.
    """
    rows = []
    for key, cells in accuracy(frame)[lambda table: table.suspect.isna()].groupby(CELL[:-1]):
        own = cells[cells.method == against]
        others = cells[~cells.method.str.startswith(against) & ~cells.collapsed].nlargest(most, "score")
        for method, score in zip(others.method, others.score, strict=True) if len(own) else ():
            pair = (*key, against), (*key, method)
            if found := between(frame, *pair):
                ahead = against if found.low > 0 else method if found.high < 0 else "neither"
                seeds = len(set.intersection(*(set(_by_seed(frame)[cell]) for cell in pair)))
                scores = [own.score.item(), bool(own.collapsed.item()), method, score]
                rows.append([*key, *scores, seeds, found.difference, found.low, found.high, ahead])
    sides = [f"score_{against}", f"{against}_collapsed", "against", "score", "paired_seeds"]
    columns = [*CELL[:-1], *sides, "difference", "low", "high", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def best_speedups(frame: Frame, machine: str, within: float = WITHIN) -> pd.DataFrame:
    """The highest speedup on a machine at which a method's run loses at most so many points: methods by (model, task), missing
    where no run reaches it or none was timed while the machine was quiet.

    `mean` is the geometric mean over the (model, task) that all rows have, of the rows that have any: of methods alike.
    """
    found = scored(frame.table)
    own = found[(found.machine == machine) & found.speedup.notna() & found.quiet]
    good = own[(own.dense_score - own.score <= within) & ~own.collapsed & own.suspect.isna()]
    table = good.pivot_table(index="method", columns=["model", "task"], values="speedup", aggfunc="max").astype(np.float64)
    common = table.dropna(axis=1)
    means = np.exp(np.log(common).mean(axis=1))
    table[("mean", "")] = means
    return table.reindex(sorted(own.method.unique()))


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
    over examples, whether at least half of the runs `collapsed`, the true share
    `kept`, the packed masks' size, and on one machine `passes` and the measured `speedup`."""
    found = single_weights(frame.table)
    here = (found.machine == machine).fillna(False)
    found = found.assign(passes=found.passes.where(here), speedup=found.speedup.where(here & found.quiet))
    rows = []
    for key, group in found.groupby(["task", "model", "ratio", "method"]):
        arrays = [frame.arrays(folder) for folder in group.index]
        examples = np.mean([over_examples(name, one) for name, one in zip(group.score_name, arrays, strict=True)])
        dense, score = group.dense_score.mean(), group.score.mean()
        cost = [group.weights_kept.mean(), group.mask_bytes.mean() / 1e6, group.passes.mean(), group.speedup.mean()]
        spread = over_seeds(group.score.tolist()), examples
        rows.append([*key, len(group), dense, score, dense - score, *spread, bool(group.collapsed.mean() >= 0.5), *cost])
    names = ["runs", "dense", "score", "drop", "seeds", "examples", "collapsed", "kept", "mask_mb", "passes", "speedup"]
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
    wrong (`turned_wrong`), the other way (`turned_right`), wrong in another way (`changed`); calibration error of both models (percent),
    and the divergence of the pruned model's probabilities from the dense model's (nats)."""
    found = runs(frame)
    rows = [_behind(frame.arrays(folder)) for folder in found.index]
    columns = ["agreement", "turned_wrong", "turned_right", "changed", "calibration_dense", "calibration_pruned", "divergence"]
    table = pd.DataFrame(rows, columns=columns, index=found.index).astype("Float64")
    return pd.concat([found[CELL], table], axis=1).groupby(CELL)[columns].mean().dropna(how="all").reset_index()


def _behind(arrays: Any) -> list[Any]:
    one = changes(arrays)
    errors = [calibration_error(arrays, which) for which in ("dense", "pruned")]
    return [one.agreement, one.lost, one.gained, one.changed, *errors, divergence(arrays)]


def ranks(frame: Frame) -> pd.DataFrame:
    """Average ranks of methods (1: best) `by` score and by AUC, over the tasks and models in which all of them were measured, for
    each ratio and sample, with Friedman's p and Nemenyi's critical difference where there are enough of both.

    Models that collapsed share the last rank by score; by AUC they have their own. Where a cell is suspect its task and model are
    left out.
    """
    cells = accuracy(frame)
    cells = cells[~cells.suspect.notna().groupby([cells[name] for name in CELL[:-1]]).transform("any")]
    measures = {"score": cells.score.astype(np.float64).where(~cells.collapsed, -np.inf), "AUC": cells.auc}
    every = [(by, key, group) for by, values in measures.items() for key, group in cells.assign(value=values).groupby(["ratio", "sample"])]
    tables = [_ranks(by, key, group) for by, key, group in every]
    return pd.concat(tables, ignore_index=True) if any(map(len, tables)) else pd.DataFrame()


def _ranks(by: str, place: Any, group: pd.DataFrame) -> pd.DataFrame:
    """Of a ratio and sample the methods measured on the most tasks and models; empty where two methods or two of these are not there."""
    values = group.pivot_table(index=["task", "model"], columns="method", values="value", aggfunc="first")
    if values.empty:
        return pd.DataFrame()
    most = values.loc[:, values.notna().sum() == values.notna().sum().max()]
    found = ranking(most)
    if found.rows < 2 or len(found.average) < 2:
        return pd.DataFrame()
    named = {"by": by, "ratio": place[0], "sample": place[1], "method": found.average.index, "rank": found.average.to_numpy()}
    return pd.DataFrame({**named, "rows": found.rows, "friedman_p": found.friedman, "critical_difference": found.critical})


def all_tables(frame: Frame, machine: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Every table with its name."""
    yield "accuracy", accuracy(frame)
    yield "threshold-free", threshold_free(frame)
    yield "differences", differences(frame)
    yield "best-speedup", best_speedups(frame, machine).reset_index()
    yield "cost", costs(frame, machine)
    yield "kept", kept(frame)
    yield "dense", dense(frame)
    yield "answers", answers(frame)
    yield "ranks", ranks(frame)
    yield "weights", weights(frame, machine)
    yield "retraining", retraining(frame, machine)
