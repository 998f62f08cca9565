"""What a score is worth."""

import numpy as np
import pytest

from bench.records import verdict

GOLD = np.array([1] * 70 + [0] * 30)


def _logits(predicted: np.ndarray) -> np.ndarray:
    return np.eye(2, dtype=np.float32)[predicted]


def _arrays(predicted: np.ndarray, gold: np.ndarray = GOLD) -> dict[str, np.ndarray]:
    return {"gold": gold, "logits_pruned": _logits(predicted)}


def test_the_trivial_answer_of_classes_is_the_largest_class() -> None:
    assert verdict.trivial("accuracy", _arrays(GOLD)) == pytest.approx(70)
    assert verdict.trivial("f1", _arrays(GOLD)) == pytest.approx(100 * 2 * 0.7 / 1.7)
    assert verdict.trivial("spearman", {"gold": np.array([0.5, 1.0])}) == 0


def test_a_perfect_model_has_not_collapsed_and_a_constant_one_has() -> None:
    for score in ("accuracy", "f1"):
        assert not verdict.is_collapsed(score, _arrays(GOLD))
        assert verdict.is_collapsed(score, _arrays(np.ones_like(GOLD)))
        assert verdict.is_collapsed(score, _arrays(1 - GOLD))


def test_one_answer_more_than_the_trivial_one_is_noise() -> None:
    predicted = np.ones_like(GOLD)
    predicted[-1] = 0
    predicted[-2:0:-20] = 0
    assert verdict.is_collapsed("accuracy", _arrays(predicted))


def test_a_score_that_is_not_defined_has_collapsed() -> None:
    assert verdict.is_collapsed(None, _arrays(GOLD))


def test_numbers_that_follow_the_gold_ones_have_not_collapsed() -> None:
    rng = np.random.default_rng(0)
    gold = rng.random(200)
    for predicted, collapsed in ((gold + 0.1 * rng.random(200), False), (rng.random(200), True), (-gold, True), (np.ones(200), True)):
        assert verdict.is_collapsed("spearman", {"gold": gold, "logits_pruned": predicted[:, None]}) is collapsed


def test_of_questions_the_articles_are_the_draws() -> None:
    """A gain that one article alone brings is no evidence, however many questions it has."""
    f1 = np.where(np.arange(400) < 100, 60.0, 10.0)
    arrays = {"answers_pruned": np.arange(400).astype(str), "f1_pruned": f1, "f1_trivial": np.full(400, 10.0)}
    assert not verdict.is_collapsed("f1", arrays)
    assert verdict.is_collapsed("f1", arrays | {"cluster": np.arange(400) // 100})
    assert verdict.trivial("f1", arrays) == 10


def test_the_standard_error_of_independent_examples_is_the_usual_one() -> None:
    values = np.random.default_rng(0).random(50)
    assert verdict.standard_error(values) == pytest.approx(values.std(ddof=1) / np.sqrt(50))


def test_records_of_a_faulty_library_are_suspect() -> None:
    record = {"dense": {"metrics": {"exact_match": 1.0, "f1": 2.0}}, "software": {"tokenizers": "0.23.2"}}
    assert "0.23.2" in str(verdict.suspect(record))
    assert verdict.suspect(record | {"software": {"tokenizers": "0.23.3"}}) is None
    assert verdict.suspect(record | {"dense": {"metrics": {"accuracy": 1.0}}}) is None
