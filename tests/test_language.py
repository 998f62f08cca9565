"""The kind language: windows of a text, perplexity, and the way of a decoder through a run."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis import frame
from analysis.perplexity import perplexity as table
from bench.config import Task
from bench.errors import UserError
from bench.made_up import tiny, windows
from bench.records import store, verdict
from bench.tasks import KINDS
from bench.tasks.data import Split
from bench.tasks.language import Stream, perplexity

TASK = Task(
    ["text"], None, ["perplexity"], "perplexity", 8.0, 8, kind="language", options={"context": 8, "calibration_context": 4}, unit="params"
)
WORDS = ["task=docstrings-lm", "model=tiny-random-llama", "ratio=0.5", "calibration.tokens=600", "threads=1"]


class Letters:
    """An encoder whose tokens are letters, with one special token at the start."""

    positions = 16
    task = TASK

    def tokenizer(self, text, verbose=True):
        return {"input_ids": [1, *(3 + ord(letter) % 40 for letter in text)]}


def split(*rows):
    return Split("s", [list(rows)])


def test_a_text_is_tokenised_once_and_cut_into_windows():
    """Rows are joined by an empty line; what is left at the end is dropped; one special token stands at the start of it all."""
    stream = KINDS["language"].examples(Letters(), split("some words", "", "and more of them"), scored=True)
    assert isinstance(stream, Stream)
    tokens = Letters().tokenizer("some words\n\n\n\nand more of them")["input_ids"]
    assert stream.stream.tolist() == tokens
    assert len(stream) == len(tokens) // 8
    assert stream.encode([1])[0]["input_ids"] == tokens[8:16]
    assert stream.labels([0, 1]).tolist() == [tokens[:8], tokens[8:16]]
    assert stream.facts | {"text": None} == {"context": 8, "windows": len(stream), "tokens": len(tokens), "first": tokens[:4], "text": None}
    assert len(KINDS["language"].examples(Letters(), split("some words"))) == 2, "calibration has windows of its own"


@pytest.mark.parametrize(
    ("context", "text", "told"),
    [(32, "x" * 100, "windows of 32 tokens: the model has 16 positions"), (8, "x", "the text has 2 tokens, not one window of 8")],
)
def test_windows_that_cannot_be_cut_are_told(context, text, told):
    with pytest.raises(UserError, match=told):
        Stream(Letters(), split(text), context)


def test_perplexity_is_exp_of_the_mean():
    model, one = tiny("llama"), windows(4, 8)
    nll = model.kind.answers(model.module, one).detach().numpy()
    assert perplexity(nll, 7) == pytest.approx(math.exp(nll.sum() / 28))


def test_what_is_stored_tells_whether_a_model_knows_more_than_frequencies():
    stream = Stream(Letters(), split("abababab" * 8), 8)
    stored = KINDS["language"].stored(TASK, stream)
    predicted = stored["predicted"]
    assert verdict.trivial("perplexity", stored) == pytest.approx(2.0, abs=0.3)
    as_good = stored | {"nll_pruned": stored["nll_trivial"] * 1.01, "nll_dense": stored["nll_trivial"] * 0.5}
    assert verdict.is_collapsed("perplexity", as_good)
    assert not verdict.is_collapsed("perplexity", as_good, "dense")
    growth, low, high = verdict.growth({"nll_dense": np.full(9, 70.0), "nll_pruned": np.full(9, 77.0), "predicted": np.full(9, 7)})
    assert (growth, low, high) == pytest.approx((100 * math.expm1(1.0),) * 3)
    assert (predicted == 7).all()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text of some thousand letters for train and validation."""
    folder = tmp_path_factory.mktemp("texts") / "docstrings"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("train", "validation"):
        rows = [" ".join("".join(random.choice(list("abcdefgh"), 4)) for _ in range(12)) for _ in range(60)]
        pq.write_table(pa.table({"text": rows}), folder / f"{name}.parquet")
    return {"BENCH_DATA": str(folder.parent)}


def test_a_decoder_from_end_to_end(bench, text, tmp_path):
    """Run, stored answer, saved folder, measured again, tables."""
    saved = tmp_path / "saved"
    done = bench(*WORDS, "method=flap", f"save={saved}", "latency.length=32", "latency.batch=2", "latency.min_rounds=2", env=text)
    assert not done.returncode, done.stderr
    (entry,) = store.load(tmp_path / "results").records
    record, arrays = entry.record, entry.arrays()
    assert record["unit"] == "params"
    assert record["pruned"]["params_kept"] <= 0.55
    assert record["data"]["stream"]["context"] == 128
    assert record["data"]["stream"]["windows"] == len(arrays["nll_dense"]) == len(arrays["nll_pruned"])
    assert verdict.perplexity(arrays, "pruned") == pytest.approx(record["pruned"]["score"], rel=1e-6)
    again = bench(*WORDS, "method=flap", "latency=none", env=text)
    assert "stored already" in again.stderr
    other = bench(*WORDS, "method=flap", "latency=none", "task.options.context=64", env=text)
    assert "stored already" not in other.stderr, "another context is another number"
    measured = bench(str(saved), "latency.length=32", "latency.batch=2", module="bench.measure", env=text)
    assert not measured.returncode, measured.stderr
    assert measured.stdout.count(f"{record['pruned']['score']:.2f}") == 2
    weights = set(json.loads((saved / "prunebench.json").read_text())["arch"]["output"])
    assert "lm_head" in weights
    found = frame.load([tmp_path / "results"])
    assert found.table.empty
    assert table(found).context.tolist() == [64, 128]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["task=docstrings-lm", "model=tiny-random"], "task=docstrings-lm: tiny-random tells no next token"),
        (["task=mrpc", "model=tiny-random-opt"], "task=mrpc: tiny-random-opt is a decoder"),
        ([*WORDS, "task.options.context=4096"], "windows of 4096 tokens: the model has 128 positions"),
        ([*WORDS, "task.options.context=1"], "task docstrings-lm: options.context=1: a whole number of tokens, at least 2"),
        ([*WORDS, "task.options.window=7"], "task.options.window"),
    ],
)
def test_what_a_decoder_cannot_do_is_told_in_a_sentence(bench, text, words, told):
    done = bench(*words, env=text)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("model", ["tiny-random-llama", "tiny-random-opt"])
def test_two_of_four_at_another_ratio_is_skipped(bench, text, model, tmp_path):
    done = bench(f"model={model}", *WORDS[:1], *WORDS[2:], "method=wanda-2-4", "ratio=0.3", "latency=none", env=text)
    assert not done.returncode, done.stderr
    assert "ratio=0.5, not 0.3" in done.stdout
