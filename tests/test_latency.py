"""Paired timing, the grid, what limits a speedup, what the GPU's driver tells."""

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import machine
from bench.config import LatencyPlan, Point
from bench.errors import UserError
from bench.made_up import FAMILIES, tiny
from bench.masks import Masks
from bench.nn.shrink import shrink
from bench.speed import bounds, latency, nvml, timing
from bench.speed.timing import Ratio, alternate, paired

OUTPUTS = ["logits"]
SHORT = LatencyPlan("quick", batch=4, length=16, min_rounds=12, min_seconds=0.01)


def timed(seconds, log, name):
    def run():
        log.append(name)
        return next(seconds)

    return run


def test_dense_and_pruned_alternate_and_the_order_flips():
    log = []
    plan = LatencyPlan("quick", min_rounds=4, min_seconds=1e-9)
    times = alternate([timed(iter([4.0] * 9), log, "dense"), timed(iter([2.0, 1.0] * 5), log, "pruned")], plan, warm_up=0)
    assert "".join(name[0] for name in log) == "dppddppd"
    assert times.tolist() == [[4, 2], [4, 1], [4, 2], [4, 1]]


def test_batches_alone_are_timed_at_the_headlines_length():
    plan = LatencyPlan("quick", batches=[1], dtypes=["float32"])
    assert plan.points("cpu") == [Point(32, 128, "float32", "eager"), Point(1, 128, "float32", "eager")]
    assert len(LatencyPlan("paper", batches=[], lengths=[32], dtypes=["float32"]).points("cpu")) == 1


def test_rounds_end_at_the_time_limit_but_not_before_the_least():
    plan = LatencyPlan("quick", min_rounds=1000, min_seconds=1.0, max_seconds=1e-9, floor_rounds=5)
    assert len(alternate([timed(iter([1.0] * 99), [], "d"), timed(iter([1.0] * 99), [], "p")], plan)) == 5


def test_rounds_go_on_until_the_interval_is_narrow():
    random = np.random.default_rng(0)
    noisy = iter(random.lognormal(0, 0.3, 10_000))
    plan = LatencyPlan("paper", min_rounds=20, min_seconds=1e-9, width=0.1)
    times = alternate([lambda: next(noisy), lambda: 1.0], plan)
    found = Ratio.of(*times.T)
    assert len(times) > 20
    assert found.high - found.low <= 0.1 * found.speedup
    assert len(alternate([lambda: 1.0, lambda: 1.0], plan)) == 20


def test_the_interval_holds_the_median_and_narrows():
    random = np.random.default_rng(0)
    few, many = random.normal(2, 0.1, 20), random.normal(2, 0.1, 2000)
    for ratios in (few, many):
        low, high = timing.interval(ratios)
        assert low <= np.median(ratios) <= high
    assert np.subtract(*timing.interval(many)[::-1]) < np.subtract(*timing.interval(few)[::-1])


