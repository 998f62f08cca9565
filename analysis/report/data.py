"""What the page shows, as frames: cells, what they cost on each machine, runs, published numbers."""

import json
from typing import Any

import pandas as pd

from analysis import published as papers
from analysis import style, tables
from analysis.frame import CELL, Frame
from analysis.report.text import tokens

Point = dict[str, Any]
COSTS = {
    "passes": ("passes", "mean"),
    "seconds": ("seconds", "mean"),
    "speedup": ("speedup", "mean"),
    "speedup_low": ("speedup_low", "min"),
    "speedup_high": ("speedup_high", "max"),
}
PUBLISHED_MODEL = "BERT-base"


def cells(frame: Frame) -> pd.DataFrame:
    """`tables.accuracy` with the `group` a plot shows, ranks among the methods of a task, model, sample and ratio, and `ablation`.

    What has collapsed or is suspect has no rank.
    """
    found = tables.accuracy(frame).astype({"sample": "Float64", "ratio": "Float64"})  # also where there is no row
    found = found.sort_values([*CELL[:-1], "score"], ascending=[True, True, True, True, False], ignore_index=True)
    margin = found.seeds.fillna(found.examples).astype(float)
    valid = ~found.collapsed.astype(bool) & found.suspect.isna()
    rivals = found[valid].groupby(CELL[:-1])
    methods = set(found.method)
    return found.assign(
        group=group_names(found),
        anchor=[f"cell-{i}" for i in found.index],
        low=found.score - margin,
        high=found.score + margin,
        valid=valid,
        rank=rivals.score.rank(method="min", ascending=False),
        rank_auc=rivals.auc.rank(method="min", ascending=False),
        ablation=[is_ablation(method, methods) for method in found.method],
    )


def is_ablation(method: str, methods: set[str]) -> bool:
    """Whether it is another of the methods with a part left out or a setting changed."""
    plain = method.split(" + ")[0]
    parent = style.family(plain.split(" ")[0])
    return plain != parent and parent in methods


def group_names(table: pd.DataFrame) -> list[str]:
    """Of rows with a task, a model and a sample."""
    return [
        f"{task}, {model}, {tokens(sample)} tokens" for task, model, sample in zip(table.task, table.model, table["sample"], strict=True)
    ]


def costs(frame: Frame, cells: pd.DataFrame) -> pd.DataFrame:
    """Cells by machine, with what was timed there: means over the runs, and of speedups the widest interval.

    `front_passes` and `front_speedup` mark what nothing beats.
    """
    machines = sorted(set(frame.table.machine))
    timed = [tables.timed(frame, name).groupby(CELL).agg(**COSTS).reset_index().assign(machine=name) for name in machines]
    both = cells.merge(pd.concat(timed), on=CELL) if timed else cells.assign(machine=None, **dict.fromkeys(COSTS))
    return both.assign(
        front_passes=_front(both, "passes", 1, ["group", "machine", "ratio"]),
        front_speedup=_front(both, "speedup", -1, ["group", "machine"]),
    )


def _front(table: pd.DataFrame, column: str, sign: int, within: list[str]) -> pd.Series:
    """Which rows score higher than all that are better by `column`: by less of it where `sign` is 1, by more where it is -1."""
    known = table[table.valid & table[column].notna()]
    order = known.assign(cost=sign * known[column]).sort_values(["cost", "score"], ascending=[True, False])
    before = order.groupby(within).score.transform(lambda scores: scores.cummax().shift(fill_value=float("-inf")))
    return pd.Series(table.index.isin(order.index[order.score > before]), index=table.index)


def points(frame: Frame) -> pd.DataFrame:
    """Runs whose speedup was measured while nothing else ran, beside what their FLOPs allow; random weights too."""
    table = frame.table
    found = table[(table.status == "ok") & table.quiet & table.speedup.notna() & table.flops_bound.notna()]
    columns = ["method", "model", "ratio", "speedup", "speedup_low", "speedup_high", "flops_bound", "machine"]
    return found[columns].assign(weights=found.random_weights.map({True: "random", False: "trained"}))


def published(cells: pd.DataFrame) -> pd.DataFrame:
    """What was published of our methods on our tasks, over the share of FLOPs removed: points lost of `PUBLISHED_MODEL`."""
    curves = [
        papers.curves(task, method, PUBLISHED_MODEL).assign(task=task, method=method)
        for task in sorted(set(cells.task))
        for method in papers.METHODS
    ]
    columns = ["task", "method", "paper", "variant", "ratio_removed", "score_drop"]
    found = pd.concat([curve[columns] for curve in curves]) if curves else pd.DataFrame(columns=columns)
    found = found.rename(columns={"ratio_removed": "ratio", "score_drop": "lost"}).dropna(subset=["lost"])
    return found.assign(series=found.method + found.paper + found.variant.fillna(""))


def comparison(frame: Frame) -> pd.DataFrame:
    """Our scores beside published ones of `PUBLISHED_MODEL`."""
    found = papers.compare(frame.table)
    return found[found.model_theirs == PUBLISHED_MODEL]


def groups(cells: pd.DataFrame, costs: pd.DataFrame) -> list[tuple[str, str, int]]:
    """What the plots can show, with its task and the number of methods; the most timed one first."""
    timed = costs.group[costs.speedup.notna()].value_counts()
    found = [(str(group), str(own.task.iloc[0]), len(own.method.unique())) for group, own in cells.groupby("group")]
    return sorted(found, key=lambda entry: (-int(timed.get(entry[0], 0)), -entry[2], entry[0]))


def records(table: pd.DataFrame) -> list[Point]:
    """The rows as JSON knows them."""
    found: list[Point] = json.loads(table.to_json(orient="records", double_precision=6))
    return found
