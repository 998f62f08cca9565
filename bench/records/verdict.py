"""What a score is worth: the score of a trivial answer, models that are no better than it, records that a known fault has touched.

Everything here reads a record and its arrays (docs/records.md) and needs numpy alone.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, Any]
Floats = NDArray[np.float64]
ONE_ANSWER = 0.99  # share of the examples; a model that gives one answer to more of them has collapsed
Z = 1.96  # a normal 95 % interval
LOSE_TAILS = ("0.23.1", "0.23.2")  # tokenizers whose overflowing tokens end too early (huggingface/tokenizers#2091)
CORRELATIONS = ("pearson", "spearman")
LOWER_IS_BETTER = {"perplexity"}


def trivial(score: str, arrays: Arrays) -> float | None:
    """The score, in percent, of an answer that looks at nothing; None where the arrays do not tell.

    Of classes: the largest class for every example (F1: class 1 for every example). Of numbers: a constant, which correlates
    with nothing: 0. Of questions: what `f1_trivial` and `em_trivial` hold, see bench.tasks.windows. Of a text: the perplexity of its
    tokens' own frequencies, no percentage.
    """
    if score in CORRELATIONS:
        return 0.0
    if score == "perplexity":
        return perplexity(arrays, "trivial")
    if "gold" in arrays:
        right = _right(score, arrays, _trivial_classes(score, arrays))
        return 100.0 * _mean_or_f1(right)
    stored = arrays.get(_question_key(score, "trivial"))
    return None if stored is None else float(stored.mean())


def is_collapsed(score: str | None, arrays: Arrays, which: str = "pruned") -> bool:
    """Whether a model's answers are no better than the trivial answer beyond the noise of the examples (95 %), or more than 99 % of
    them are one answer. `which` model: dense or pruned. A score that is not defined (None) has collapsed too."""
    if score is None or _largest_share(score, arrays, which) > ONE_ANSWER:
        return True
    if score in CORRELATIONS:
        return _correlation_is_noise(arrays, which)
    if score == "perplexity":
        better = (arrays["nll_trivial"] - arrays[f"nll_{which}"]) / arrays["predicted"]
        return bool(better.mean() <= Z * standard_error(better))
    ours, theirs = _influence(score, arrays, which), _influence(score, arrays, "trivial")
    if theirs is None or ours is None:
        return False
    (value, one), (baseline, other) = ours, theirs
    return value - baseline <= Z * standard_error(one - other, arrays.get("cluster"))


def perplexity(arrays: Arrays, which: str) -> float:
    """Of a text's windows: exp of the mean negative log-likelihood of a predicted token. `which`: dense, pruned or trivial."""
    return float(np.exp(arrays[f"nll_{which}"].sum() / arrays["predicted"].sum()))


def growth(arrays: Arrays) -> tuple[float, float, float]:
    """By how many percent the pruned model's perplexity is higher than the dense one's, and the 95 % interval over the windows: that
    of the mean paired difference of log-likelihoods, mapped by exp."""
    difference = (arrays["nll_pruned"] - arrays["nll_dense"]) / arrays["predicted"]
    mean, error = float(difference.mean()), Z * standard_error(difference)
    low, middle, high = (100 * float(np.expm1(mean + by)) for by in (-error, 0.0, error))
    return middle, low, high


def suspect(record: Mapping[str, Any]) -> str | None:
    """What is wrong with a record that was made with a library of a known fault; None where nothing is known."""
    if "exact_match" not in (record["dense"]["metrics"] or {}):
        return None
    version = record["software"].get("tokenizers")
    return f"tokenizers {version} loses the ends of long contexts" if version in LOSE_TAILS else None


def standard_error(influence: Floats, cluster: NDArray[np.int64] | None = None) -> float:
    """Of a mean over the examples; with `cluster` [examples] those of one cluster count as one draw."""
    n = len(influence)
    centred = influence - influence.mean()
    sums = centred if cluster is None else np.bincount(cluster, centred)
    draws = len(sums)
    return float(np.sqrt((sums**2).sum() * draws / max(draws - 1, 1)) / n)


def _trivial_classes(score: str, arrays: Arrays) -> NDArray[np.int64]:
    gold = arrays["gold"]
    return np.full(len(gold), 1 if score == "f1" else np.bincount(gold).argmax())


def _right(score: str, arrays: Arrays, predicted: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Numerator and denominator, by example, of accuracy or of the F1 of class 1."""
    gold = arrays["gold"]
    if score == "f1":
        return 2.0 * ((predicted == 1) & (gold == 1)), 1.0 * (predicted == 1) + (gold == 1)
    return 1.0 * (predicted == gold), np.ones(len(gold))


def _mean_or_f1(parts: tuple[Floats, Floats]) -> float:
    top, bottom = parts
    return float(top.sum() / max(bottom.sum(), 1.0))


def _influence(score: str, arrays: Arrays, which: str) -> tuple[float, Floats] | None:
    """A score as a share, and each example's influence on it (of a ratio of means, by the delta method)."""
    if "gold" not in arrays:
        values = arrays.get(_question_key(score, which))
        return None if values is None else (float(values.mean()) / 100, values / 100)
    predicted = _trivial_classes(score, arrays) if which == "trivial" else arrays[f"logits_{which}"].argmax(1)
    top, bottom = _right(score, arrays, predicted)
    value = _mean_or_f1((top, bottom))
    return value, (top - value * bottom) / max(bottom.mean(), 1e-12)


def _question_key(score: str, which: str) -> str:
    return f"{'em' if score == 'exact_match' else score}_{which}"


def _largest_share(score: str, arrays: Arrays, which: str) -> float:
    """Of the examples that get the most common answer; numbers are told apart to the last bit."""
    if "gold" not in arrays:
        answers = arrays.get(f"answers_{which}", np.arange(2))  # where nothing is answered, nothing is answered alike
    else:
        logits = arrays[f"logits_{which}"]
        answers = logits[:, 0] if score in CORRELATIONS else logits.argmax(1)
    return Counter(answers.tolist()).most_common(1)[0][1] / len(answers)


def _correlation_is_noise(arrays: Arrays, which: str) -> bool:
    """By Fisher's transform of Pearson's correlation of the ranks of both sides."""
    sides = (arrays[f"logits_{which}"][:, 0], arrays["gold"])
    x, y = (np.argsort(np.argsort(side, kind="stable"), kind="stable") - (len(side) - 1) / 2 for side in sides)
    r = float((x * y).sum() / max(float((x * x).sum()), 1.0))
    return bool(np.arctanh(np.clip(r, -0.999999, 0.999999)) <= Z / np.sqrt(max(len(x) - 3, 1)))