@pytest.mark.parametrize("drift", [1.0, 3.0])
def test_a_known_ratio_lies_in_its_interval_also_where_the_machine_slows_down(monkeypatch, drift):
    """A clock of our own: every unit of work takes longer the later it is done, in the end `drift` times as long."""
    now, random = [0.0], np.random.default_rng(0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def work(units):
        slowness = 1 + (drift - 1) * min(1.0, now[0] / 300)
        now[0] += units * slowness * random.lognormal(0, 0.05)

    found = paired(lambda: work(2.5), lambda: work(1.0), LatencyPlan("quick", min_rounds=80, min_seconds=1.0, max_seconds=1e9))
    assert found.low <= 2.5 <= found.high
    assert found.high - found.low < 0.2


def test_real_work_of_a_known_ratio_lies_in_its_interval():
    found = paired(lambda: time.sleep(0.012), lambda: time.sleep(0.004), LatencyPlan("quick", min_rounds=20, min_seconds=0.1))
    assert found.low * 0.9 <= 3 <= found.high * 1.1  # a sleep takes a little longer than it should


@pytest.fixture
def pair():
    model = tiny("bert", dtype=torch.float32)
    masks = Masks.ones(model.shape)
    return model, shrink(model, Masks(masks.heads * 0, masks.neurons * 0))


def test_a_shrunk_model_is_faster_and_every_key_is_there(pair):
    model, small = pair
    found = latency.compare(model.module, small, OUTPUTS, SHORT, 40, "cpu")
    point = found["headline"]
    assert point["low"] <= point["speedup"] <= point["high"]
    assert point["speedup"] > 1.2
    assert point["dense_per_second"] == pytest.approx(4000 / point["dense_ms"], rel=0.01)
    low, high = point["pruned_ms_p10_p90"]
    assert low <= point["pruned_ms"] <= high
    assert set(point) == {"batch", "length", "dtype", "mode", "note", *latency.MEASURED, *latency.BESIDE}
    assert found["grid"] == [point]
    assert latency.compare(model.module, small, OUTPUTS, LatencyPlan("none"), 40, "cpu") == {
        "plan": "none",
        "headline": None,
        "grid": [],
        "notes": [],
    }


def test_a_model_with_fewer_positions_is_timed_at_its_last(pair):
    found = latency.compare(pair[0].module, pair[1], OUTPUTS, SHORT, 8, "cpu")
    assert found["headline"]["length"] == found["positions"] == 8
    assert "the model has 8 positions: timed at that length, not at 16" in found["notes"]


def test_a_grid_is_all_combinations_after_the_headline_prepared_once_each(monkeypatch):
    monkeypatch.setattr(machine, "dtypes", lambda _: ["float32", "bfloat16"])
    plan = LatencyPlan("paper", batches=[1, 32], lengths=[128], modes=["eager", "onnx"])
    assert plan.points("cpu") == [
        Point(32, 128, "float32", "eager"),
        Point(1, 128, "float32", "eager"),
        Point(1, 128, "float32", "onnx"),
        Point(32, 128, "float32", "onnx"),
        Point(1, 128, "bfloat16", "eager"),
        Point(32, 128, "bfloat16", "eager"),
    ]


def test_other_precisions_are_timed_and_the_models_stay_as_they_are(pair):
    plan = replace(SHORT, batches=[2], lengths=[8], dtypes=["bfloat16"])
    grid = latency.compare(pair[0].module, pair[1], OUTPUTS, plan, 40, "cpu")["grid"]
    assert [(point["dtype"], point["batch"], point["note"]) for point in grid] == [("float32", 4, None), ("bfloat16", 2, None)]
    assert all(parameter.dtype == torch.float32 for module in (pair[0].module, pair[1]) for parameter in module.parameters())


def test_a_point_that_fails_is_a_point_with_a_note(pair, monkeypatch):
    def scarce(module, batch, length, device):
        if batch > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(module, batch, length, device)

    real = timing.inputs
    monkeypatch.setattr(latency, "inputs", scarce)
    plan = replace(SHORT, batches=[64, 2], lengths=[8], dtypes=["float32"])
    found = latency.compare(pair[0].module, pair[1], OUTPUTS, plan, 40, "cpu")
    assert [point["note"] for point in found["grid"]] == [None, "out of memory", None]
    assert found["grid"][1]["speedup"] is None
    monkeypatch.setattr(torch, "compile", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no compiler\nat all")))
    plan = replace(SHORT, batches=[2], lengths=[8], dtypes=["float32"], modes=["compile"])
    found = latency.compare(pair[0].module, pair[1], OUTPUTS, plan, 40, "cpu")
    assert found["headline"]["speedup"] > 1
    assert found["grid"][1]["note"] == "RuntimeError: no compiler"


def test_onnx_is_a_mode_of_its_own(pair):
    pytest.importorskip("onnxscript")
    plan = replace(SHORT, batches=[2], lengths=[8], dtypes=["float32"], modes=["onnx"])
    point = latency.compare(pair[0].module, pair[1], OUTPUTS, plan, 40, "cpu")["grid"][1]
    assert (point["mode"], point["note"]) == ("onnx", None)
    assert point["dense_ms"] > 0


def test_a_point_longer_than_the_models_positions_is_refused():
    with pytest.raises(UserError, match=r"latency.lengths=\[8, 64\]: the model has 40 positions, leave 64 out"):
        latency.check(replace(SHORT, lengths=[8, 64]), 40)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_limits_a_speedup_is_measured_on_every_family(family):
    model = tiny(family, dtype=torch.float32)
    masks = Masks.ones(model.shape)
    masks.heads[0], masks.heads[1, 1:], masks.neurons[:, 20:], masks.neurons[2] = 0.0, 0.0, 0.0, 0.0
    small = shrink(model, masks)
    found = bounds.explain(model, masks, small, replace(SHORT, batches=[1]), 38, "cpu")
    assert (found["batch"], found["alone"]["batch"]) == (4, 1)
    assert 1 < found["bound_with_fixed"] < found["flops_bound"]
    assert 0 < found["fixed_share"] < 1
    assert 0 < found["launch_share"] <= 1
    assert found["verdict"]
    unsteady = bounds.explain(model, masks, small, SHORT, 38, "cpu", headline=50.0)
    assert unsteady["verdict"].startswith("unsteady machine: 50.00 times as fast in one measurement")
    twin = bounds.native(small)
    assert {n: p.shape for n, p in twin.named_parameters()} == {n: p.shape for n, p in small.named_parameters()}
    bare = bounds.skeleton(model, masks)
    assert [type(m) for m in bare.modules()] == [type(m) for m in small.modules()], "operator for operator the same model"


def seconds(dense, pruned, native, empty, skeleton):
    return np.array([[value] * 9 for value in (dense, pruned, native, empty, skeleton)])


@pytest.mark.parametrize(
    ("times", "kept", "word"),
    [
        (seconds(10, 5.2, 5.2, 0.1, 0.1), 0.5, "FLOPs"),
        (seconds(10, 6.4, 6.4, 3.0, 0.1), 0.5, "what is not pruned: 30 %"),
        (seconds(10, 8.0, 8.0, 0.5, 0.1), 0.5, "less efficient: else 1.90"),
        (seconds(10, 8.0, 5.0, 0.5, 0.1), 0.5, "native model of these sizes is 1.60 times"),
        (seconds(10, 8.0, 8.0, 3.0, 6.0), 0.5, "launch-bound: 75 %"),
    ],
)
def test_the_verdict_names_what_stands_in_the_way(times, kept, word):
    found = bounds.summary(times, kept)
    assert word in found["verdict"]
    assert found["flops_bound"] == 2.0


def test_without_a_driver_nothing_is_told(monkeypatch):
    monkeypatch.setattr(nvml, "_device", lambda: None)
    assert nvml.energy() is None
    assert nvml.notes() == nvml.warnings() == []


def test_what_the_driver_tells(monkeypatch):
    lib = SimpleNamespace(
        NVML_CLOCK_SM=1,
        nvmlDeviceGetTotalEnergyConsumption=lambda _: 2500,
        nvmlDeviceGetClockInfo=lambda _, clock: 1200,
        nvmlDeviceGetMaxClockInfo=lambda _, clock: 1980,
        nvmlDeviceGetEnforcedPowerLimit=lambda _: 700_000,
        nvmlDeviceGetComputeRunningProcesses=lambda _: [SimpleNamespace(pid=7), SimpleNamespace(pid=8)],
    )
    monkeypatch.setattr(nvml, "_device", lambda: (lib, "gpu"))
    assert nvml.energy() == 2.5
    assert nvml.notes() == ["SM clock 1200 of 1980 MHz", "power limit 700 W"]
    assert nvml.warnings() == ["1 other process on the GPU while timing"]
    del lib.nvmlDeviceGetTotalEnergyConsumption
    assert nvml.energy() is None, "a card that does not count"


def test_energy_is_counted_for_each_sample(monkeypatch):
    used = iter([100.0, 130.0])
    monkeypatch.setattr(nvml, "energy", lambda: next(used))
    monkeypatch.setattr(latency, "timer", lambda work, device: lambda: 0.25)
    assert latency._joules(lambda: None, 5, 1.0, "cuda") == 30 / (4 * 5)
    assert latency._joules(lambda: None, 5, 0.0, "cuda") is None, "not asked for"
    assert latency._joules(lambda: None, 5, 1.0, "cpu") is None


def test_the_precisions_of_a_cpu_are_those_of_its_flags(monkeypatch):
    monkeypatch.setattr(machine, "_cpu", lambda: ("x", frozenset({"avx2"})))
    assert machine.dtypes("cpu") == ["float32"]
    monkeypatch.setattr(machine, "_cpu", lambda: ("x", frozenset({"amx_bf16", "avx512_fp16"})))
    assert machine.dtypes("cpu") == ["float32", "float16", "bfloat16"]
