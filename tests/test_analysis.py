"""Tables from records: a grid with what is missing, and intervals."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from analysis import grid, statistics
from bench.records import store
from tests.test_store import made

HERE = "test-2c"
UNITS = {"heads": np.ones((2, 4)), "neurons": np.ones((2, 8))}


def stored(folder, seed=0, method="magnitude", score=70.0, status="ok", load=0.0, notes=(), **changes):
    entry = made(status=status, seed=seed, task="mrpc", model="minilm", ratio=0.75, id=f"{method}{seed}", **changes)
    entry["method"] = {"name": method}
    entry["calibration"]["tokens"] = 100_020
    entry["machine"] |= {"load": load}
    entry["dense"] |= {"score": 80.0}
    entry["latency"]["headline"] |= {"speedup": 2.0}
    entry["pruned"] |= {"score": score, "metrics": {"accuracy": score, "f1": 50.0}}
    entry["prune"] |= {"seconds": 8.0 + seed, "passes": 2.0 + seed, "notes": list(notes)}
    gold = np.arange(200) % 2
    right = np.arange(200) < 2 * score
    logits = np.stack([(gold == 0) == right, (gold == 1) == right], 1).astype(np.float32)
    return store.Stored(entry, store.write(folder, entry, {"gold": gold, "logits_dense": logits, "logits_pruned": logits} | UNITS))


@pytest.fixture
def cells(monkeypatch):
    common = {"model": "minilm", "task": "mrpc", "ratio": 0.75}
    todo = [{**common, "seed": seed, "method": method} for seed in (0, 1) for method in ("magnitude", "kcm", "kwon")]
    monkeypatch.setattr(grid, "cells", lambda _: list(todo))


def test_a_grid_shows_seeds_together_and_what_is_missing_or_skipped(tmp_path, cells):
    entries = [stored(tmp_path, 0), stored(tmp_path, 1, score=72.0), stored(tmp_path, 0, "kcm", status="skipped")]
    rows = grid.table("any", entries, HERE)
    assert [row[2:6] for row in rows] == [
        ["magnitude", "2 of 2", "80.00", "71.00"],
        ["kcm", "0 of 2", "skipped", "-"],
        ["kwon", "0 of 2", "missing", "-"],
    ]
    assert rows[0][grid.HEADER.index("passes")] == "2.50"
    assert rows[0][grid.HEADER.index("± seeds")] == f"{12.7062 * 1.0:.2f}", "t with one degree of freedom, standard error 1"


def test_seconds_come_from_quiet_machines_alone(tmp_path, cells):
    busy = stored(tmp_path, 1, notes=["other work on the machine while pruning: 0.40 per core"])
    where = grid.HEADER.index("pruning")
    assert grid.table("any", [stored(tmp_path, 0), busy], HERE)[0][where] == "8.0 s (1)", "of two runs"
    assert grid.table("any", [stored(tmp_path, 0), stored(tmp_path, 1)], HERE)[0][where] == "8.5 s"
    assert grid.table("any", [busy], HERE)[0][where] == "-"
    assert grid.table("any", [stored(tmp_path, 0, load=0.5)], HERE)[0][where] == "-"


def test_a_method_with_another_field_is_another_method(tmp_path, cells):
    other = stored(tmp_path, command="python -m bench method=magnitude method.allocation=global")
    assert grid.table("any", [other], HERE)[0][3] == "0 of 2"


def test_a_sample_of_another_size_is_another_cell(tmp_path, cells):
    other = stored(tmp_path)
    other.record["calibration"]["tokens"] = 25_020
    assert grid.table("any", [other], HERE)[0][3] == "0 of 2"


def test_scores_come_from_any_machine_and_timings_from_one(tmp_path, cells):
    other = stored(tmp_path)
    other.record["machine"]["name"] = "h200"
    row = dict(zip(grid.HEADER, grid.table("any", [other], HERE)[0], strict=True))
    assert (row["pruned"], row["passes"], row["pruning"], row["speedup"]) == ("70.00", "-", "-", "-")
    row = dict(zip(grid.HEADER, grid.table("any", [other, stored(tmp_path, score=60.0)], HERE)[0], strict=True))
    assert (row["pruned"], row["passes"]) == ("60.00", "2.00"), "the machine's own record before another's"


def test_a_busy_gpu_gives_no_passes(tmp_path, cells):
    busy = stored(tmp_path, load=0.5)
    busy.record["device"] = "cuda"
    assert grid.table("any", [busy], HERE)[0][grid.HEADER.index("passes")] == "-"


def test_a_grid_can_have_been_run_with_other_keys(tmp_path, cells):
    other = stored(tmp_path)
    other.record["calibration"]["tokens"] = 25_020
    assert grid.table("any", [other], HERE, {"calibration.tokens": 25_000})[0][3] == "1 of 2"


def test_the_interval_over_seeds_is_that_of_t():
    values = [70.0, 72.0, 71.0]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert statistics.over_seeds(values) == pytest.approx((high - low) / 2)
    assert statistics.over_seeds([70.0]) is None


def test_the_interval_over_examples_is_that_of_scipy():
    rng = np.random.default_rng(1)
    gold, logits = rng.integers(0, 2, 400), rng.normal(size=(400, 2))
    logits[np.arange(400), gold] += 1
    arrays = {"gold": gold, "logits_pruned": logits}
    right = 100.0 * (logits.argmax(1) == gold)
    found = stats.bootstrap((right,), np.mean, n_resamples=4000, method="percentile", rng=2).confidence_interval
    assert statistics.over_examples("accuracy", arrays) == pytest.approx((found.high - found.low) / 2, rel=0.1)


@pytest.mark.parametrize("score", ["accuracy", "f1", "pearson", "spearman"])
def test_resampled_scores_are_the_metrics(score, monkeypatch):
    rng = np.random.default_rng(1)
    gold = rng.integers(0, 2, 300) if score in ("accuracy", "f1") else rng.normal(size=300)
    logits = rng.normal(size=(300, 2)) + gold[:, None] * [[0.0, 1.0]] + gold[:, None] * [[1.0, 0.0]] * (score != "f1")
    monkeypatch.setattr(statistics, "RESAMPLES", 1)
    rows = np.random.default_rng(0).integers(0, 300, 300)
    expected = {
        "accuracy": lambda: np.mean(logits.argmax(1)[rows] == gold[rows]),
        "f1": lambda: f1_score(gold[rows], logits.argmax(1)[rows]),
        "pearson": lambda: stats.pearsonr(gold[rows], logits[rows, 0]).statistic,
        "spearman": lambda: stats.spearmanr(gold[rows], logits[rows, 0]).statistic,
    }[score]()
    found = statistics.resampled(score, {"gold": gold, "logits_pruned": logits}, "pruned")
    assert found[0] == pytest.approx(100 * expected)


def test_questions_are_resampled_by_their_own_scores():
    f1 = np.linspace(0, 100, 500)
    assert statistics.over_examples("f1", {"f1_pruned": f1, "em_pruned": f1 * 0}) == pytest.approx(1.96 * f1.std() / 500**0.5, rel=0.1)
    with pytest.raises(ValueError, match="no interval for the score 'bleu'"):
        statistics.over_examples("bleu", {"gold": f1, "logits_pruned": f1[:, None]})


def test_the_command_says_what_is_wrong(bench, tmp_path):
    assert "no such folder" in bench("grid", "small", "nowhere", module="analysis").stderr
    (tmp_path / "empty").mkdir()
    assert "unknown grid 'smal'" in bench("grid", "smal", "empty", module="analysis").stderr
    assert "missing" in bench("grid", "small", "empty", module="analysis").stdout
    assert bench("draw", module="analysis").returncode == 1
    stored(tmp_path / "some")
    for words, told in {
        ("grid", "small", "empty", "machine=nosuch"): "no record of machine 'nosuch'",
        ("grid", "small", "empty", "ratoi=0.5"): "unknown key 'ratoi'; did you mean 'ratio'?",
        ("grid", "small", "empty", "ratio=["): "ratio=[: not a value of this key",
        ("choose", "task=mrpc", "model=minilm", "speedup=nan", "some"): "speedup=nan: times as fast, more than 0",
        ("choose", "task=mrpc", "model=minilm", "drop=-1", "some"): "drop=-1: points below the dense score, 0 to 100",
        ("choose", "task=mrpc", "model=minilm", "drop=1", "machine=nosuch", "some"): "no record of machine 'nosuch'; choose",
        ("--machine", "nosuch", "some", "--out", "out"): "no record of machine 'nosuch'",
        ("some", "--out", str(tmp_path / "some" / HERE / "file")): "Not a directory",
        ("timing", "bad.json", "out.svg"): "bad.json is not what python -m bench.speed.repeatability writes",
    }.items():
        (tmp_path / "bad.json").write_text("{}")
        (tmp_path / "some" / HERE / "file").write_text("")
        done = bench(*words, module="analysis")
        assert done.returncode == 1, words
        assert told in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
