"""What units cost in seconds: the line that is fitted, what is measured, and runs under such a budget."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.made_up import FAMILIES, tiny
from bench.masks import Masks
from bench.nn.shrink import shrink
from bench.records import store
from bench.speed import latency_table
from bench.speed.latency_table import Table, fit
from tests.test_cli import SMALL
from tests.test_store import run_of


@pytest.mark.parametrize("free", [1, 4, 11])
def test_a_constant_and_a_line_are_found_again(free):
    units = np.arange(1, 13)
    seconds = 3.0 + 0.5 * np.maximum(units - free, 0)
    price = fit(units, seconds)
    assert price.base == pytest.approx(3.0)
    assert price.each == pytest.approx(0.5)
    assert price.free == free
    assert np.allclose(price.of(units), seconds)


def test_a_few_units_cost_the_base_price_however_coarse_the_grid():
    """The step from none to one is the base price: nothing is interpolated across it."""
    points = [[0, 0.0], [1, 1.0], [300, 1.0], [600, 1.0], [1200, 1.6], [3000, 3.4]]
    price = fit(*latency_table._filled(points))
    assert price.base == pytest.approx(1.0)
    assert price.each == pytest.approx(0.001)
    assert price.free == pytest.approx(600, abs=1)


def test_a_line_is_fitted_with_its_constant():
    random = np.random.default_rng(0)
    units = np.arange(1, 13)
    seconds = 2 + 0.3 * np.maximum(units - 1, 0) + random.normal(0, 0.1, 12)
    price = fit(units, seconds)
    slope, constant = np.polyfit(units - 1, seconds, 1)
    assert ((seconds - price.of(units)) ** 2).sum() <= ((seconds - constant - slope * (units - 1)) ** 2).sum() + 1e-9


def test_a_slope_is_never_negative():
    price = fit(np.arange(1, 6), np.array([5.0, 4.0, 3.0, 2.0, 1.0]))
    assert price.each > 0
    assert (price.of(np.arange(6)) >= 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_of_heads_is_timed_on_a_short_model(family, monkeypatch):
    """The clock is replaced by the number of parameters: more units, more seconds, and the model is as it was."""
    model = tiny(family, dtype=torch.float32)
    from bench.speed import timing

    def parameters(module, batch, device):
        module(**batch)
        return lambda: float(sum(p.numel() for p in module.parameters()))

    monkeypatch.setattr(timing, "forward", parameters)
    run = run_of()
    run = replace(run, keys=replace(run.keys, unit="latency", latency=replace(run.keys.latency, batch=2, length=8)))
    table = latency_table.measure(run, model, positions=38)
    assert [count for count, _ in table.heads] == list(range(5))
    assert table.neurons[0] == [0, 0.0]
    assert table.neurons[-1][0] == 40
    assert (np.diff([seconds for _, seconds in table.heads]) > 0).all()
    assert len(model.layers) == 3
    assert len(model.module.get_submodule(model.arch.layers)) == 3
    shrink(model, Masks.ones(model.shape))


def test_a_table_is_its_measurements_not_how_long_they_took():
    table = Table("m", 32, 128, [[0, 0.0], [1, 1.0], [2, 2.0]], [[0, 0.0], [4, 1.0]], 60.0)
    assert table.sha256 == replace(table, seconds=1.0).sha256
    assert table.sha256 != replace(table, heads=[[0, 0.0], [1, 1.0], [2, 2.1]]).sha256
    heads, neurons = table.prices()
    budget = latency_table.budget(run_of(), tiny(), table)
    assert budget.heads == heads
    assert budget.neurons == neurons


def test_a_latency_that_nothing_reaches_is_skipped_with_what_is_possible(bench, shared, tmp_path):
    """By a kept table in which a sub-layer costs more than its units; a model this small may be timed to cost nothing."""
    quick = ["latency=quick", "latency.batch=2", "latency.length=8"]  # a table of its own
    small = [word for word in SMALL if not word.startswith(("latency=", "ratio="))]
    words = ["method=magnitude", *small, "unit=latency", "ratio=0.9999", *quick]
    measured = bench(*words, f"results={tmp_path / 'measured'}")
    assert measured.returncode == 0, measured.stderr
    tables = {path: json.loads(path.read_text()) for path in (shared / "cache" / "latency").glob("*.json")}
    (path,) = (path for path, table in tables.items() if (table["batch"], table["length"]) == (2, 8))
    priced = {kind: [[units, 1 + units / 100 if units else 0] for units, _ in tables[path][kind]] for kind in ("heads", "neurons")}
    path.write_text(json.dumps(tables[path] | priced))
    done = bench(*words)
    assert done.returncode == 0, done.stderr
    (entry,) = store.load(tmp_path / "results").records
    assert entry.record["status"] == "skipped"
    assert "not one head and not one neuron can be paid" in entry.record["reason"]


def test_runs_under_a_latency_budget(bench, tmp_path):
    """The table is measured once; a record keeps it; a stored answer needs it and no second measurement."""
    quick = ["latency=quick", "latency.batch=2", "latency.length=16", "latency.min_seconds=0.1"]
    words = ["method=kwon", *[word for word in SMALL if word != "latency=none"], "unit=latency", *quick]
    first = bench(*words)
    assert first.returncode == 0, first.stderr
    assert "measuring what heads and neurons cost" in first.stderr
    again = bench(*words)
    assert "stored already" in again.stderr
    for method in ("kprune", "magnitude"):
        done = bench(f"method={method}", *words[1:])
        assert done.returncode == 0, done.stderr
        assert "measuring" not in done.stderr
    for entry in store.load(tmp_path / "results").records:
        table = entry.record["latency"]["table"]
        assert table["seconds"] > 0
        assert {"each", "base", "free"} == set(table["heads"])
        assert entry.record["unit"] == "latency"
        json.dumps(table, allow_nan=False)
