"""What is checked in a task's files, and where they are looked for."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.config import HubData, Task, Windows
from bench.dense import hub
from bench.errors import UserError
from bench.tasks import data

PAIR = Task(["sentence1", "sentence2"], ["no", "yes"], ["accuracy"], "accuracy", 10.0, 64)
NUMBER = Task(["text"], None, ["pearson"], "pearson", 10.0, 64)
ANSWER = Task(["question", "context"], None, ["f1"], "f1", 10.0, 64, label="answers", windows=Windows(unanswerable=True))


def split(tmp_path, task=PAIR, **columns):
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    return data.read_split(tmp_path / "train.parquet", task)


def test_class_numbers_names_and_booleans_mean_the_same(tmp_path):
    texts = {"sentence1": ["a", "b"], "sentence2": ["c", "d"]}
    for label in ([1, 0], ["yes", "no"], [True, False]):
        assert split(tmp_path, **texts, label=label).labels.tolist() == [1, 0]


def test_a_regression_reads_numbers_of_any_kind(tmp_path):
    assert split(tmp_path, NUMBER, text=["a", "b"], label=[1, 5]).labels.dtype == np.float64
    assert split(tmp_path, NUMBER, text=["a", "b"], label=pa.array([0.5, 2], pa.float32())).labels.tolist() == [0.5, 2]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"sentence1": ["a"], "sentenc2": ["b"], "label": [0]}, "no column 'sentence2'; did you mean 'sentenc2'"),
        ({"sentence1": ["a", "b"], "sentence2": ["a", None], "label": [0, 1]}, "'sentence2' is empty in row 1"),
        ({"sentence1": ["a", "b"], "sentence2": ["a", "b"], "label": [0, 2]}, "'label' is 2 in row 1, expected a class number from 0 to 1"),
        ({"sentence1": ["a"], "sentence2": ["a"], "label": ["maybe"]}, "'label' is maybe in row 0, expected one of no, yes"),
        ({"sentence1": ["a"], "sentence2": ["a"], "label": [0.5]}, "needs class numbers or names"),
        ({"sentence1": ["a"], "sentence2": [3], "label": [0]}, "holds int64, not text"),
        ({"sentence1": ["a", "b"], "sentence2": ["a", "b"], "label": [0, None]}, "'label' is empty in row 1"),
        ({"sentence1": pa.array([], pa.string()), "sentence2": pa.array([], pa.string()), "label": pa.array([], pa.int64())}, "no rows"),
    ],
)
def test_wrong_content_is_named_with_its_row(tmp_path, columns, words):
    with pytest.raises(UserError, match=r"train\.parquet") as told:
        split(tmp_path, **columns)
    assert words in str(told.value)


def test_train_may_be_without_labels_validation_may_not(tmp_path):
    table = pa.table({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": pa.array([None, None], pa.int64())})
    pq.write_table(table, tmp_path / "train.parquet")
    found = data.read_split(tmp_path / "train.parquet", PAIR, labels=False)
    assert not found.labelled
    assert len(found) == 2
    with pytest.raises(UserError, match="'label' is empty in row 0"):
        data.read_split(tmp_path / "train.parquet", PAIR)
    one = pa.table({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [1, None]})
    pq.write_table(one, tmp_path / "train.parquet")
    with pytest.raises(UserError, match="'label' is empty in row 1"):
        data.read_split(tmp_path / "train.parquet", PAIR, labels=False)


def test_a_regression_refuses_what_is_not_finite(tmp_path):
    with pytest.raises(UserError, match="row 1, expected a finite number"):
        split(tmp_path, NUMBER, text=["a", "b"], label=[1.0, float("nan")])
    with pytest.raises(UserError, match="needs numbers"):
        split(tmp_path, NUMBER, text=["a"], label=["x"])


def test_truncated_and_foreign_files(tmp_path):
    split(tmp_path, sentence1=["a"], sentence2=["b"], label=[0])
    file = tmp_path / "train.parquet"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"not parquet", b""):
        file.write_bytes(content)
        with pytest.raises(UserError, match="truncated or damaged"):
            data.read_split(file, PAIR)


def test_no_data_names_both_places():
    with pytest.raises(UserError, match=r"BENCH_DATA is not set.*hub's nyu-mll/glue \(not reachable\)"):
        data.load("mrpc", Task(**{**PAIR.__dict__, "hub": HubData("nyu-mll/glue", "mrpc")}))


def test_the_same_file_twice_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "t"
    folder.mkdir()
    table = pa.table({"sentence1": ["a"], "sentence2": ["b"], "label": [0]})
    for name in ("train", "validation"):
        pq.write_table(table, folder / f"{name}.parquet")
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    with pytest.raises(UserError, match="same file"):
        data.load("t", PAIR)


def test_the_hub_is_asked_where_nothing_lies_here_and_its_answer_is_kept(monkeypatch):
    """A stand-in for the hub's client; the real one is tried by the tests marked network."""
    asked = []

    def fetch(of, name, target):
        asked.append((of.path, of.name, name))
        pq.write_table(pa.table({"sentence1": ["a"], "sentence2": ["b"], "label": [len(asked) % 2]}), target)
        return True

    monkeypatch.setattr(data, "fetch_split", fetch)
    task = Task(**{**PAIR.__dict__, "hub": HubData("nyu-mll/glue", "mnli", validation="validation_matched")})
    first, second = data.load("mnli", task), data.load("mnli", task)
    assert asked == [("nyu-mll/glue", "mnli", "train"), ("nyu-mll/glue", "mnli", "validation_matched")]
    assert first.source == "hub:nyu-mll/glue"
    assert first.train.sha256 == second.train.sha256


def test_an_unreachable_hub_is_noticed_within_seconds(monkeypatch):
    import time

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://192.0.2.1")  # a documentation address: nothing answers
    hub.reachable.cache_clear()
    start = time.monotonic()
    assert not hub.reachable()
    assert time.monotonic() - start < 2 * hub.PROBE_SECONDS
    hub.reachable.cache_clear()


@pytest.mark.parametrize(
    ("task", "labels", "words"),
    [
        (PAIR, [1], "holds a single row"),
        (PAIR, [1, 1, 1], "has the same label in every row"),
        (NUMBER, [2.5], "holds a single row"),
        (NUMBER, [2.5, 2.5], "has the same label in every row"),
        (ANSWER, [{"text": ["a"], "answer_start": [0]}], "holds a single row"),
        (ANSWER, [{"text": [], "answer_start": []}] * 2, "has the same label in every row"),
    ],
)
def test_an_evaluation_split_that_tells_no_models_apart_is_refused(tmp_path, monkeypatch, task, labels, words):
    kind = pa.struct([("text", pa.list_(pa.string())), ("answer_start", pa.list_(pa.int64()))]) if task is ANSWER else None
    for split, values in (("train", labels * 2), ("validation", labels)):
        columns = {name: ["a b"] * len(values) for name in task.columns}
        (tmp_path / "t").mkdir(exist_ok=True)
        pq.write_table(pa.table({**columns, task.label: pa.array(values, kind)}), tmp_path / "t" / f"{split}.parquet")
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    found = data.load("t", task)
    with pytest.raises(UserError, match=f"task t: validation.parquet {words}: no score on it"):
        data.check_evaluation("t", found.validation)
