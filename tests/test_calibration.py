"""The sample of a (task, seed), and batches."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import calibration
from bench.config import CalibrationPlan, Task
from bench.dense.finetune import write_random
from bench.made_up import arch_of
from bench.model import PrunableModel
from bench.tasks import KINDS, data, encoding
from tests.conftest import write_task

TASK = Task(["sentence1", "sentence2"], ["no", "yes"], ["accuracy"], "accuracy", 20.0, 32)


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    write_task(tmp_path / "data" / "mrpc", rows=200)
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "data"))
    base = tmp_path / "base"
    base.mkdir()
    write_random({"type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}, base)
    return data.load("mrpc", TASK), encoding.Encoder(base, TASK, arch_of("bert"))


def plan(**changes):
    return CalibrationPlan(**{"sampler": "tokens", "tokens": 1500, "examples": None, "batch": 32, **changes})


def draw(loaded, seed=0, **changes):
    return calibration.draw(plan(**changes), TASK, loaded[1].examples(loaded[0].train), loaded[1], seed, "cpu")


def test_tokens_cuts_a_permutation_where_enough_are_reached(loaded):
    sample = draw(loaded)
    assert len(set(sample.rows)) == len(sample.rows)
    last = sample.batches[-1]["attention_mask"][-1].sum()
    assert sample.tokens - last < 1500 <= sample.tokens
    assert sample.tokens == sum(int(batch["attention_mask"].sum()) for batch in sample.batches)
    assert [len(batch["input_ids"]) for batch in sample.batches[:-1]] == [32] * (len(sample.batches) - 1)


@pytest.mark.parametrize(("gib", "tokens"), [(11, 8192), (23.6, 8192), (39.4, 16384), (79.1, 32768), (139.7, 32768)])
def test_a_gpus_micro_batches_grow_with_its_memory(monkeypatch, gib, tokens):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=gib * 2**30))
    assert calibration.micro_tokens("cuda", 768) == tokens


def test_a_cpus_micro_batches_are_smaller_in_wide_models():
    assert calibration.micro_tokens("cpu", 384) > calibration.micro_tokens("cpu", 768)


def test_all_of_train_where_it_is_smaller(loaded):
    assert sorted(draw(loaded, tokens=10**9).rows) == list(range(200))


@pytest.mark.parametrize("sampler", ["tokens", "legacy"])
def test_examples_overrides_the_number_of_tokens(loaded, sampler):
    assert draw(loaded, sampler=sampler, examples=7).examples == 7


def test_legacy_is_the_published_sample(loaded):
    sample = draw(loaded, sampler="legacy", seed=3)
    expected = np.random.RandomState(3).choice(200, int(1500 / 20.0))
    assert np.array_equal(sample.rows, expected)
    shorter = draw(loaded, sampler="legacy", seed=3, examples=10)
    assert np.array_equal(shorter.rows, expected[:10])


def test_legacy_counts_of_the_papers_tasks():
    assert [int(100_000 / length) for length in (53.24, 25.16)] == [1878, 3974]
    rows = calibration.legacy_rows(3668, 1878, 0)
    assert len(set(rows)) == 1475
    assert np.array_equal(calibration.legacy_rows(3668, 2048, 0)[:1878], rows)


@pytest.mark.parametrize("sampler", ["tokens", "legacy"])
def test_the_same_seed_gives_the_same_examples_and_another_seed_others(loaded, sampler):
    first, again, other = (draw(loaded, seed, sampler=sampler) for seed in (0, 0, 1))
    assert first.sha256 == again.sha256 != other.sha256
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first.batches, again.batches, strict=True))
    assert first.generator.random() == again.generator.random() != other.generator.random()


def test_no_example_comes_from_the_evaluation_split(loaded):
    """Every row of the sample is the train row it says it is, and no evaluation text occurs in train."""
    task_data, encoder = loaded
    sample = draw(loaded)
    train = {tuple(pair) for pair in zip(*task_data.train.texts, strict=True)}
    assert not train & {tuple(pair) for pair in zip(*task_data.validation.texts, strict=True)}
    rows = iter(sample.rows)
    for batch in sample.batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            assert ids[mask.bool()].tolist() == encoder.examples(task_data.train).encode([next(rows)])[0]["input_ids"]


def test_a_batch_says_where_its_real_tokens_lie(loaded):
    for batch in draw(loaded).batches:
        assert torch.equal(batch["places"], batch["attention_mask"].flatten().nonzero().flatten())


@pytest.mark.parametrize("micro", [40, 400, 10**6])
def test_micro_batches_hold_every_example_once_with_its_share_and_owner(loaded, micro):
    """A batch in several micro-batches, several batches in one, all in one."""
    batches = draw(loaded).batches
    groups = calibration.grouped(batches, micro)

    def texts(some):
        return sorted(
            tuple(ids[mask.bool()].tolist()) for one in some for ids, mask in zip(one["input_ids"], one["attention_mask"], strict=True)
        )

    assert texts(part for parts in groups for part in parts) == texts(batches)
    first = 0
    for parts in groups:
        held = len(parts[0]["owners"]) if "owners" in parts[0] else 1
        own = batches[first : first + held]
        assert texts(parts) == texts(own), "a group is whole batches in their order"
        assert sum(float(part["shares"].sum()) for part in parts) == pytest.approx(held)
        for part in parts:
            assert torch.equal(part["places"], part["attention_mask"].flatten().nonzero().flatten())
            assert len(part["places"]) <= micro or len(part["labels"]) == 1
        if held > 1:
            assert parts[0]["owners"].sum(1).tolist() == [float(one["attention_mask"].sum()) for one in own]
            assert parts[0]["owners"].sum(0).eq(1).all()
        first += held
    assert first == len(batches)


def test_labels_are_hidden_on_request(loaded):
    sample = draw(loaded)
    assert all("labels" in batch for batch in sample.batches)
    assert not any("labels" in batch for batch in sample.without_labels().batches)
    wanted = [loaded[0].train.labels[row] for row in sample.rows]
    assert torch.cat([batch["labels"] for batch in sample.batches]).tolist() == wanted


def test_the_length_limit_is_the_least_of_task_tokenizer_and_positions(loaded, tmp_path):
    encoder = loaded[1]
    assert encoder.max_length == 32
    short = encoding.Encoder(tmp_path / "base", Task(**{**TASK.__dict__, "max_length": 10_000}), arch_of("roberta"))
    assert short.max_length == 512 - 2


def test_a_distilbert_gets_no_segments_though_its_tokenizer_gives_them(tmp_path):
    """Its tokenizer is BERT's; its embeddings take token ids alone."""
    facts = {"type": "distilbert", "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}
    write_random(facts, tmp_path, TASK)
    config = tmp_path / "tokenizer_config.json"  # as the hub has it
    config.write_text(json.dumps({"do_lower_case": True, "model_max_length": 512}), encoding="utf-8")
    encoder = encoding.Encoder(tmp_path, TASK, arch_of("distilbert"))
    assert "token_type_ids" in encoder.tokenizer("a")
    assert encoder.inputs == ["input_ids", "attention_mask"]
    kind = KINDS[TASK.kind]
    model = PrunableModel(kind.from_pretrained(tmp_path), arch_of("distilbert"), kind)
    coded = encoder.tokenizer(["a b", "a"])
    made = encoder.batch([{name: coded[name][i] for name in encoder.inputs} for i in range(2)], None, "cpu")
    assert torch.allclose(model.forward(made), model(made), atol=1e-6)


def test_stored_padding_and_truncation_of_a_tokenizer_are_overridden(loaded, tmp_path):
    from tokenizers import Tokenizer

    file = tmp_path / "base" / "tokenizer.json"
    stored = Tokenizer.from_file(str(file))
    stored.enable_padding(length=50)
    stored.enable_truncation(4)
    stored.save(str(file))
    encoder = encoding.Encoder(tmp_path / "base", TASK, arch_of("bert"))
    assert [len(e["input_ids"]) for e in encoder.examples(loaded[0].train).encode([0, 1])] == [
        len(e["input_ids"]) for e in loaded[1].examples(loaded[0].train).encode([0, 1])
    ]


def test_examples_that_are_cut_are_counted(loaded):
    """Long in its first text, in its second, and of just the length that fits."""
    task_data, encoder = loaded
    fits = (encoder.max_length - 3) // 2
    texts = [["a " * 600, "a", "a " * fits, "a"], ["b", "b " * 600, "b " * fits, "b"]]
    examples = encoder.examples(replace(task_data.validation, texts=texts))
    assert examples.cut == set(), "none is tokenised yet"
    examples.encode([1, 2, 3])
    assert examples.cut == {1}
    examples.encode(range(4))
    assert examples.cut == {0, 1}
    told = encoding.told_cut({"calibration": (0, 9), "evaluation": (2, 4)})
    assert told == "cut, being too long for the model or the task's max_length: 2 of 4 evaluation examples"
    assert encoding.told_cut({"calibration": (0, 9)}) is None
