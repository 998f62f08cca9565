"""How sure a number is: over seeds, and over the examples of the evaluation split; 95 % throughout."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
RESAMPLES = 1000


def over_seeds(values: Sequence[float]) -> float | None:
    """Half of the 95 % t interval of the mean; None for one value."""
    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def over_examples(score: str, arrays: Mapping[str, Any], which: str = "pruned") -> float:
    """Half of the 95 % percentile interval of a score (in percent) under resampling of the evaluation examples.

    `arrays` are a record's, `which` is dense or pruned. A bootstrap with fixed draws, the same for all records of a split.

    Raises:
        ValueError: the score is of no kind that is known here.
    """
    low, high = np.percentile(resampled(score, arrays, which), [2.5, 97.5])
    return float(high - low) / 2


def resampled(score: str, arrays: Mapping[str, Any], which: str) -> Floats:
    """The score, in percent, of RESAMPLES bootstrap samples of the examples."""
    measure, columns = _of(score, arrays, which)
    rng = np.random.default_rng(0)
    found = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        rows = rng.integers(0, len(columns[0]), len(columns[0]))
        found[i] = measure(*(column[rows] for column in columns))
    return found


def _of(score: str, arrays: Mapping[str, Any], which: str) -> tuple[Callable[..., float], list[Floats]]:
    """A score as a function of columns with one row per example."""
    if score in ("exact_match", "f1") and f"em_{which}" in arrays:
        return _mean, [arrays[f"{'em' if score == 'exact_match' else 'f1'}_{which}"]]
    gold, logits = arrays["gold"], arrays[f"logits_{which}"].astype(np.float64)
    if score in ("pearson", "spearman"):
        return _pearson if score == "pearson" else _spearman, [logits[:, 0], gold.astype(np.float64)]
    predicted = logits.argmax(1)
    if score == "accuracy":
        return _mean, [100.0 * (predicted == gold)]
    if score == "f1":
        return _f1, [predicted, gold]
    raise ValueError(f"no interval for the score {score!r}")


def _mean(values: Floats) -> float:
    return float(values.mean())


def _f1(predicted: Floats, gold: Floats) -> float:
    both, either = ((predicted == 1) & (gold == 1)).sum(), (predicted == 1).sum() + (gold == 1).sum()
    return 200.0 * float(both) / max(int(either), 1)


def _pearson(predicted: Floats, gold: Floats) -> float:
    if not (predicted.std() and gold.std()):
        return 0.0
    return 100.0 * float(np.corrcoef(predicted, gold)[0, 1])


def _spearman(predicted: Floats, gold: Floats) -> float:
    return _pearson(stats.rankdata(predicted), stats.rankdata(gold))
