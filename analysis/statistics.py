"""How sure a number is, whether two runs differ, what a score hides, and how methods rank; 95 % throughout.

`arrays` are always those of an ok record, as docs/records.md describes them; `which` of its models is dense or pruned.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special, stats

Arrays = Mapping[str, Any]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
RESAMPLES = 1000
PARTS = 32  # in which resamples are ranked, each small enough for the processor's cache
ROUNDING = 1e-10  # of a sum of squares: what rounding leaves of a variance that is 0
SEEDS = 3  # from which on their spread is told


@dataclass(frozen=True)
class Difference:
    """By how much the first run scores above the second, in percentage points, and the ends of its 95 % interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Changes:
    """What pruning did to the answers: `agreement`, the percent of examples answered as before, and numbers of examples.

    `lost` were right and are wrong, `gained` were wrong and are right, `changed` were wrong and are wrong in another way.
    """

    agreement: float | None = None
    lost: int | None = None
    gained: int | None = None
    changed: int | None = None


@dataclass(frozen=True)
class Ranking:
    """Each method's `average` rank over the `rows` that every method has; 1 is best, NaN where there is no such row.

    `friedman` is the p-value of all methods being alike; two of them differ where their average ranks are more than
    `critical` apart (Nemenyi). Both are None with fewer than two rows or three methods.
    """

    average: "pd.Series[float]"
    rows: int
    friedman: float | None
    critical: float | None


def over_seeds(values: Sequence[float]) -> float | None:
    """Half of the 95 % t interval of the mean; None for one value."""
    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1) * (np.std(values, ddof=1) / np.sqrt(len(values))))


def over_examples(score: str, arrays: Arrays, which: str = "pruned") -> float:
    """Half of the 95 % percentile interval of a score (in percent) under resampling of the evaluation examples, or of the clusters
    that they come in (the articles of SQuAD's questions).

    A bootstrap with fixed draws, the same for all records of a split.

    Raises:
        ValueError: the score is of no kind that is known here.
    """
    low, high = np.percentile(resampled(score, arrays, which), [2.5, 97.5])
    return float(high - low) / 2


def resampled(score: str, arrays: Arrays, which: str) -> Floats:
    """The score, in percent, of RESAMPLES bootstrap samples of the examples. Kept by content: all records of one checkpoint and
    split share what was found of its dense model."""
    measure, columns = _of(score, arrays, which)
    member = _member(arrays, len(columns[0]))
    key = (measure.__name__, RESAMPLES, sha256(b"".join(column.tobytes() for column in (member, *columns))).digest())
    if key not in _RESAMPLED:
        _RESAMPLED[key] = measure(_drawn(RESAMPLES, int(member.max()) + 1), member, *columns)
    return _RESAMPLED[key]


_RESAMPLED: dict[tuple[str, int, bytes], Floats] = {}


def _member(arrays: Arrays, examples: int) -> NDArray[np.int64]:
    """Which unit of resampling each example is in: its cluster, or itself."""
    return np.asarray(arrays["cluster"] if "cluster" in arrays else np.arange(examples))


@lru_cache(maxsize=8)
def _drawn(samples: int, units: int) -> Floats:
    """How often each bootstrap sample holds each unit, [samples, units]."""
    rows = np.random.default_rng(0).integers(0, units, (samples, units))
    counts = np.bincount((rows + units * np.arange(samples)[:, None]).ravel(), minlength=samples * units)
    return counts.reshape(samples, units).astype(np.float64)


def paired(score: str, first: Arrays, second: Arrays) -> Difference:
    """The difference of a score between the pruned models of two runs, with its percentile interval.

    Both are resampled by the same draws, so what is hard for both cancels.

    Raises:
        ValueError: the score is of no kind that is known here, or the runs were not scored on the same examples.
    """
    return paired_over_seeds(score, [first], [second])


def paired_over_seeds(score: str, first: Sequence[Arrays], second: Sequence[Arrays]) -> Difference:
    """The mean difference of a score between two methods' runs, the i-th of both with the same seed.

    The interval is that of the examples (bootstrap, the same draws for all runs). With three seeds or more it is widened by the
    95 % t interval of the mean over seeds; the two halves add up as independent errors do.

    Raises:
        ValueError: as `paired`.
    """
    for one, other in zip(first, second, strict=True):
        _check_same_examples(one, other)
    return _difference(score, [((one, "pruned"), (other, "pruned")) for one, other in zip(first, second, strict=True)])


