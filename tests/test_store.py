"""Records and how they are kept."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.config import CalibrationPlan, Keys, LatencyPlan, Model, Recover, Run, Task
from bench.errors import UserError
from bench.made_up import arch_of
from bench.records import record, store
from bench.records.reading import has_random_weights
from bench.run import PROTOCOL
from bench.tasks.data import Split, TaskData

# The keys of a record, as docs/records.md lists them.
KEYS = {
    "": "schema id status reason created command method task model unit ratio seed device precision attention recover round_to "
    "protocol data calibration dense pruned prune latency seconds machine software",
    "data": "train validation source cut",
    "calibration": "sampler examples tokens batch sha256 cut",
    "dense": "score metrics flops params checkpoint expected base notes",
    "pruned": "score metrics flops params flops_kept params_kept weights_kept heads neurons mask_error mask_bytes mask_sha256 notes",
    "prune": "seconds stages peak_bytes pass_seconds passes notes other_work",
    "latency": "plan headline grid notes positions table limits rounding",
    "seconds": "total dense prune shrink score latency",
    "software": "python torch transformers tokenizers prunebench commit dirty method_source",
}
TASK = Task(["text"], ["no", "yes"], ["accuracy"], "accuracy", 20.0, 32)
SPLIT = Split("a" * 64, [["x"]], np.array([0]))
DATA = TaskData("local", SPLIT, SPLIT)


def run_of(**changes):
    plans = CalibrationPlan("tokens", 100, None, 32), LatencyPlan("quick")
    keys = Keys("flops", 0.5, 0, *plans, "cpu", "fp32", None, None, Recover(), 1, None, "r", False)
    fields = {"lambda_rep": 2.5e-4}
    target, model = "methods.kprune.KPrune", Model(arch_of("bert"))
    run = Run("kprune", target, fields, False, False, "pairs", TASK, "small", model, keys, "cpu", 2, "python -m bench")
    return replace(run, **changes)


def made(status="ok", threads=2, created="2026-01-01T00:00:00Z", plan="quick", timed=(32, 128), notes=(), positions=None, **changes):
    run = run_of()
    entry = record.blank(run, DATA, PROTOCOL)
    entry |= {"id": record.run_id(run, "c" * 64, PROTOCOL), "status": status, "created": created, **changes}
    entry["machine"] = {"name": "test-2c", "threads": threads}
    point = {"batch": timed[0], "length": timed[1], "dtype": "float32", "mode": "eager"}
    point |= {"speedup": 2.0, "low": 1.9, "high": 2.1, "dense_ms": 10.0, "pruned_ms": 5.0}
    entry["latency"] |= {"plan": plan, "notes": list(notes), "positions": positions, "headline": point, "grid": [point]}
    return entry


def test_every_key_is_there_from_the_start():
    entry = record.blank(run_of(), DATA, PROTOCOL)
    for section, names in KEYS.items():
        assert list(entry[section] if section else entry) == names.split(), section or "record"


def test_a_method_that_starts_from_the_base_is_told_by_its_weights():
    ids = {record.run_id(run_of(), "c" * 64, PROTOCOL, None, base) for base in (None, "a" * 64, "b" * 64, {"hidden_size": 8})}
    assert len(ids) == 4


def test_the_id_is_the_meaning_of_the_run():
    def key(run, sha="c" * 64, protocol=PROTOCOL):
        return record.run_id(run, sha, protocol)

    run = run_of()
    same = [
        run_of(model=replace(run.model, path="/elsewhere")),
        run_of(command="python -m bench seed=0"),
        run_of(keys=replace(run.keys, latency=LatencyPlan("none"), results="other", rerun=True, threads=1)),
        run_of(threads=8),
    ]
    assert {key(other) for other in same} == {key(run)}
    calibration = replace(run.keys.calibration, tokens=200)
    others = [
        run_of(method="kprune-plain"),
        run_of(method_fields={"lambda_rep": 0.0}),
        run_of(task=replace(TASK, length=21.0)),
        run_of(model_name="other"),
        run_of(keys=replace(run.keys, unit="params")),
        run_of(keys=replace(run.keys, ratio=0.6)),
        run_of(keys=replace(run.keys, seed=1)),
        run_of(keys=replace(run.keys, calibration=calibration)),
        run_of(device="cuda"),
    ]
    ids = {key(run), *(key(other) for other in others), key(run, "d" * 64), key(run, protocol=PROTOCOL + 1)}
    assert len(ids) == len(others) + 3


def test_a_record_is_whole_strict_and_unpickled(tmp_path):
    entry = made(reason="naïve ‖x‖")
    entry["dense"]["score"] = float("nan")
    folder = store.write(tmp_path, entry, {"heads": np.ones((2, 3)), "logits_pruned": np.zeros((4, 2), np.float32)})
    assert folder.name == f"kprune-pairs-small-flops0.5-s0-{entry['id']}-1"
    text = (folder / "record.json").read_bytes().decode("utf-8")
    assert "NaN" not in text
    assert "naïve ‖x‖" in text
    stored = store.read(folder)
    assert stored.record["dense"]["score"] is None
    assert stored.arrays()["logits_pruned"].dtype == np.float32
    assert {file.name for file in folder.iterdir()} == {"record.json", "arrays.npz"}


def test_reruns_are_numbered_and_the_newest_complete_one_wins(tmp_path):
    first = store.write(tmp_path, made(created="2026-01-01T00:00:00Z"), {})
    second = store.write(tmp_path, made(created="2026-01-02T00:00:00Z"), {})
    store.write(tmp_path, made("failed", created="2026-01-03T00:00:00Z"), {})
    assert (first.name[-2:], second.name[-2:]) == ("-1", "-2")
    loaded = store.load(tmp_path)
    assert [entry.folder for entry in loaded.records] == [second]
    assert loaded.superseded == 2


def test_a_run_that_was_timed_less_does_not_hide_one_that_came_to_the_same(tmp_path):
    def one(day, plan, score):
        entry = made(created=f"2026-01-0{day}T00:00:00Z", plan=plan)
        entry["pruned"] |= {"score": score}
        return store.write(tmp_path, entry, {})

    timed = one(1, "quick", 80.0)
    one(2, "none", 80.0)
    assert [entry.folder for entry in store.load(tmp_path).records] == [timed]
    other = one(3, "none", 79.0)
    assert [entry.folder for entry in store.load(tmp_path).records] == [other], "another outcome is news"


def test_many_writers_of_one_cell_all_finish(tmp_path):
    folders: list[Path] = []
    writers = [threading.Thread(target=lambda: folders.append(store.write(tmp_path, made(), {"x": np.zeros(1000)}))) for _ in range(12)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(set(folders)) == 12
    assert not list((tmp_path / "test-2c").glob(".half*"))
    assert len(store.load(tmp_path).records) == 1


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("precision", None),
        ("command", 3),
        ("seed", 2**70),
        ("seed", True),
        ("ratio", 1.0),
        ("ratio", float("nan")),
        ("recover", "2 epochs"),
        ("pruned.score", "70"),
        ("pruned.metrics", 70.0),
        ("pruned.heads", [1.5]),
        ("dense.checkpoint", "here"),
        ("prune.notes", None),
        ("prune.notes", [1]),
        ("prune.stages", {"measure": "long"}),
        ("latency.plan", "thorough"),
        ("latency.grid", [None]),
        ("latency.headline", {"batch": 1}),
        ("latency.limits", 2.0),
        ("machine.name", 5),
        ("machine.load", "high"),
    ],
)
def test_a_record_that_was_damaged_by_hand_is_passed_over(tmp_path, path, value):
    """Every reader relies on keys and kinds, and one bad folder must not hide all the others."""
    good, bad = store.write(tmp_path, made(), {}), store.write(tmp_path, made(), {})
    damaged = json.loads((bad / "record.json").read_text())
    *way, last = path.split(".")
    (damaged[way[0]] if way else damaged)[last] = value
    (bad / "record.json").write_text(json.dumps(damaged))
    loaded = store.load(tmp_path)
    assert [entry.folder for entry in loaded.records] == [good]
    assert loaded.broken == [bad]


@pytest.mark.parametrize("size", [0, 40])
def test_truncated_arrays_are_no_record(tmp_path, size):
    folder = store.write(tmp_path, made(), {"x": np.zeros(1000)})
    content = (folder / "arrays.npz").read_bytes()
    (folder / "arrays.npz").write_bytes(content[:size])
    assert store.load(tmp_path).broken == [folder]


def test_a_field_that_names_a_record_counts_by_its_content(tmp_path):
    def key(folder):
        return record.run_id(run_of(method="replay", method_fields={"record": str(folder)}), "c" * 64, PROTOCOL)

    first, same, other = (store.write(tmp_path, made(), {"heads": np.full((2, 3), value)}) for value in (1.0, 1.0, 0.0))
    assert key(first) == key(same) != key(other)


def test_broken_foreign_and_half_written_records_are_reported(tmp_path):
    good = store.write(tmp_path, made(), {})
    for name, text in (("cut", '{"schema": 1, "id'), ("newer", '{"schema": 99}'), ("list", "[]"), ("empty", '{"schema": 1}')):
        (good.parent / name).mkdir()
        (good.parent / name / "record.json").write_text(text)
    (good.parent / ".half-x").mkdir()
    (good.parent / ".half-x" / "record.json").write_text("{")
    loaded = store.load(tmp_path)
    assert [entry.folder for entry in loaded.records] == [good]
    assert sorted(path.name for path in loaded.broken) == ["cut", "empty", "list", "newer"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "savez_compressed", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.write(tmp_path, made(), {})
    assert not list((tmp_path / "test-2c").iterdir())


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the record"):
        store.write(tmp_path / "file", made(), {})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"status": "skipped"}, None),
        ({"status": "failed"}, "the stored run failed"),
        ({"threads": 1}, "it ran on 1 threads"),
        ({"plan": "none"}, "it was timed with latency=none"),
        ({"plan": "paper"}, None),
        ({"timed": (32, 128)}, None),
        ({"timed": (1, 128)}, "it was not timed at batch 32, length 128, float32, eager"),
        ({"timed": (32, 64)}, "it was not timed at batch 32, length 128, float32, eager"),
        ({"timed": (32, 64), "positions": 64}, None),
        ({"timed": (32, 64), "positions": 128}, "it was not timed at batch 32, length 128, float32, eager"),
        ({"timed": (32, 64), "notes": ["2 threads", "the model has 64 positions"]}, None),  # a record from before 2026-11-29
        ({"data": {"train": "a" * 64, "validation": "other", "source": "local"}}, "the data have changed"),
    ],
)
def test_which_stored_record_answers_a_repeated_command(tmp_path, changes, reason):
    folder = store.write(tmp_path, made(**changes), {})
    stored, why = store.answer(tmp_path, made(), 2, LatencyPlan("quick"))
    assert why == reason
    assert (stored.folder if stored else None) == (None if reason else folder)


def test_a_record_answers_only_where_it_holds_every_point_that_is_asked_for(tmp_path):
    folder = store.write(tmp_path, made(plan="paper"), {})
    wider = LatencyPlan("paper", batches=[1], lengths=[128], dtypes=["float32"])
    assert store.answer(tmp_path, made(), 2, wider) == (None, "it was not timed at batch 1, length 128, float32, eager")
    stored, _ = store.answer(tmp_path, made(), 2, LatencyPlan("paper", batches=[32], lengths=[128], dtypes=["float32"]))
    assert stored.folder == folder


def test_a_changed_method_is_run_again(tmp_path):
    entry = made()
    entry["software"]["method_source"] = "older"
    store.write(tmp_path, entry, {})
    assert store.answer(tmp_path, made(), 2, LatencyPlan("quick")) == (None, "the method's source has changed")


def test_nothing_stored_needs_no_reason(tmp_path):
    assert store.answer(tmp_path, made(), 2, LatencyPlan("quick")) == (None, None)


def test_the_record_is_documented():
    text = (Path(__file__).parent.parent / "docs" / "records.md").read_text(encoding="utf-8")
    for section, names in KEYS.items():
        for name in names.split():
            assert f"`{section}.{name}`" in text or f"`{name}`" in text, (section, name)


def test_committed_records_are_whole():
    root = Path(__file__).parent.parent / "results"
    if not root.is_dir():
        pytest.skip("no committed records")
    loaded = store.load(root)
    assert not loaded.broken
    for entry in loaded.records:
        for section, names in KEYS.items():
            there = set(entry.record[section] if section else entry.record)
            # came after the first records
            later = {"table", "limits", "rounding", "round_to", "mask_bytes", "mask_sha256", "base", "tokenizers", "notes", "cut"}
            later |= {"other_work", "positions"}
            assert set(names.split()) - later <= there
        assert json.dumps(entry.record, allow_nan=False)
        arrays = set(entry.arrays())
        assert {"heads", "neurons"} <= arrays
        if not has_random_weights(entry.record):
            kinds = [("gold", "logits_dense", "logits_pruned"), ("answers_dense", "answers_pruned"), ("mrr@10_dense", "mrr@10_pruned")]
            assert any(set(kind) <= arrays for kind in [*kinds, ("nll_dense", "nll_pruned")])
