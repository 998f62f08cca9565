"""What other papers have published, from published.csv, and our results beside it.

One row of the file is one number of one source. `score` (percent) with `score_dense` and `score_drop` (points), or a
`speedup`, `pruning_seconds` or `perplexity`; `ratio_removed` in [0, 1) counts what `ratio_kind` says: flops, params, weights
or latency, which do not belong on one axis (blank: the source does not say). `how` a number was read: verbatim (printed),
digitised (measured in a picture) or text (prose, second-hand). `variant` says who ran a method, if not its authors, and tells
curves of one method apart: with or without distillation (KD), a setting, an ablation.

`plot` says whether a row may stand in a plot of accuracies. It is false where there is no score or nothing to draw it over;
where the metric is no accuracy but a gain, a cost, a bound, a mean over tasks; for the printed gaps between K-prune and
Kwon et al.; and where a number is there from several sources, of which one is kept:

- SMP and its baselines: the movement pruning paper's own tables before SMP's Table 1, its ablations, its Table 2, its README,
  the digitised figure, the figure read by eye. The same point is one at most 0.005 of the weights away.
- CoFi: its README before its figure; all of its talk is left out, and what GRAIN quotes of tasks that the README has.
"""

from functools import cache
from pathlib import Path

import pandas as pd

from analysis.frame import CELL, newest

FILE = Path(__file__).with_name("published.csv")
TEXTS = ["method", "variant", "paper", "arxiv", "table_or_figure", "model", "task", "metric", "ratio_kind", "speedup_hw"]
TEXTS += ["how", "error", "source_note"]
NUMBERS = ["ratio_removed", "score", "score_dense", "score_drop", "speedup", "pruning_seconds", "perplexity", "std"]

# Ours to theirs. Published magnitude pruning is of single weights, trained: not our method of that name.
METHODS = {"kprune": "K-prune", "kwon": "Kwon et al.", "kcm": "KCM"}
MODELS = {"bert-base": "BERT-base", "distilbert-base": "DistilBERT", "roberta-base": "RoBERTa-base"}
TASKS = {
    "mrpc": "MRPC",
    "sst2": "SST-2",
    "stsb": "STS-B",
    "qnli": "QNLI",
    "qqp": "QQP",
    "mnli": "MNLI",
    "squad": "SQuAD1.1",
    "squad_v2": "SQuAD2.0",
}

SAME_RATIO = 1e-6
DENSE_WITHIN = 1.0  # points; K-prune's own dense scores are known no better (its caption and its legend differ)
KPRUNE_SAMPLE = dict.fromkeys(TASKS, 100.0) | {"sst2": 53.0}  # thousands of tokens: theirs counts SST-2 phrases twice too long
CONDITIONS = ["other model", "other dense score", "other number of calibration tokens"]


@cache
def load() -> pd.DataFrame:
    """All rows in the file's order: texts as strings, empty where blank; numbers as Float64, missing where blank.

    `error` becomes a number, the half-width of the score's reading error in points; a second part, of the ratio or the
    speedup, stands in the file alone.
    """
    kinds = {**dict.fromkeys(TEXTS, "string"), **dict.fromkeys(NUMBERS, "Float64"), "plot": "bool"}
    table = pd.read_csv(FILE, dtype=kinds, keep_default_na=False, na_values={name: [""] for name in NUMBERS})
    return table.assign(error=table.error.str.extract(r"(\d+\.?\d*)", expand=False).astype("Float64"))


def most_saved() -> float:
    """How many times less than retraining-based pruning K-prune is said to cost at most."""
    rows = load()
    return float(rows[rows.metric == "pruning cost ratio (x lower)"].score.max())