def lost(score: str, runs: Sequence[Arrays]) -> Difference:
    """By how much the dense model scores above the pruned one, the mean over a method's runs; the interval as of `paired_over_seeds`."""
    return _difference(score, [((run, "dense"), (run, "pruned")) for run in runs])


def _difference(score: str, pairs: Sequence[tuple[tuple[Arrays, str], tuple[Arrays, str]]]) -> Difference:
    spread = np.mean([resampled(score, *one) - resampled(score, *other) for one, other in pairs], axis=0)
    differences = [_value(score, *one) - _value(score, *other) for one, other in pairs]
    mean = float(np.mean(differences))
    low, high = (float(end) for end in np.percentile(spread, [2.5, 97.5]))
    if len(pairs) >= SEEDS:
        seeds = over_seeds(differences) or 0.0
        low, high = mean - float(np.hypot(mean - low, seeds)), mean + float(np.hypot(high - mean, seeds))
    return Difference(mean, low, high)


def auc(arrays: Arrays, which: str = "pruned") -> float | None:
    """The area under the ROC curve in percent, for several classes the mean of each against the rest; None where there are
    no classes, or all examples are of one.

    It judges the order of the examples, whatever the threshold: 50 is chance, below that the order is turned around.
    """
    if not _has_classes(arrays):
        return None
    gold, scores = arrays["gold"], _log_probabilities(arrays, which)
    if scores.shape[1] == 2:
        scores = (scores[:, 1] - scores[:, 0])[:, None]
        found = [_auc(scores[:, 0], gold == 1)]
    else:
        found = [_auc(scores[:, label], gold == label) for label in range(scores.shape[1])]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else None


def _auc(scores: Floats, positive: Bools) -> float | None:
    """By the rank sum of the positive examples (Mann and Whitney); ties count half."""
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return None
    return 100.0 * float(stats.rankdata(scores)[positive].sum() - count * (count + 1) / 2) / (count * others)


def matthews(arrays: Arrays, which: str = "pruned") -> float | None:
    """Matthews' correlation of answers and labels, times 100; 0 where all answers are alike; None where there are no classes."""
    if not _has_classes(arrays):
        return None
    gold, answers = arrays["gold"], _answers(arrays, which)
    classes = np.arange(arrays[f"logits_{which}"].shape[1])
    there, said = (1.0 * (labels[:, None] == classes) for labels in (gold, answers))  # [examples, classes]
    covariance = [
        float(np.sum((one - one.mean(0)) * (other - other.mean(0)))) for one, other in ((there, said), (there, there), (said, said))
    ]
    scale = float(np.sqrt(covariance[1] * covariance[2]))
    return 100.0 * covariance[0] / scale if scale > 1e-9 else 0.0


def mcnemar(first: Arrays, second: Arrays) -> float:
    """The exact two-sided p-value of McNemar's test: are two pruned models equally often right? 1 where none is right alone.

    Of questions, right is an exact match.

    Raises:
        ValueError: the runs were not scored on the same examples, or these have no right and wrong answers.
    """
    _check_same_examples(first, second)
    if _has_no_answers(first):
        raise ValueError("numbers and rankings are no right and wrong answers")
    one, other = _right(first, "pruned"), _right(second, "pruned")
    alone = int((one & ~other).sum()), int((other & ~one).sum())
    return min(1.0, 2 * float(stats.binom.cdf(min(alone), sum(alone), 0.5)))


def changes(arrays: Arrays) -> Changes:
    """How the pruned model's answers differ from the dense model's; all None where answers are numbers or rankings. Of questions, right
    is an exact match."""
    if _has_no_answers(arrays):
        return Changes()
    same = _answers(arrays, "dense") == _answers(arrays, "pruned")
    dense, pruned = _right(arrays, "dense"), _right(arrays, "pruned")
    lost, gained, changed = (int(these.sum()) for these in (dense & ~pruned, ~dense & pruned, ~dense & ~pruned & ~same))
    return Changes(100.0 * float(same.mean()), lost, gained, changed)


