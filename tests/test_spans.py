"""Questions: windows, the labels in them, answers from logits, the official metrics, and runs of the methods."""

import string
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from bench import config
from bench.config import Task
from bench.dense.finetune import write_random
from bench.errors import UserError
from bench.made_up import FAMILIES, arch_of, calibration, span_batch, tiny
from bench.nn.packing import Context
from bench.tasks import data, encoding
from bench.tasks import windows as windows_of
from bench.tasks.spans import NEVER
from methods.kprune import KPrune
from tests.test_cli import results

PLAN = config.Windows(stride=8, best=5, longest_answer=6)
TASK = Task(["question", "context"], None, ["f1", "exact_match"], "f1", 170.0, 40, label="answers", windows=PLAN, batch=12)
CONTEXT = "the cat sat on the mat and the dog lay by the door while a fox ran over the hill to its den"


def write_squad(folder, rows=12, context=CONTEXT):
    folder.mkdir(parents=True, exist_ok=True)
    words, random = context.split(), np.random.default_rng(0)
    for split in ("train", "validation"):
        answers, questions = [], []
        for row in range(rows):
            first = int(random.integers(0, len(words) - 3))
            text = " ".join(words[first : first + 1 + row % 3])
            answers.append({"text": [text], "answer_start": [len(" ".join(words[:first])) + (first > 0)]})
            questions.append(f"which {split} {row}?")
        kind = pa.struct([("text", pa.list_(pa.string())), ("answer_start", pa.list_(pa.int32()))])
        columns = {"question": questions, "context": [context] * rows, "answers": pa.array(answers, kind)}
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")


