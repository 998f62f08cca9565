"""Costs without accuracy: random weights, masks of another run, numbers of neurons that kernels like."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.budget import Budget
from bench.made_up import batch as made
from bench.made_up import calibration, tiny
from bench.masks import Masks
from bench.method import Skip
from bench.nn.rounding import rounded
from methods.replay import Replay

WORDS = ["task=mrpc", "model=tiny-random", "model.weights=random", "method=magnitude", "calibration.tokens=800", "threads=1"]
SHORT = ["latency.min_seconds=0.05", "latency.min_rounds=5", "latency.batch=4", "latency.length=32"]


def record_of(done, tmp_path):
    assert done.returncode == 0, done.stderr
    (found,) = Path(tmp_path / "results").rglob("record.json")
    return json.loads(found.read_text())


def test_random_weights_are_timed_not_scored_and_say_so(bench, tmp_path):
    done = bench(*WORDS, *SHORT, "round_to=16", "ratio=0.4")
    record = record_of(done, tmp_path)
    assert record["status"] == "ok"
    assert record["dense"]["checkpoint"]["source"] == "random:tiny-random"
    assert record["dense"]["score"] is record["pruned"]["score"] is None
    assert record["pruned"]["metrics"] is record["dense"]["metrics"] is None
    assert "tiny-random (random)" in done.stdout
    assert record["latency"]["headline"]["speedup"] > 0
    assert record["latency"]["limits"]["verdict"]
    assert all(count % 16 == 0 for count in record["pruned"]["neurons"])
    assert record["round_to"] == record["latency"]["rounding"]["to"] == 16
    assert record["latency"]["rounding"]["low"] <= record["latency"]["rounding"]["speedup"]
    again = bench(*WORDS, *SHORT, "round_to=16", "ratio=0.4")
    assert "stored already" in again.stderr


def test_random_weights_and_a_path_exclude_each_other(bench, tmp_path):
    done = bench(*WORDS, f"model.path={tmp_path}")
    assert done.returncode == 1
    assert done.stderr == "model.weights=random: model.path= names weights, leave one of them out\n"
    assert "model.weights=rnd" in bench(*WORDS[:2], "model.weights=rnd").stderr


def test_a_stored_records_masks_are_pruned_again(bench, tmp_path):
    bench(*WORDS, "latency=none", "ratio=0.4")
    (folder,) = (tmp_path / "results" / next((tmp_path / "results").iterdir()).name).iterdir()
    words = [word for word in WORDS if not word.startswith("method")]
    done = bench(*words, "method=replay", f"method.record={folder}", "latency=none", "ratio=0.4", "results=second")
    assert done.returncode == 0, done.stderr
    (found,) = (tmp_path / "second").rglob("record.json")
    first, second = (json.loads(path.read_text())["pruned"] for path in (folder / "record.json", found))
    assert first["heads"] == second["heads"]
    assert first["neurons"] == second["neurons"]


def test_a_replay_needs_a_record_and_skips_what_does_not_fit(tmp_path, bench):
    done = bench(*WORDS[:3], "method=replay")
    assert done.returncode == 1
    assert "the folder of a stored record is needed" in done.stderr
    model, sample = tiny(), calibration([made([5, 3])])
    ones = Masks.ones(model.shape)
    np.savez(tmp_path / "arrays.npz", heads=ones.heads, neurons=ones.neurons)
    with pytest.raises(Skip, match=r"keep 1.0000 of the cost, the budget is 0.5"):
        Replay(str(tmp_path)).prune(model, sample, Budget.of(model, "flops", 0.5, 6.0))
    np.savez(tmp_path / "arrays.npz", gold=ones.heads)
    with pytest.raises(ValueError, match="holds no masks: the run was skipped or failed"):
        Replay(str(tmp_path))
    np.savez(tmp_path / "arrays.npz", heads=ones.heads[:1], neurons=ones.neurons)
    with pytest.raises(Skip, match="do not fit this model"):
        Replay(str(tmp_path)).prune(model, sample, Budget.of(model, "flops", 0.5, 6.0))


def test_neurons_are_rounded_down_and_the_smallest_go():
    model = tiny("bert", dtype=torch.float64)
    masks = Masks.ones(model.shape)
    masks.neurons[0, 30:] = 0.0  # 30 of 40
    masks.neurons[1, 5:] = 0.0  # fewer than the multiple
    with torch.no_grad():
        model.sublayers[1].projection.weight[:, :3] *= 1e-3  # the smallest of the kept
        model.sublayers[1].producers[0].linear.weight[3:6] *= 1e-3
    masks.neurons[0, 6] = -1e-4  # a factor counts
    result = rounded(model, masks, 8)
    assert (result.neurons != 0).sum(1).tolist() == [24, 5, 40]
    gone = np.flatnonzero((masks.neurons[0] != 0) & (result.neurons[0] == 0))
    assert set(gone) <= {0, 1, 2, 3, 4, 5, 6}
    assert np.array_equal(result.heads, masks.heads)
    assert np.array_equal(rounded(model, masks, 1).neurons, masks.neurons)
