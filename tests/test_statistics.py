"""Differences between runs, what a score hides, and ranks: against scipy, scikit-learn or a literal loop."""

from math import exp, log

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, matthews_corrcoef, roc_auc_score

from analysis import statistics

SCORES = ["accuracy", "f1", "pearson", "spearman", "exact_match", "f1 of questions"]
DEMSAR = """
0.763 0.768 0.771 0.798
0.599 0.591 0.590 0.569
0.954 0.971 0.968 0.967
0.628 0.661 0.654 0.657
0.882 0.888 0.886 0.898
0.936 0.931 0.916 0.931
0.661 0.668 0.609 0.685
0.583 0.583 0.563 0.625
0.775 0.838 0.866 0.875
1.000 1.000 1.000 1.000
0.940 0.962 0.965 0.962
0.619 0.666 0.614 0.669
0.972 0.981 0.9751 0.975
0.957 0.978 0.946 0.970
"""  # table 6 of the paper: AUC of four kinds of C4.5 on 14 data sets; it ranks 0.975 above 0.975, so one is a little more here


def classes(seed=0, count=200, outputs=3, noise=1.0):
    """Arrays of a record whose models are right more often than not; the gold labels are the same for all seeds."""
    gold = np.random.default_rng(99).integers(0, outputs, count)
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(count, outputs)) + 1.5 * np.eye(outputs)[gold]
    pruned = dense + noise * rng.normal(size=dense.shape)
    return {"gold": gold, "logits_dense": dense.astype(np.float32), "logits_pruned": pruned.astype(np.float32)}


def numbers(seed=0, count=200):
    gold = np.random.default_rng(99).integers(0, 26, count) / 5.0  # with ties
    logits = gold[:, None] + np.random.default_rng(seed).normal(size=(2, count, 1))
    return {"gold": gold, "logits_dense": logits[0].astype(np.float32), "logits_pruned": logits[1].astype(np.float32)}


