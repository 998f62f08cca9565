"""Metrics, the pass, stages, the machine."""

import os
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from scipy import stats

from bench import machine, pruning
from bench.budget import Budget
from bench.config import Task
from bench.errors import UserError
from bench.made_up import batch, calibration, tiny
from bench.masks import Masks
from bench.method import Method
from bench.nn.bf16 import bf16_layers
from bench.speed import meter
from bench.stages import collect, progress, stage
from bench.tasks import scoring
from tests.helpers import measured

LOGITS = np.array([[2.0, 1], [0, 3], [1, 0], [0, 1]], np.float32)  # predicts 0, 1, 0, 1


def test_metrics_by_hand():
    values = measured(["accuracy", "f1"], LOGITS, np.array([0, 1, 1, 1]))
    assert values == {"accuracy": 75.0, "f1": pytest.approx(80.0)}  # precision 1, recall 2/3


def test_correlations_are_scipys_and_have_no_value_where_undefined():
    predicted, gold = np.array([[0.1], [0.4], [0.2], [0.9]], np.float32), np.array([0.0, 2.0, 1.5, 5.0])
    values = measured(["pearson", "spearman"], predicted, gold)
    assert values["pearson"] == pytest.approx(100 * stats.pearsonr(predicted[:, 0], gold).statistic)
    assert values["spearman"] == pytest.approx(100 * stats.spearmanr(predicted[:, 0], gold).statistic)
    noise = 3 + np.float32(2e-7) * np.arange(4, dtype=np.float32)[:, None]  # one number, but for rounding
    for constant in (predicted * 0, predicted * 0 - 3, noise):
        assert measured(["pearson", "spearman"], constant, gold) == {"pearson": None, "spearman": None}
    assert measured(["spearman"], predicted, gold * 0) == {"spearman": None}
    assert measured(["spearman"], predicted[:1], gold[:1]) == {"spearman": None}
    assert measured(["accuracy", "f1"], LOGITS, np.zeros(4, np.int64)) == {"accuracy": 50.0, "f1": None}
    assert measured(["f1"], LOGITS * [1, 0] + [9, 0], np.array([0, 1, 1, 1])) == {"f1": 0.0}


def test_logits_that_are_not_finite_have_no_score():
    with pytest.raises(ValueError, match="not finite"):
        scoring.measured(Task(["text"], ["a", "b"], ["accuracy"], "accuracy", 9.0, 16), LOGITS * np.float32("nan"), None)


class Slow(Method):
    """Sleeps, allocates, keeps all."""

    def prune(self, model, sample, budget):
        assert not torch.is_grad_enabled()
        assert all("labels" not in part for part in sample.batches)
        with stage("sleep"):
            block = np.ones(20_000_000)  # 160 MB
            time.sleep(0.2)
            del block
        model.sublayers[0].projection.weight.zero_()
        return Masks.ones(model.shape)


def test_pruning_is_timed_on_a_copy_without_labels_or_gradients():
    model = tiny("bert", dtype=torch.float32)
    before = model.sublayers[0].projection.weight.clone()
    sample = calibration([batch([9, 4, 3], seed) for seed in range(5)])
    result = pruning.prune(Slow(), model, sample, Budget.of(model, "flops", 0.0, 8.0))
    cost = result.cost
    assert cost["seconds"] >= cost["stages"]["sleep"] >= 0.2
    assert cost["passes"] == pytest.approx(cost["seconds"] / cost["pass_seconds"])
    assert cost["peak_bytes"] > 100e6
    assert torch.equal(model.sublayers[0].projection.weight, before)
    assert not result.model.sublayers[0].projection.weight.any()


class Greedy(Method):
    """Keeps all, whatever the budget."""

    def prune(self, model, sample, budget):
        return Masks.ones(model.shape)


def test_masks_over_budget_fail_the_run():
    model = tiny("bert", dtype=torch.float32)
    with pytest.raises(ValueError, match="the masks cost"):
        pruning.prune(Greedy(), model, calibration([batch([5, 5])]), Budget.of(model, "flops", 0.5, 8.0))