@pytest.fixture
def encoder(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    write_random({"type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}, base)
    return encoding.Encoder(base, TASK, arch_of("bert"))


@pytest.fixture
def split(tmp_path, monkeypatch):
    write_squad(tmp_path / "data" / "squad")
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "data"))
    return data.load("squad", TASK).validation


def test_windows_cover_the_context_and_answers_stand_where_labels_say(encoder, split):
    windows = encoder.examples(split)
    assert len(windows) > len(split), "a context of this length needs several windows"
    held = set()
    for w, (start, end) in enumerate(windows.labels(range(len(windows)))):
        row = windows.question[w]
        assert len(windows.encode([w])[0]["input_ids"]) <= 40
        if (start, end) != (0, 0):
            offsets = windows.offsets[w]
            text = windows.contexts[row][offsets[start, 0] : offsets[end, 1]]
            assert text == split.answers[row][0][0]
            held.add(row)
    assert held == set(range(len(split)))
    for row in range(len(split)):
        covered = {c for w in np.flatnonzero(windows.question == row) for a, b in windows.offsets[w] if a >= 0 for c in range(a, b)}
        assert {c for c, letter in enumerate(windows.contexts[row]) if letter != " "} <= covered


def test_questions_that_are_cut_are_counted_by_their_windows(encoder, split):
    short = replace(split, texts=[["why"] * len(split), split.texts[1]])
    assert encoder.examples(short).cut == set(), "contexts have several windows instead"
    long = replace(split, texts=[["why " * 300, *short.texts[0][1:]], split.texts[1]])
    windows = encoder.examples(long)
    assert windows.cut == set(np.flatnonzero(windows.question == 0))


@pytest.mark.parametrize("version", ["0.23.1", "0.23.2"])
def test_versions_of_tokenizers_that_lose_the_ends_of_contexts_are_refused(monkeypatch, encoder, split, version):
    monkeypatch.setattr(windows_of.importlib.metadata, "version", lambda name: version)
    with pytest.raises(UserError, match=f"tokenizers {version} loses the ends of long contexts"):
        encoder.examples(split)


def literal_answer(windows, logits, row, unanswerable):
    """As transformers' run_qa does it, spelt out."""
    predictions, null = [], None
    for w in np.flatnonzero(windows.question == row):
        starts, ends = logits[w, :, 0], logits[w, :, 1]
        if null is None or starts[0] + ends[0] < null:
            null = starts[0] + ends[0]
        for s in np.argsort(-starts, kind="stable")[: PLAN.best]:
            for e in np.argsort(-ends, kind="stable")[: PLAN.best]:
                offsets = windows.offsets[w]
                if s >= len(offsets) or e >= len(offsets) or offsets[s, 0] < 0 or offsets[e, 0] < 0:
                    continue
                if e < s or e - s + 1 > PLAN.longest_answer:
                    continue
                predictions.append((starts[s] + ends[e], windows.contexts[row][offsets[s, 0] : offsets[e, 1]]))
    best = max(predictions, key=lambda entry: entry[0], default=(None, ""))
    return "" if best[0] is None or (unanswerable and null > best[0]) else best[1]


def test_a_long_question_leaves_room_for_its_context(encoder, split):
    from dataclasses import replace as changed

    questions = ["why " * 300, *split.texts[0][1:]]
    windows = encoder.examples(changed(split, texts=[questions, split.texts[1]]))
    assert max(len(one["input_ids"]) for one in windows.encode(range(len(windows)))) <= 40
    assert set(windows.question) == set(range(len(split)))
    assert (windows.labels(np.flatnonzero(windows.question == 0)) > 0).any()


@pytest.mark.parametrize("unanswerable", [False, True])
def test_answers_are_those_of_the_standard_reading(encoder, split, unanswerable):
    windows = encoder.examples(split)
    windows.plan = config.Windows(8, PLAN.best, PLAN.longest_answer, unanswerable)
    random = np.random.default_rng(1)
    logits = np.full((len(windows), 40, 2), NEVER, np.float32)
    for w in range(len(windows)):
        logits[w, : len(windows.offsets[w])] = random.normal(0, 3, (len(windows.offsets[w]), 2))
        logits[w, 0] += 9 * (windows.question[w] % 3 == 0)
    found = windows_of.read_answers(windows, logits).texts
    assert found == [literal_answer(windows, logits, row, unanswerable) for row in range(len(split))]
    assert len(set(found)) > 5
    assert ("" in found) == unanswerable


def official_f1(prediction, truth):
    """As the official script of SQuAD v1.1, word for word in meaning."""

    def words(text):
        import re

        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split()).split()

    common = Counter(words(prediction)) & Counter(words(truth))
    same = sum(common.values())
    if same == 0:
        return 0.0
    precision, recall = same / len(words(prediction)), same / len(words(truth))
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(
    ("found", "golds", "em", "f1"),
    [
        ("The Denver Broncos!", ["Denver Broncos"], 1, 1),
        ("Broncos", ["Denver Broncos", "the Broncos"], 1, 1),
        ("in Santa Clara", ["Santa Clara, California"], 0, 2 / 3),
        ("a the an", ["word"], 0, 0),
        ("", ["answer"], 0, 0),
        ("", [".", "answer"], 1, 0),
        ("the", ["."], 1, 0),
        ("naïve", ["Naïve"], 1, 1),
    ],
)
def test_exact_match_and_f1_are_the_official_ones(found, golds, em, f1):
    assert windows_of.exact(found, golds) == em
    assert windows_of.f1(found, golds) == pytest.approx(f1)
    assert windows_of.f1(found, golds) == pytest.approx(max(official_f1(found, gold) for gold in golds))


@pytest.mark.parametrize(
    ("found", "golds", "em", "f1"),
    [
        ("", [], 1, 1),
        ("something", [], 0, 0),
        ("", ["."], 1, 1),
        ("", [".", "answer"], 0, 0),
        ("the Broncos", ["", "Denver Broncos"], 0, 2 / 3),
    ],
)
def test_no_answer_is_an_answer_in_v2(found, golds, em, f1):
    """Gold answers without a word are left out, and two answers without one are equal (the official script of v2.0)."""
    assert windows_of.exact(found, golds, unanswerable=True) == em
    assert windows_of.f1(found, golds, unanswerable=True) == pytest.approx(f1)


def tiny_spans(family="bert", dtype=torch.float64):
    return tiny(family, dtype=dtype, kind="span")


def span_batches():
    return [span_batch(lengths, seed) for seed, lengths in enumerate([[9, 4, 3, 7], [6, 6, 6, 6], [12, 3, 5]])]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pieces_compose_to_the_model_and_padding_is_no_answer(family):
    model = tiny_spans(family)
    for one in span_batches():
        found = model.forward(one)
        assert torch.allclose(found, model(one), atol=1e-10)
        assert (found[~one["attention_mask"].bool()] == NEVER).all()
        raw = model.module(input_ids=one["input_ids"], attention_mask=one["attention_mask"]).start_logits
        real = one["attention_mask"].bool()
        assert torch.allclose(model.kind.logits(model.module, one)[..., 0][real], raw[real])


