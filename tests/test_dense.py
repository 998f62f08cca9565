"""Finding the dense checkpoint: the order of the places, and what is wrong with a folder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from bench.config import Base, CalibrationPlan, HubCheckpoint, Keys, LatencyPlan, Model, ModelTuning, Recover, Run, Task
from bench.dense import finding, hub, loading, parent, weights
from bench.dense.finetune import write_random
from bench.errors import UserError
from bench.made_up import FAMILIES, arch_of, tiny
from bench.tasks import KINDS, data, scoring
from bench.tasks.encoding import Encoder
from bench.tasks.kind import Score
from tests.conftest import write_task

SIZE = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
TASK = Task(["sentence1", "sentence2"], ["no", "yes"], ["accuracy"], "accuracy", 20.0, 32)
MODEL = Model(arch_of("bert"), base=Base(packages=["some-package==1"], sha256="0" * 64))


def checkpoint(folder: Path, outputs=2, names=None) -> Path:
    folder.mkdir(parents=True)
    write_random({"type": "bert", **SIZE}, folder)
    torch.manual_seed(5)
    config = AutoConfig.from_pretrained(folder, num_labels=outputs)
    if names:
        config.id2label = dict(enumerate(names))
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def run_of(model=MODEL, task=TASK):
    plans = CalibrationPlan("tokens", 100, None, 32), LatencyPlan("none")
    keys = Keys("flops", 0.5, 0, *plans, "cpu", "fp32", None, 1, Recover(), 1, None, "results", False)
    return Run("random", "methods.random.Random", {}, False, False, "pairs", task, "small", model, keys, "cpu", 1, "")


@pytest.fixture
def task_data(tmp_path, monkeypatch):
    write_task(tmp_path / "data" / "pairs")
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "data"))
    return data.load("pairs", TASK)


def test_the_places_are_asked_in_order(tmp_path, monkeypatch, task_data):
    listed = replace_model(checkpoints={"pairs": HubCheckpoint("someone/model", 90.0, [1, 0])})
    assert finding.find(run_of(), task_data) is None, "the base can be fine-tuned"
    monkeypatch.setattr(hub, "snapshot", lambda repo: checkpoint_once(tmp_path / "hub"))
    found = finding.find(run_of(listed), task_data)
    assert (found.source, found.expected, found.label_map) == ("hub:someone/model", 90.0, [1, 0])
    tuned = finding.tuned_folder(finding.tuned_key(run_of(listed), task_data))
    checkpoint(tuned)
    assert finding.find(run_of(listed), task_data).source.startswith("tuned:")
    checkpoint(tmp_path / "models" / "small" / "pairs")
    monkeypatch.setenv("BENCH_MODELS", str(tmp_path / "models"))
    assert finding.find(run_of(listed), task_data).source == "models:small/pairs"
    own = checkpoint(tmp_path / "own [1] = x")
    assert finding.find(run_of(replace(listed, path=str(own))), task_data).source == "path"


def checkpoint_once(folder):
    return folder if folder.exists() else checkpoint(folder)


def replace_model(**changes):
    return replace(MODEL, **changes)


def test_nothing_anywhere_is_told(task_data):
    with pytest.raises(UserError, match="the hub is not reachable; set model"):
        finding.find(run_of(replace_model(base=Base(hub="someone/base"))), task_data)


def test_a_fine_tuning_is_known_by_recipe_base_and_data(task_data):
    key = finding.tuned_key(run_of(), task_data)
    assert key == finding.tuned_key(run_of(replace_model(path="elsewhere")), task_data)
    others = [
        run_of(replace_model(tuning=ModelTuning(learning_rate=1.0))),
        run_of(replace_model(base=Base(packages=["p"], sha256="1" * 64))),
        run_of(task=replace(TASK, max_length=16)),
    ]
    assert len({key, *(finding.tuned_key(other, task_data) for other in others)}) == 4
    changed = replace(task_data, train=replace(task_data.train, sha256="other"))
    assert finding.tuned_key(run_of(), changed) != key


def test_identity_is_content(tmp_path):
    one, two = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    assert finding.identity(one) == finding.identity(two)
    weights = load_file(two / "model.safetensors")
    weights["classifier.bias"] += 1
    save_file(weights, two / "model.safetensors")
    assert finding.identity(one) != finding.identity(two)


def damage(folder, how):
    weights = folder / "model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif how == "short":
        weights.write_bytes(b"1234")
    elif how == "header":
        weights.write_bytes(b"\xff" * 4000)
    elif how == "config":
        (folder / "config.json").write_text("{")
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "no weights":
        weights.unlink()
    elif how == "no tokenizer":
        for name in finding.TOKENIZER_FILES:
            (folder / name).unlink(missing_ok=True)
    elif how == "no head":
        save_file({k: v for k, v in load_file(weights).items() if not k.startswith("classifier")}, weights)
    elif how == "pickle":
        weights.rename(folder / "x")
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x02 not a zip")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated", "damaged or truncated"),
        ("short", "damaged or truncated"),
        ("header", "damaged or truncated"),
        ("config", "cannot be read as JSON"),
        ("no config", "no config.json"),
        ("no weights", "no model.safetensors"),
        ("no tokenizer", "has no tokenizer"),
        ("no head", "has no classifier"),
        ("pickle", "damaged or truncated"),
    ],
)
def test_a_damaged_checkpoint_is_told(tmp_path, how, words):
    folder = checkpoint(tmp_path / "m")
    finding.check_folder(folder, arch_of("bert"), 2)
    damage(folder, how)
    with pytest.raises(UserError, match=words):
        finding.check_folder(folder, arch_of("bert"), 2)


def test_another_architecture_or_number_of_labels_is_told(tmp_path):
    folder = checkpoint(tmp_path / "m", outputs=3)
    with pytest.raises(UserError, match="is a bert, not a roberta"):
        finding.check_folder(folder, arch_of("roberta"), 3)
    with pytest.raises(UserError, match="has 3 outputs, the task needs 1"):
        finding.check_folder(folder, arch_of("bert"), 1)


def test_loading_is_strict_but_for_surplus_weights(tmp_path, task_data):
    folder = checkpoint(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "cls.predictions.bias": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    run = run_of(replace_model(path=str(folder)))
    assert loading.load(run, finding.find(run, task_data)).shape.heads == 2
    lost = "bert.encoder.layer.0.attention.self.query.weight"
    save_file({k: v for k, v in weights.items() if k != lost}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"lacks weights of the model: {lost}"):
        loading.load(run, finding.find(run, task_data))
    save_file({**weights, lost: weights[lost][:, :-1].clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"lacks weights of the model: {lost} of the config's shape"):
        loading.load(run, finding.find(run, task_data))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["classification", "span"])
def test_every_weight_of_a_model_is_known_by_name_and_shape_without_loading_it(family, kind):
    config = tiny(family).module.config
    model = KINDS[kind].from_config(config)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    arch, fields, outputs = arch_of(family), config.to_dict(), 2

    def lacking(changed):
        return weights.lacking(changed, fields, arch, outputs, KINDS[kind].head(arch))

    assert lacking(shapes) == []
    for name in shapes:
        assert lacking({other: shape for other, shape in shapes.items() if other != name}) == [name]
        assert lacking(shapes | {name: [*shapes[name][:-1], shapes[name][-1] + 1]}) == [f"{name} of the config's shape"]
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): s for name, s in shapes.items()}
    bare = {name.removeprefix(f"{model.base_model_prefix}."): shape for name, shape in shapes.items()}
    assert lacking(old) == lacking(bare) == []


def test_what_a_checkpoint_lacks_is_told_from_its_shards(tmp_path):
    folder = checkpoint(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    lost = "bert.encoder.layer.0.output.LayerNorm.bias"
    names = [name for name in tensors if name != lost]
    (folder / "model.safetensors").unlink()
    for shard, part in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
        save_file({name: tensors[name] for name in part}, folder / shard, metadata={"format": "pt"})
    where = dict.fromkeys(names[::2], "a.safetensors") | dict.fromkeys(names[1::2], "b.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    with pytest.raises(UserError, match=f"lacks weights of the model: {lost}; save or fetch"):
        finding.check_folder(folder, arch_of("bert"), 2)
    (folder / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks b.safetensors, which model.safetensors.index.json names"):
        finding.check_folder(folder, arch_of("bert"), 2)


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path):
    folder = checkpoint(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 7}))
    with pytest.raises(UserError, match=r"its tokenizer has \d+ words, its model 7"):
        Encoder(folder, TASK, arch_of("bert"))


def test_logits_that_are_not_finite_are_no_score():
    """Of questions they would be answered by "no answer", which is right for half of SQuAD v2.0."""
    with pytest.raises(ValueError, match="logits that are not finite"):
        scoring.measured(TASK, np.full((3, 2), np.nan, np.float32), None)


def test_half_precision_files_are_computed_in_float32(tmp_path, task_data):
    folder = checkpoint(tmp_path / "m")
    halves = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    run = run_of(replace_model(path=str(folder)))
    model = loading.load(run, finding.find(run, task_data))
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("names", "label_map", "order"),
    [(None, None, [0, 1, 2]), (["C", "a", "B."], None, [2, 0, 1]), (["x", "y", "z"], None, [0, 1, 2]), (None, [2, 0, 1], [2, 0, 1])],
)
def test_outputs_are_matched_by_list_by_name_or_by_number(tmp_path, task_data, names, label_map, order):
    """After loading, column t of the logits is the task's label t, wherever the model has it."""
    folder = checkpoint(tmp_path / "m", 3, names)
    task = replace(TASK, labels=["a", "b", "c"])
    run = run_of(replace_model(path=str(folder)), task)
    found = replace(finding.find(run, task_data), label_map=label_map)
    ids = {"input_ids": torch.tensor([[2, 7, 8, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()(**ids).logits[0]
    logits = loading.load(run, found)(ids)[0]
    for output, label in enumerate(order):
        assert torch.isclose(logits[label], plain[output])


@pytest.mark.parametrize(
    ("labels", "names", "order"),
    [
        (["-", "+"], ["+", "-"], [1, 0]),
        (["C++", "C"], ["C", "C++"], [1, 0]),
        (["C++", "C"], [" c", "c++"], [1, 0]),
        (["a", "A"], ["A", "a"], [1, 0]),
        (["not_equivalent", "equivalent"], ["Equivalent", "Not equivalent"], [1, 0]),
        (["😀", "😢"], ["😢", "😀"], [1, 0]),
        (["+", "-"], ["plus", "minus"], [0, 1]),
        (["+", "x"], ["x", "-"], [0, 1]),
        (["ja", "nein"], ["nein", "nein"], [0, 1]),
    ],
)
def test_names_are_compared_as_they_are_and_loosened_only_where_that_tells_them_apart(tmp_path, task_data, labels, names, order):
    folder = checkpoint(tmp_path / "m", names=names)
    run = run_of(replace_model(path=str(folder)), replace(TASK, labels=labels))
    assert loading.output_labels(run, finding.find(run, task_data)) == order


def test_a_label_map_that_is_no_permutation_is_told(tmp_path, task_data):
    folder = checkpoint(tmp_path / "m")
    run = run_of(replace_model(path=str(folder)))
    with pytest.raises(UserError, match="no permutation"):
        loading.load(run, replace(finding.find(run, task_data), label_map=[1, 1]))


def test_the_dense_score_is_measured_once_per_content(tmp_path, task_data, monkeypatch, capsys):
    from bench.tasks.encoding import Encoder

    folder = checkpoint(tmp_path / "m")
    run = run_of(replace_model(path=str(folder)))
    found = replace(finding.find(run, task_data), expected=99.0)
    model, encoder = loading.load(run, found), Encoder(folder, TASK, run.model.arch)
    validation = encoder.examples(task_data.validation)
    first = scoring.dense_score(run, model, found, encoder, validation)
    assert "the model's card claims 99.00" in capsys.readouterr().err
    monkeypatch.setattr(scoring, "predict", lambda *_: pytest.fail("scored again"))
    again = scoring.dense_score(run, model, found, encoder, validation)
    assert np.array_equal(first.arrays["logits"], again.arrays["logits"])
    with pytest.raises(pytest.fail.Exception):
        scoring.dense_score(run, model, replace(found, sha256="other"), encoder, validation)


def test_scores_come_in_row_order_whatever_the_lengths(tmp_path, task_data):
    from bench.tasks.encoding import Encoder

    folder = checkpoint(tmp_path / "m")
    run = run_of(replace_model(path=str(folder)))
    model, encoder = loading.load(run, finding.find(run, task_data)), Encoder(folder, TASK, run.model.arch)
    logits = scoring.predict(model.module, encoder, scoring.everything(encoder.examples(task_data.validation)), "cpu")
    for row in (0, 17, 59):
        alone = encoder.batch(encoder.examples(task_data.validation).encode([row]), None, "cpu")
        assert np.allclose(model(alone).numpy()[0], logits[row], atol=1e-5)


def test_the_hub_checkpoints_of_the_papers_are_listed():
    from omegaconf import OmegaConf

    from bench.config import typed
    from bench.files import CONF

    listed = OmegaConf.load(CONF / "model" / "bert-base.yaml").checkpoints
    assert {task: typed(HubCheckpoint, entry, task).hub for task, entry in listed.items()} == {
        task: f"textattack/bert-base-uncased-{name}"
        for task, name in (("sst2", "SST-2"), ("mrpc", "MRPC"), ("stsb", "STS-B"), ("qnli", "QNLI"), ("qqp", "QQP"), ("mnli", "MNLI"))
    }
    assert listed.mnli.label_map == [2, 0, 1]


@pytest.mark.network
@pytest.mark.parametrize("task", ["sst2", "mrpc", "stsb", "qnli", "qqp", "mnli"])
def test_the_real_hub_checkpoints_have_what_is_claimed(task, monkeypatch, tmp_path):
    """With a network: the listed checkpoint loads, and its dense score is what its card says, where it says one."""
    import subprocess
    import sys

    monkeypatch.delenv("HF_HUB_OFFLINE")
    words = ["method=random", f"task={task}", "model=bert-base", "latency=none", "calibration.tokens=1000", f"results={tmp_path}"]
    done = subprocess.run([sys.executable, "-m", "bench", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning: the dense score" not in done.stderr


def test_config_names_that_are_generic_change_nothing(tmp_path, task_data):
    folder = checkpoint(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "LABEL_0", "1": "LABEL_1"}
    (folder / "config.json").write_text(json.dumps(config))
    run = run_of(replace_model(path=str(folder)))
    assert loading.output_labels(run, finding.find(run, task_data)) == [0, 1]


def test_a_dense_model_that_was_pruned_before_or_knows_nothing_is_noted(tmp_path):
    model, folder = tiny("bert"), checkpoint(tmp_path / "m")
    found = finding.Checkpoint(folder, "path", "")
    gold = np.array([0, 1, 1, 1])
    good = Score({"logits": np.eye(2, dtype=np.float32)[[0, 1, 1, 0]] * 2}, {"accuracy": 75.0}, 75.0)

    def notes(before, gold):
        arrays = {"gold": gold} if before is None else {"gold": gold, "logits_dense": before.arrays["logits"]}
        return parent.notes(found, model, before, "accuracy", arrays)

    assert notes(None, gold) == notes(good, np.array([0, 1, 1, 0])) == []
    (told,) = notes(good, gold)
    assert told.startswith("the dense accuracy, 75.00, is no better than the 75.00 of a trivial answer")
    model.sublayers[1].projection.weight.zero_()
    (told,) = notes(None, gold)
    assert told.startswith("the dense model was pruned before: ")
    facts = {"method": "weight-magnitude", "unit": "weights", "ratio": 0.5, "seed": 0, "id": "abc"}
    (folder / "prunebench.json").write_text(json.dumps(facts))
    (told,) = notes(None, gold)
    assert "pruned before (weight-magnitude, weights 0.5, seed 0, run abc): " in told
