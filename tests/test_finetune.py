"""Fine-tuning where no dense checkpoint is found, and the embedded task."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from bench.config import Base, ModelTuning, TaskTuning
from bench.dense import finding, finetune
from bench.made_up import arch_of
from bench.tasks import data, docstrings
from bench.train import order, trainer
from tests.conftest import write_task
from tests.test_dense import MODEL, SIZE, TASK, run_of


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A run whose dense checkpoint takes 200 steps of a tiny model, and its data."""
    write_task(tmp_path / "data" / "pairs")
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "data"))
    model = replace(MODEL, base=Base(random=SIZE), tuning=ModelTuning(learning_rate=1e-3))
    task = replace(TASK, tuning=TaskTuning(epochs=100))
    return run_of(model, task), data.load("pairs", task)


def interrupt_after(steps):
    def progress(items, label):
        for count, item in enumerate(items):
            if count == steps:
                raise KeyboardInterrupt
            yield item

    return progress


def test_an_interrupted_fine_tuning_goes_on_and_ends_where_a_whole_one_ends(small, monkeypatch, tmp_path):
    run, task_data = small
    whole = finetune.tune(run, task_data)
    assert whole.folder == finding.tuned_folder(finding.tuned_key(run, task_data))
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "second"))
    with monkeypatch.context() as interrupted:
        interrupted.setattr(trainer, "progress", interrupt_after(120))
        with pytest.raises(KeyboardInterrupt):
            finetune.tune(run, task_data)
    assert finding.find(run, task_data) is None, "half a checkpoint was taken for one"
    steps = []
    monkeypatch.setattr(trainer, "progress", lambda items, label: iter([steps.append(len(items)), *items]))
    again = finetune.tune(run, task_data)
    assert steps == [100], "it did not go on from step 100"
    first, second = (load_file(checkpoint.folder / "model.safetensors") for checkpoint in (whole, again))
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
    assert finding.find(run, task_data) == again
    assert not list((tmp_path / "second" / "tuned").glob(".work*"))


def test_it_learns_and_frozen_embeddings_stay(small):
    run, task_data = small
    run = replace(run, model=replace(run.model, tuning=ModelTuning(learning_rate=1e-3, freeze_embeddings=True)))
    base = load_file(finetune.base_folder(run) / "model.safetensors")
    tuned = load_file(finetune.tune(run, task_data).folder / "model.safetensors")
    assert torch.equal(tuned["bert.embeddings.word_embeddings.weight"], base["embeddings.word_embeddings.weight"])
    name = "encoder.layer.0.output.dense.weight"
    assert not torch.allclose(tuned[f"bert.{name}"], base[name])


def test_the_recipe_is_cut_at_a_number_of_tokens(small):
    from bench.tasks.encoding import Encoder

    run, task_data = small
    encoder = Encoder(finetune.base_folder(run), run.task, run.model.arch)
    limited = replace(run, task=replace(run.task, tuning=TaskTuning(max_tokens=300)))
    train = encoder.examples(task_data.train)
    rows = order.rows(train, limited.task, limited.model.tuning)
    lengths = [len(example["input_ids"]) for example in train.encode(rows)]
    assert sum(lengths) <= 300
    everything = order.rows(train, run.task, run.model.tuning)
    assert len(rows) < len(everything) == 60
    assert rows.tolist() == everything[: len(rows)].tolist()


def test_a_base_that_lacks_weights_is_told(small):
    from safetensors.torch import save_file

    from bench.errors import UserError

    run, task_data = small
    file = finetune.base_folder(run) / "model.safetensors"
    weights = load_file(file)
    del weights["encoder.layer.0.output.dense.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="the base of small lacks weights: "):
        finetune.tune(run, task_data)


@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet", "roberta"])
def test_only_the_head_of_a_base_may_be_new(family, tmp_path):
    """`new_weights` of every architecture names just what a base encoder does not have."""
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    from bench.made_up import SIZES

    config = AutoConfig.for_model(family, vocab_size=60, max_position_embeddings=40, **SIZES[family])
    AutoModel.from_config(config).save_pretrained(tmp_path)
    _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    new = tuple(f"{name}." for name in arch_of(family).new_weights)
    assert info["missing_keys"]
    assert all(name.startswith(new) for name in info["missing_keys"])


def test_docstrings_are_read_masked_and_filtered(tmp_path):
    (tmp_path / "a.py").write_text(
        '"""Module about numpy arrays and how they are stored.\n   \nSecond paragraph."""\n'
        'def f():\n    """Too short."""\n'
        'class C:\n    """Return the ndarray\n    that np.sum makes of a Tensor here."""\n'
    )
    (tmp_path / "broken.py").write_text("def (:\n")
    found = list(docstrings._paragraphs(tmp_path / "a.py"))
    assert found == ["Module about it arrays and how they are stored.", "Return the it that it.sum makes of a it here."]
    assert list(docstrings._paragraphs(tmp_path / "broken.py")) == []


def test_docstrings_are_split_by_file(tmp_path):
    for i in range(60):
        (tmp_path / f"m{i}.py").write_text(f'"""This is the module number {i} of the library here."""\n')
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "x.py").write_text('"""This is a test and must not be read here."""\n')
    caps = {"train": 1300, "validation": 320}
    taken = docstrings._collect(tmp_path, docstrings._paragraphs, caps)
    assert taken == docstrings._collect(tmp_path, docstrings._paragraphs, caps)
    assert len(taken["train"]) + len(taken["validation"]) == 60
    assert 4 <= len(taken["validation"]) <= 25
    assert not set(taken["train"]) & set(taken["validation"])


@pytest.mark.long
def test_the_embedded_task_is_large_enough_and_the_same_every_time(tmp_path):
    import pyarrow.parquet as pq

    first, source = docstrings.build(tmp_path / "a")
    second, _ = docstrings.build(tmp_path / "b")
    assert "numpy" in source
    for name in ("train.parquet", "validation.parquet"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    tables = {split: pq.read_table(first / f"{split}.parquet").to_pydict() for split in ("train", "validation")}
    assert len(tables["validation"]["text"]) >= 2000
    assert set(tables["validation"]["label"]) == set(range(len(docstrings.LIBRARIES)))
    assert not set(tables["train"]["text"]) & set(tables["validation"]["text"])