def calibration_error(arrays: Arrays, which: str = "pruned", bins: int = 15) -> float | None:
    """The expected calibration error in percent (Guo et al., ICML 2017); None where there are no classes.

    The mean distance of accuracy from the top probability, over equally wide bins of the latter, each open at its lower end.
    """
    if not _has_classes(arrays):
        return None
    top = np.exp(_log_probabilities(arrays, which).max(1))
    in_bin = np.ceil(top * bins).astype(np.int64)
    return 100.0 * float(np.abs(np.bincount(in_bin, _right(arrays, which) - top)).sum()) / len(top)


def divergence(arrays: Arrays) -> float | None:
    """The mean over the examples of KL(dense || pruned) of the predicted probabilities, in nats; None where there are no classes."""
    if not _has_classes(arrays):
        return None
    dense, pruned = (_log_probabilities(arrays, which) for which in ("dense", "pruned"))
    return float((np.exp(dense) * (dense - pruned)).sum(1).mean())


def ranks(scores: pd.DataFrame) -> pd.DataFrame:
    """The rank of each method (column) in each row that has a score for all; 1 is the highest score, ties are averaged."""
    return scores.dropna().astype(np.float64).rank(axis=1, ascending=False)


def ranking(scores: pd.DataFrame) -> Ranking:
    """Average ranks of methods (columns) over rows, with the tests of Demšar (JMLR 2006); higher scores are better.

    The tests take rows for independent: of several ratios of one task they are too sure. Friedman's p-value is that of
    the chi-squared approximation, rough for few rows.
    """
    found = ranks(scores)
    rows, methods = found.shape
    if rows < 2 or methods < 3:
        return Ranking(found.mean(), rows, None, None)
    studentized = float(stats.studentized_range.ppf(0.95, methods, np.inf))
    critical = studentized * float(np.sqrt(methods * (methods + 1) / (12 * rows)))
    return Ranking(found.mean(), rows, _friedman(found.to_numpy()), critical)


def _friedman(found: Floats) -> float:
    """Of ranks [rows, methods]; 1 where all tie everywhere, where the statistic is 0 / 0."""
    if not np.ptp(found):
        return 1.0
    return float(stats.friedmanchisquare(*found.T).pvalue)


def _check_same_examples(first: Arrays, second: Arrays) -> None:
    """Of questions a record keeps no gold answers: there, what both runs answer alike must have been scored alike. Of a search, which
    has none either, both must have been among as many."""
    if "gold" in first or "gold" in second:
        same = np.array_equal(first.get("gold", ()), second.get("gold", ()))
    elif "answers_pruned" not in first:
        same = _by_chance(first) == _by_chance(second)
    elif same := len(first["answers_pruned"]) == len(second["answers_pruned"]):
        alike = first["answers_pruned"] == second["answers_pruned"]
        same = all(np.array_equal(first[key][alike], second[key][alike]) for key in ("em_pruned", "f1_pruned"))
    if not same:
        raise ValueError("the gold labels of the two runs differ: they were not scored on the same examples")


def _by_chance(arrays: Arrays) -> dict[str, tuple[int, float]]:
    """Of every measure of a search the number of examples, and what random order scores."""
    return {name: (len(values), float(values[0])) for name, values in arrays.items() if name.endswith("_trivial")}


def _has_no_answers(arrays: Arrays) -> bool:
    """Whether an example's answer is a number or a ranking, so that it is not right or wrong."""
    return arrays["gold"].dtype.kind == "f" if "gold" in arrays else "answers_pruned" not in arrays


def _has_classes(arrays: Arrays) -> bool:
    return "gold" in arrays and not _has_no_answers(arrays)


def _answers(arrays: Arrays, which: str) -> NDArray[Any]:
    """A class or, of questions, a string for each example."""
    return np.asarray(arrays[f"logits_{which}"].argmax(1) if _has_classes(arrays) else arrays[f"answers_{which}"])


def _right(arrays: Arrays, which: str) -> Bools:
    """Whether each answer is right."""
    return np.asarray(_answers(arrays, which) == arrays["gold"] if _has_classes(arrays) else arrays[f"em_{which}"] == 100)