def curves(task: str, method: str | None = None, model: str = "BERT-base") -> pd.DataFrame:
    """The published accuracies that may be drawn beside ours, over the share of FLOPs removed; rows as in `load`.

    Task and method by our names, the model by theirs; empty where nothing is published. One line is one (method, variant):
    KCM's own numbers and those of its rerun by K-prune's authors lie 40 points apart.
    """
    found = _comparable()
    found = found[(found.task == TASKS.get(task, task)) & (found.model == model)]
    return found if method is None else found[found.method == METHODS.get(method, method)]


def of_weights(task: str, model: str = "BERT-base") -> pd.DataFrame:
    """The published accuracies over the share of single weights removed; rows as in `load`, empty where nothing is published."""
    table = load()
    pruned = table["plot"] & (table.ratio_kind == "weights") & (table.ratio_removed > 0)
    return table[pruned & (table.task == TASKS.get(task, task)) & (table.model == model)]


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """Our scores beside every published one of the same method, task and share of FLOPs removed.

    `table` is that of a Frame. One row for each of our cells (a model and a `sample`, thousands of calibration tokens; the mean
    over seeds, the newest run of each) and each published number: a method that two papers have measured has two rows.
    Scores, `difference` (ours - theirs), drops (dense - pruned) and `error` in points. `same_conditions`: no condition that is
    known of both differs; `why` names those that do, then what else stands between the two numbers.
    """
    theirs = _comparable().rename(columns={"score": "theirs", "score_drop": "drop_theirs"})
    theirs = theirs.assign(task=_by_our_names(theirs.task, TASKS), method=_by_our_names(theirs.method, METHODS))
    pairs = _ours(table).merge(theirs, on=["task", "method"], suffixes=("_ours", "_theirs"))
    pairs = pairs[(pairs.ratio - pairs.ratio_removed).abs() < SAME_RATIO].reset_index(drop=True)
    reasons = _reasons(pairs)
    pairs = pairs.assign(
        difference=pairs.ours - pairs.theirs,
        drop_ours=pairs.dense - pairs.ours,
        same_conditions=~reasons[CONDITIONS].any(axis=1),
        why=pd.Series([", ".join(reasons.columns[row]) for row in reasons.to_numpy()], dtype="string"),
    )
    order = ["task", "ratio", "method", "model_ours", "model_theirs", "sample", "ours", "theirs", "difference", "drop_ours"]
    order += ["drop_theirs", "paper", "variant", "table_or_figure", "how", "error", "same_conditions", "why"]
    return pairs[order].sort_values(order[:6], kind="stable", ignore_index=True)


def _comparable() -> pd.DataFrame:
    table = load()
    return table[table["plot"] & (table.ratio_kind == "flops")]


def _by_our_names(names: pd.Series, ours: dict[str, str]) -> pd.Series:
    return names.map({theirs: own for own, theirs in ours.items()}).astype("string")


def _ours(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each cell: the means `ours` and `dense`, and how many `seeds` they are over."""
    groups = newest(table).groupby(CELL, dropna=False)
    return groups.agg(ours=("score", "mean"), dense=("dense_score", "mean"), seeds=("seed", "count")).reset_index()


def _reasons(pairs: pd.DataFrame) -> pd.DataFrame:
    """For every pair, which of the reasons (columns) to read its difference with care hold."""
    kprune = pairs.method == "kprune"
    sample = pairs.task.map(KPRUNE_SAMPLE).astype("Float64").where(kprune)
    reasons = {
        "other model": pairs.model_ours.map(MODELS).astype("string").fillna("") != pairs.model_theirs,
        "other dense score": (pairs.dense - pairs.score_dense).abs() > DENSE_WITHIN,
        "other number of calibration tokens": (pairs["sample"] - sample).abs() > 1,
        "their dense score not given": pairs.score_dense.isna(),
        "their calibration tokens not known": ~kprune,
        "their setting chosen by task": kprune | pairs.paper.str.startswith("KCM"),
        "digitised": pairs.how == "digitised",
        "second-hand": pairs.how == "text",
        "one seed": pairs.seeds == 1,
    }
    return pd.DataFrame(reasons).fillna(False).astype(bool)