def test_the_loss_is_the_mean_of_start_and_end_without_padding():
    model, one = tiny_spans(), span_batches()[0]
    logits = model.forward(one)
    total = 0.0
    for example, length in enumerate(one["attention_mask"].sum(1).tolist()):
        for side in (0, 1):
            total += float(F.cross_entropy(logits[example, :length, side][None], one["labels"][example, side][None])) / 8
    assert float(model.kind.loss(logits, one["labels"]).mean()) == pytest.approx(total)


def test_kprunes_loss_is_the_mean_of_start_and_end_without_padding():
    model, one = tiny_spans(), span_batches()[0]
    target = model.forward(one)
    generator = torch.Generator().manual_seed(0)
    logits = target + torch.where(one["attention_mask"].bool()[..., None], torch.randn(target.shape, generator=generator), 0.0)
    from methods.kprune import Knowledge

    method = KPrune(temperature=2.0)
    total = 0.0
    for example, length in enumerate(one["attention_mask"].sum(1).tolist()):
        for side in (0, 1):
            teacher, student = (F.softmax(part[example, :length, side] / 2, 0) for part in (target, logits))
            total += 4 * float((teacher * (teacher / student).log()).sum()) / 8
    losses = Knowledge(method, model, calibration(span_batches()))._losses(logits, target, Context.of(one), [target])
    assert float(losses.mean()) == pytest.approx(total)


def test_a_run_on_questions_leaves_answers(bench, tmp_path):
    """Fine-tuning, pruning and scoring with a random model; the record holds every question's answer and scores."""
    write_squad(tmp_path / "d" / "squad")
    words = ["task=squad", "model=tiny-random", "task.max_length=40", "task.windows.stride=8", "calibration.tokens=300", "latency=none"]
    words += ["task.label_words=[a,b]", "threads=1"]
    for method in ("kprune", "kwon", "smp-distil", "movement method.epochs=10", "magnitude recover.epochs=1 recover.distil=true"):
        done = bench(*f"method={method}".split(), *words, env={"BENCH_DATA": str(tmp_path / "d")})
        assert done.returncode == 0, done.stderr
    assert len(results(tmp_path).records) == 5
    for entry in results(tmp_path).records:
        arrays, record = entry.arrays(), entry.record
        assert set(record["pruned"]["metrics"]) == {"f1", "exact_match"}
        assert record["calibration"]["batch"] == 12
        for side in ("dense", "pruned"):
            assert arrays[f"answers_{side}"].shape == (12,)
            assert arrays[f"f1_{side}"].mean() == pytest.approx(record[side]["score"])
            assert arrays[f"em_{side}"].mean() == pytest.approx(record[side]["metrics"]["exact_match"])


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (pa.array(["x"] * 2), "answers are structures of text and answer_start"),
        (pa.array([{"text": "cat", "answer_start": 4}] * 2), "answers are structures of text and answer_start, lists of texts"),
        (pa.array([{"text": ["cat"], "answer_start": ["4"]}] * 2), "answers are structures of text and answer_start"),
        (pa.array([{"text": ["cat"], "answer_start": [4]}, {"text": ["cat"], "answer_start": [5]}]), "the answers in row 1 do not stand"),
        (
            pa.array([{"text": ["cat"], "answer_start": [4]}, {"text": ["cat"], "answer_start": [None]}]),
            "the answers in row 1 do not stand",
        ),
        (pa.array([{"text": ["cat"], "answer_start": [4]}, {"text": [None], "answer_start": [4]}]), "the answers in row 1 do not stand"),
        (pa.array([{"text": [CONTEXT[-2]], "answer_start": [-2]}] * 2), "the answers in row 0 do not stand"),
        (pa.array([{"text": ["cat"], "answer_start": [4]}, None]), "is empty in row 1"),
        (pa.array([{"text": ["cat"], "answer_start": [4]}, {"text": [], "answer_start": []}]), "row 1 has no answer"),
    ],
)
def test_answers_that_are_wrong_are_named(tmp_path, answers, words):
    table = pa.table({"question": ["q"] * 2, "context": [CONTEXT] * 2, "answers": answers})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(UserError, match=words):
        data.read_split(tmp_path / "train.parquet", TASK)