def _log_probabilities(arrays: Arrays, which: str) -> Floats:
    """The logarithms of the classes' probabilities [examples, classes]."""
    return np.asarray(special.log_softmax(arrays[f"logits_{which}"].astype(np.float64), axis=1))


def _value(score: str, arrays: Arrays, which: str) -> float:
    """A score of a model, in percent."""
    measure, columns = _of(score, arrays, which)
    member = np.arange(len(columns[0]))
    return float(measure(np.ones((1, len(member))), member, *columns)[0])


def _of(score: str, arrays: Arrays, which: str) -> tuple[Callable[..., Floats], list[Floats]]:
    """A score as a function of counts [samples, units], of the examples' units and of columns [examples]; it gives one value a
    sample."""
    of_each = f"{'em' if score == 'exact_match' else score}_{which}"
    if of_each in arrays:  # the score is a mean of the examples' own
        return _ratio, [arrays[of_each], np.ones(len(arrays[of_each]))]
    gold, logits = arrays["gold"], arrays[f"logits_{which}"].astype(np.float64)
    if score in ("pearson", "spearman"):
        return _pearson if score == "pearson" else _spearman, [logits[:, 0], gold.astype(np.float64)]
    predicted = logits.argmax(1)
    if score == "accuracy":
        return _ratio, [100.0 * (predicted == gold), np.ones(len(gold))]
    if score == "f1":
        return _ratio, [200.0 * ((predicted == 1) & (gold == 1)), 1.0 * (predicted == 1) + (gold == 1)]
    raise ValueError(f"no interval for the score {score!r}")


def _ratio(counts: Floats, member: NDArray[np.int64], top: Floats, bottom: Floats) -> Floats:
    """Of two sums over the examples: a mean, or F1."""
    sums = np.stack([np.bincount(member, column, counts.shape[1]) for column in (top, bottom)], 1)
    tops, bottoms = (counts @ sums).T
    return np.asarray(tops / np.maximum(bottoms, 1))


def _pearson(counts: Floats, member: NDArray[np.int64], predicted: Floats, gold: Floats) -> Floats:
    """By sums over the examples alone; what is left of the variance of a constant is rounding, and counts as 0."""
    x, y = predicted - predicted.mean(), gold - gold.mean()
    sums = [np.bincount(member, column, counts.shape[1]) for column in (np.ones(len(x)), x, y, x * y, x * x, y * y)]
    n, sum_x, sum_y, sum_xy, sum_xx, sum_yy = (counts @ np.stack(sums, 1)).T
    xx, yy = sum_xx - sum_x**2 / n, sum_yy - sum_y**2 / n
    return _correlation(sum_xy - sum_x * sum_y / n, np.where(xx > ROUNDING * sum_xx, xx, 0), np.where(yy > ROUNDING * sum_yy, yy, 0))


def _spearman(counts: Floats, member: NDArray[np.int64], predicted: Floats, gold: Floats) -> Floats:
    return np.concatenate([_spearman_of(part[:, member], predicted, gold) for part in np.array_split(counts, PARTS)])


def _spearman_of(weights: Floats, predicted: Floats, gold: Floats) -> Floats:
    x, y = _ranks(weights, predicted), _ranks(weights, gold)
    return _correlation(*(np.einsum("se,se,se->s", weights, one, other) for one, other in ((x, y), (x, x), (y, y))))


def _correlation(xy: Floats, xx: Floats, yy: Floats) -> Floats:
    """Times 100, of sums of products over the examples; 0 where one side is constant."""
    scale = np.sqrt(xx * yy)
    return np.where(scale > 0, 100.0 * xy / np.where(scale > 0, scale, 1.0), 0.0)


def _ranks(weights: Floats, values: Floats) -> Floats:
    """By how much the rank of each example in each sample, ties averaged, is above the mean rank, [samples, examples]."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    held = weights.take(order, 1)
    if len(starts) < len(order):
        held = np.add.reduceat(held, starts, axis=1)
    below = held.cumsum(1)
    return np.asarray((below - (held + below[:, -1:]) / 2).take(group, 1))