def questions(seed=0, count=200):
    """The gold answer is the row's number; any other answer has half of it right."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for which in ("dense", "pruned"):
        found = np.arange(count) + rng.integers(0, 3, count)
        right = found == np.arange(count)
        arrays |= {f"answers_{which}": found.astype(str), f"em_{which}": 100.0 * right, f"f1_{which}": 50.0 + 50.0 * right}
    return arrays


def example(score, seed=0):
    if score in ("accuracy", "f1"):
        return classes(seed, outputs=2 if score == "f1" else 3)
    return numbers(seed) if score in ("pearson", "spearman") else questions(seed)


def literal(score, arrays, rows):
    """The score of some rows by scikit-learn and scipy."""
    if score in ("exact_match", "f1 of questions"):
        return float(np.mean(arrays["em_pruned" if score == "exact_match" else "f1_pruned"][rows]))
    gold, logits = arrays["gold"][rows], arrays["logits_pruned"][rows]
    if score in ("pearson", "spearman"):
        return 100 * float({"pearson": stats.pearsonr, "spearman": stats.spearmanr}[score](logits[:, 0], gold).statistic)
    return 100 * float({"accuracy": accuracy_score, "f1": f1_score}[score](gold, logits.argmax(1)))


def flipped(gold, rows):
    """Logits that are right except in some rows."""
    logits = 4.0 * np.eye(2)[gold]
    logits[rows] = logits[rows, ::-1]
    return logits


def table(first_alone, second_alone, both=20, neither=10):
    """Two runs with so many examples of each kind."""
    kinds = [(True, False)] * first_alone + [(False, True)] * second_alone + [(True, True)] * both + [(False, False)] * neither
    gold = np.arange(len(kinds)) % 2
    runs = []
    for right in zip(*kinds, strict=True):
        predicted = np.where(right, gold, 1 - gold)
        runs.append({"gold": gold, "logits_pruned": np.eye(2, dtype=np.float32)[predicted]})
    return runs


@pytest.mark.parametrize("score", SCORES)
def test_a_paired_difference_is_that_of_a_literal_bootstrap(score, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 30)
    first, second = example(score, 1), example(score, 2)
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, 200, 200) for _ in range(30)]
    differences = [literal(score, first, rows) - literal(score, second, rows) for rows in draws]
    found = statistics.paired(score.split()[0], first, second)
    assert found.difference == pytest.approx(literal(score, first, slice(None)) - literal(score, second, slice(None)), abs=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])), abs=1e-9)


@pytest.mark.parametrize("score", SCORES)
def test_swapping_the_runs_flips_the_sign_and_a_run_does_not_differ_from_itself(score):
    first, second = example(score, 1), example(score, 2)
    name = score.split()[0]
    one, other = statistics.paired(name, first, second), statistics.paired(name, second, first)
    assert one.difference != 0
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low), abs=1e-9)
    assert one.low <= one.difference <= one.high
    assert statistics.paired(name, first, first) == statistics.Difference(0.0, 0.0, 0.0)


def test_the_paired_interval_is_that_of_scipy():
    first, second = classes(1, 400), classes(2, 400)
    right = [100.0 * (arrays["logits_pruned"].argmax(1) == arrays["gold"]) for arrays in (first, second)]
    expected = stats.bootstrap(
        right, lambda a, b, axis: a.mean(axis) - b.mean(axis), n_resamples=4000, paired=True, method="percentile", rng=2
    ).confidence_interval
    found = statistics.paired("accuracy", first, second)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.6)


def test_pairing_takes_out_what_is_hard_for_both():
    gold = np.arange(400) % 2
    hard = np.arange(160)
    runs = [{"gold": gold, "logits_pruned": flipped(gold, np.append(hard, more))} for more in ([200, 201], [300])]
    found = statistics.paired("accuracy", *runs)
    assert found.difference == pytest.approx(-0.25)
    assert found.high - found.low < statistics.over_examples("accuracy", runs[0]) / 2
    assert (found.low, found.high) == pytest.approx((-1.0, 0.5), abs=0.3), "-0.25 ± 1.96 · 100 · sqrt(3) / 400"


@pytest.mark.parametrize("compare", [lambda *runs: statistics.paired("accuracy", *runs), statistics.mcnemar])
def test_runs_on_other_examples_are_not_compared(compare):
    first = classes()
    moved = {**first, "gold": np.roll(first["gold"], 1)}
    fewer = {name: values[:-1] for name, values in first.items()}
    for other in (moved, fewer, questions()):
        for runs in ((first, other), (other, first)):
            with pytest.raises(ValueError, match="not scored on the same examples"):
                compare(*runs)


def test_questions_are_the_same_where_the_same_answer_has_the_same_score():
    first = questions(1)
    moved = {name: np.roll(values, 1) if name == "em_pruned" else values for name, values in questions(2).items()}
    fewer = {name: values[:-1] for name, values in first.items()}
    for other in (moved, fewer):
        with pytest.raises(ValueError, match="not scored on the same examples"):
            statistics.paired("exact_match", first, other)


def test_mcnemar_is_that_of_a_table_by_hand():
    # of 8 that only one of them has right, at most one on one side: (1 + 8) / 2^8, on both sides twice that
    assert statistics.mcnemar(*table(1, 7)) == pytest.approx(18 / 256)
    assert statistics.mcnemar(*table(0, 5)) == pytest.approx(2 / 32)
    assert statistics.mcnemar(*table(3, 3)) == 1.0
    assert statistics.mcnemar(*table(0, 0)) == 1.0


@pytest.mark.parametrize("alone", [(0, 1), (2, 9), (9, 2), (6, 7), (40, 75)])
def test_mcnemar_is_a_binomial_test_and_symmetric(alone):
    first, second = table(*alone)
    assert statistics.mcnemar(first, second) == pytest.approx(stats.binomtest(alone[0], sum(alone)).pvalue)
    assert statistics.mcnemar(first, second) == statistics.mcnemar(second, first)
    assert statistics.mcnemar(first, first) == 1.0


def test_mcnemar_counts_exact_matches_of_questions_and_has_nothing_to_count_in_a_regression():
    first, second = questions(1), questions(2)
    counts = confusion_matrix(first["em_pruned"] == 100, second["em_pruned"] == 100)
    assert counts[0, 1] != counts[1, 0]
    assert statistics.mcnemar(first, second) == pytest.approx(stats.binomtest(counts[0, 1], counts[0, 1] + counts[1, 0]).pvalue)
    with pytest.raises(ValueError, match="numbers and rankings are no right"):
        statistics.mcnemar(numbers(1), numbers(2))


def test_changes_are_those_of_five_examples():
    gold = np.array([0, 1, 2, 0, 1])
    dense, pruned = np.eye(3)[[0, 1, 0, 1, 2]], np.eye(3)[[0, 2, 2, 2, 2]]  # kept, lost, gained, wrong in another way, wrong as before
    found = statistics.changes({"gold": gold, "logits_dense": dense, "logits_pruned": pruned})
    assert found == statistics.Changes(agreement=40.0, lost=1, gained=1, changed=1)


@pytest.mark.parametrize("seed", range(5))
def test_changes_add_up(seed):
    arrays = classes(seed)
    back = {**arrays, "logits_dense": arrays["logits_pruned"], "logits_pruned": arrays["logits_dense"]}
    found, reverse = statistics.changes(arrays), statistics.changes(back)
    answers = [arrays[f"logits_{which}"].argmax(1) for which in ("dense", "pruned")]
    assert found.agreement == pytest.approx(100 * accuracy_score(*answers))
    assert found.agreement == pytest.approx(100 - (found.lost + found.gained + found.changed) / 2)
    right = [accuracy_score(arrays["gold"], answer, normalize=False) for answer in answers]
    assert found.gained - found.lost == right[1] - right[0]
    assert (reverse.lost, reverse.gained, reverse.changed) == (found.gained, found.lost, found.changed)
    assert min(found.lost, found.gained, found.changed) > 0
    assert statistics.changes(classes(seed, noise=0.0)) == statistics.Changes(100.0, 0, 0, 0)


def test_answers_to_questions_agree_as_strings():
    arrays = {
        "answers_dense": np.array(["a", "the b", "c", "d"]),
        "answers_pruned": np.array(["a", "b", "", "longer"]),
        "em_dense": np.array([100.0, 100.0, 100.0, 0.0]),
        "em_pruned": np.array([100.0, 100.0, 0.0, 0.0]),
    }
    assert statistics.changes(arrays) == statistics.Changes(agreement=25.0, lost=1, gained=0, changed=1)


@pytest.mark.parametrize("outputs", [2, 3])
@pytest.mark.parametrize("which", ["dense", "pruned"])
def test_threshold_free_measures_are_those_of_scikit_learn(outputs, which):
    arrays = classes(5, outputs=outputs)
    gold, logits = arrays["gold"], arrays[f"logits_{which}"].astype(np.float64)
    scores = logits[:, 1] - logits[:, 0] if outputs == 2 else special.softmax(logits, axis=1)
    assert statistics.auc(arrays, which) == pytest.approx(100 * roc_auc_score(gold, scores, multi_class="ovr"))
    assert statistics.matthews(arrays, which) == pytest.approx(100 * matthews_corrcoef(gold, logits.argmax(1)))


def test_one_answer_has_no_matthews_correlation():
    assert statistics.matthews({**classes(), "logits_pruned": np.tile([1.0, 0.0, 0.0], (200, 1))}) == 0.0


@pytest.mark.parametrize("score", SCORES)
def test_clusters_are_drawn_whole(score, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 30)
    arrays = example(score) | {"cluster": np.arange(200) // 20}
    draws = np.random.default_rng(0).integers(0, 10, (30, 10))
    expected = [literal(score, arrays, np.concatenate([np.flatnonzero(arrays["cluster"] == one) for one in units])) for units in draws]
    assert statistics.resampled(score.split()[0], arrays, "pruned") == pytest.approx(expected)


def test_a_dense_model_is_resampled_once_for_all_its_records(monkeypatch):
    first, again = classes(1), classes(1) | {"logits_pruned": classes(2)["logits_pruned"]}
    known = statistics.resampled("accuracy", first, "dense")
    assert statistics.resampled("accuracy", again, "dense") is known
    assert statistics.resampled("accuracy", first | {"cluster": np.arange(200) // 2}, "dense") is not known


def test_what_has_no_meaning_is_none():
    assert statistics.changes(numbers()) == statistics.Changes(None, None, None, None)
    for arrays in (numbers(), questions()):
        assert statistics.calibration_error(arrays, "dense") is None
        assert statistics.divergence(arrays) is None


@pytest.mark.parametrize("which", ["dense", "pruned"])
@pytest.mark.parametrize("bins", [1, 4, 15])
def test_the_calibration_error_is_that_of_a_literal_loop(which, bins):
    arrays = classes(3)
    members = {b: [] for b in range(bins)}
    for logits, gold in zip(arrays[f"logits_{which}"].astype(np.float64), arrays["gold"], strict=True):
        probabilities = [exp(x) / sum(exp(y) for y in logits) for x in logits]
        top = max(probabilities)
        where = next(b for b in range(bins) if b / bins < top <= (b + 1) / bins)
        members[where].append((top, probabilities.index(top) == gold))
    expected = 0.0
    for inside in filter(None, members.values()):
        confidence, accuracy = (sum(values) / len(inside) for values in zip(*inside, strict=True))
        expected += len(inside) / len(arrays["gold"]) * abs(accuracy - confidence)
    assert statistics.calibration_error(arrays, which, bins) == pytest.approx(100 * expected)


def test_who_is_always_sure_errs_by_its_errors():
    gold = np.arange(100) % 2
    arrays = {"gold": gold, "logits_pruned": 1000 * flipped(gold, np.arange(30))}
    assert statistics.calibration_error(arrays) == pytest.approx(30.0)
    odds = {"gold": gold, "logits_pruned": flipped(gold, np.arange(25)) * log(3) / 4}
    assert statistics.calibration_error(odds) == pytest.approx(0.0, abs=1e-6), "75 % sure and 75 % right"
    sure = {"gold": gold, "logits_pruned": np.where(gold[:, None] == 1, [[1000.0, 0.0]], [[0.0, 0.0]])}
    assert statistics.calibration_error(sure, bins=1) == pytest.approx(25.0), "half surely wrong, half right at even odds, in one bin"


def test_the_divergence_is_that_of_scipy_from_dense_to_pruned():
    arrays = classes(4)
    dense, pruned = (special.softmax(arrays[f"logits_{which}"].astype(np.float64), axis=1) for which in ("dense", "pruned"))
    assert statistics.divergence(arrays) == pytest.approx(special.rel_entr(dense, pruned).sum(1).mean())
    assert statistics.divergence(arrays) != pytest.approx(special.rel_entr(pruned, dense).sum(1).mean())
    shifted = {**arrays, "logits_pruned": arrays["logits_dense"] + 3}
    assert statistics.divergence(shifted) == pytest.approx(0.0, abs=1e-9)
    assert 100 < statistics.divergence({**arrays, "logits_pruned": 1e4 * arrays["logits_pruned"]}) < np.inf, "finite where scipy's is not"


@pytest.mark.parametrize("value", [0.1, 0.7, 0.9])  # the mean of as many of some is not exactly that
def test_constant_predictions_do_not_correlate(value):
    arrays = {**numbers(), "logits_pruned": np.full((200, 1), value)}
    for score in ("pearson", "spearman"):
        assert not statistics.resampled(score, arrays, "pruned").any()


@pytest.mark.parametrize("seed", range(3))
def test_ranks_are_those_of_scipy(seed):
    scores = pd.DataFrame(np.random.default_rng(seed).integers(0, 5, (8, 4)), columns=list("abcd"), dtype="Float64")
    found = statistics.ranks(scores)
    np.testing.assert_array_equal(found, stats.rankdata(-scores.to_numpy(np.float64), axis=1))
    assert list(found.columns) == list("abcd")
    ranking = statistics.ranking(scores)
    assert ranking.average.sum() == pytest.approx(4 * 5 / 2)
    assert ranking.friedman == pytest.approx(stats.friedmanchisquare(*scores.to_numpy(np.float64).T).pvalue)


def test_ranks_of_a_published_comparison():
    scores = pd.DataFrame([[float(cell) for cell in line.split()] for line in DEMSAR.strip().splitlines()], columns=["c", "m", "cf", "mcf"])
    ranking = statistics.ranking(scores)
    assert ranking.average.tolist() == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    assert (ranking.rows, ranking.critical) == (14, pytest.approx(2.569 * (4 * 5 / (6 * 14)) ** 0.5, rel=1e-3))
    ties = 3 * (2**3 - 2) + (4**3 - 4)  # three pairs and a row of four
    expected = stats.chi2.sf(9.28 / (1 - ties / (14 * (4**3 - 4))), 3)
    assert ranking.friedman == pytest.approx(expected, rel=0.01), "the paper's statistic, which it does not correct for ties"


@pytest.mark.parametrize(("methods", "q"), [(3, 2.343), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_has_the_published_quantile(methods, q):
    scores = pd.DataFrame(np.random.default_rng(0).normal(size=(6, methods)))
    assert statistics.ranking(scores).critical == pytest.approx(q * (methods * (methods + 1) / 36) ** 0.5, rel=1e-3)


def test_only_rows_that_every_method_has_are_ranked():
    scores = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [2.0, None, 1.0], "c": [3.0, 1.0, 2.0]}, index=["x", "y", "z"], dtype="Float64")
    assert statistics.ranks(scores).to_dict("index") == {"x": {"a": 3, "b": 2, "c": 1}, "z": {"a": 1, "b": 3, "c": 2}}
    assert statistics.ranking(scores).rows == 2


def test_what_too_few_rows_or_methods_cannot_say_is_none():
    scores = pd.DataFrame({"a": [3.0, 3.0], "b": [2.0, 2.0], "c": [1.0, 1.0]})
    for few in (scores[:1], scores[["a", "b"]]):
        ranking = statistics.ranking(few)
        assert (ranking.friedman, ranking.critical) == (None, None)
        assert ranking.average["a"] == 1
    nothing = statistics.ranking(scores.where(scores > 3))
    assert (nothing.rows, nothing.friedman, nothing.critical) == (0, None, None)
    assert nothing.average.isna().all()
    assert statistics.ranking(scores * 0).friedman == 1.0, "all tied: no difference"


def test_a_search_is_compared_by_its_rankings():
    """Its examples have no answer that is right or wrong."""
    random = np.random.default_rng(0)
    dense = random.uniform(0, 100, 400)
    common = {"mrr@10_trivial": np.full(400, 0.7), "mrr@10_dense": dense}
    better, worse = common | {"mrr@10_pruned": dense - 1}, common | {"mrr@10_pruned": dense - 5}
    found = statistics.paired("mrr@10", better, worse)
    assert (found.difference, found.low, found.high) == pytest.approx((4.0, 4.0, 4.0))
    assert statistics.changes(better) == statistics.Changes()
    with pytest.raises(ValueError, match="not scored on the same examples"):
        statistics.paired("mrr@10", better, {name: values[:399] for name, values in worse.items()})