def test_the_sample_of_the_pass_is_spread_over_the_set():
    order = list(meter._spread(list(range(40))))  # type: ignore[arg-type]
    assert sorted(order) == list(range(40))
    assert order[:4] == [0, 10, 20, 30]


def test_stages_add_up_by_name_and_survive_errors():
    with collect() as seconds:
        for _ in range(2):
            with stage("a"):
                time.sleep(0.01)
        with pytest.raises(KeyError), stage("b"):
            raise KeyError
    assert seconds["a"] >= 0.02
    assert set(seconds) == {"a", "b"}


def test_progress_gives_every_item_in_plain_lines_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("bench.stages.LINE_EVERY", 0.0)
    assert list(progress([1, 2, 3], "counting")) == [1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("  counting: 1 of 3")
    assert "\r" not in "".join(lines)


def test_a_device_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(machine, "_cuda_devices", lambda: [])
    with pytest.raises(UserError, match=r"device=cuda: .*use device=cpu"):
        machine.resolve_device("cuda")
    assert machine.resolve_device("auto") == "cpu"
    monkeypatch.setattr(machine, "_cuda_devices", lambda: ["NVIDIA H200"])
    assert machine.resolve_device("auto") == "cuda"
    assert machine.resolve_device("cpu") == "cpu"
    assert machine.machine_name("cuda") == "h200"


def test_the_machine_has_a_short_stable_name():
    name = machine.machine_name("cpu")
    assert name == machine.machine_name("cpu")
    assert f"-{machine.usable_cores()}c-" in name
    assert machine.named("cpu", 1) == {"name": name, "threads": 1}
    assert machine.describe("cpu", 0.0)["gpu"] is None


def test_other_work_is_seen_and_own_is_not():
    code = "import time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"
    rival = subprocess.Popen([sys.executable, "-c", code])
    others = machine.OtherWork()
    time.sleep(0.6)
    assert others.per_core() > 0.3 / (os.cpu_count() or 1)
    rival.wait()
    mine = machine.OtherWork()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    busy = psutil.cpu_percent(interval=0.2) / 100
    assert mine.per_core() < busy + 0.3, "own work counts as that of others"


@pytest.mark.skipif(sys.platform != "linux", reason="affinity and control groups")
def test_cores_are_those_of_the_container(monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(machine.Path, "read_text", lambda *_: "150000 100000\n")
    assert machine.usable_cores() == 2


class Watched(Method):
    """Notes the precision of a layer's product, of float32 and of float64 matrices, and of the logits."""

    def prune(self, model, sample, budget):
        x = torch.ones(2, 2)
        logits = model.forward(sample.batches[0])
        layer = model.sublayers[0].projection(torch.ones(1, model.shape.hidden))
        self.notes += [str(part.dtype).removeprefix("torch.") for part in (layer, x @ x, x.double() @ x.double(), logits)]
        return Masks.ones(model.shape)


@pytest.mark.parametrize(("precision", "product"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_precision_is_that_of_the_layers_while_pruning_alone(precision, product):
    model = tiny("bert", dtype=torch.float32)
    budget = Budget.of(model, "flops", 0.0, 8.0)
    result = pruning.prune(Watched(), model, calibration([batch([5, 5])]), budget, precision)
    assert result.cost["notes"][:4] == [product, "float32", "float64", "float32"]
    assert model.sublayers[0].projection(torch.ones(1, model.shape.hidden)).dtype == torch.float32


def test_weights_that_ask_for_gradients_get_them_in_bf16():
    model = tiny("bert", dtype=torch.float32)
    weight, one = model.sublayers[0].projection.weight.requires_grad_(True), batch([5, 5])
    with bf16_layers(model):
        assert model.forward(one).isfinite().all()
        (found,) = torch.autograd.grad(model.forward(one).square().sum(), weight)
    (wanted,) = torch.autograd.grad(model.forward(one).square().sum(), weight)
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), 0) > 0.99


def test_pruning_on_a_gpu_takes_only_repeatable_operations():
    def switches():
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    before = switches()
    with machine.repeatable("cuda"):
        assert switches() == (True, False), "an operation without a repeatable kernel raises"
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert switches() == before
    with machine.repeatable("cpu"):
        assert switches() == before
