"""A pruned model saved and loaded: the same to the bit, whole or absent, and nothing in the folder is run."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from bench import cell, machine, measure
from bench.checks import check_save, check_source
from bench.config import Task, Windows
from bench.dense.finding import Checkpoint
from bench.dense.finetune import write_random
from bench.errors import UserError
from bench.files import CONF, digest
from bench.made_up import FAMILIES, arch_of, batch, tiny
from bench.masks import Masks
from bench.model import PrunableModel
from bench.nn.shrink import shrink
from bench.records import store
from bench.saved import checkpoint, writing
from bench.saved.checkpoint import Facts, load
from bench.saved.writing import same, save
from bench.tasks import KINDS
from tests.conftest import HANGS, ROOT
from tests.helpers import logits_of
from tests.test_model import random_masks

PADDED = batch([9, 4, 1, 7])
SMALL = ["method=magnitude", "task=mrpc", "model=tiny-random", "calibration.tokens=800", "latency=none", "threads=1"]
RANDOM = {"type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
PAIR = Task(columns=["sentence1", "sentence2"], labels=["no", "yes"], metrics=["accuracy"], score="accuracy", length=9, max_length=30)


def facts_of(family, task=PAIR):
    attention = "eager" if family == "mpnet" else "sdpa"
    names = {"id": "0", "method": "m", "task_name": "t", "model": family, "unit": "flops", "ratio": 0.5, "seed": 0, "prunebench": "0"}
    return Facts(1, kind=task.kind, outputs=task.outputs, task=task, arch=arch_of(family), attention=attention, **names)


def question_task():
    return Task(["question", "context"], None, ["f1"], "f1", 20, 64, windows=Windows())


def saved(folder, family="mpnet", masks=None, module=None):
    """A small model, shrunk and saved. Returns what was saved."""
    model = tiny(family, dtype=torch.float32)
    masks = random_masks(model.shape, 5, 0.5) if masks is None else masks
    small = shrink(model, masks) if module is None else module
    save(folder, small, masks, facts_of(family), [])
    return small


def edges(shape):
    """Nothing pruned, everything pruned, no head, no neuron, and one kind missing from a single layer."""
    whole = Masks.ones(shape)
    yield whole
    yield Masks(whole.heads * 0, whole.neurons * 0)
    yield Masks(whole.heads * 0, whole.neurons * 0.5)
    yield Masks(whole.heads * 1.5, whole.neurons * 0)
    for sublayer in (0, 5):
        masks = random_masks(shape, sublayer, 0.7)
        masks.of(sublayer)[:] = 0
        yield masks


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_is_the_saved_one_to_the_bit(family, tmp_path):
    shape = tiny(family).shape
    for masks in [*edges(shape), *(random_masks(shape, seed, keep) for seed, keep in ((11, 0.1), (12, 0.6)))]:
        small = saved(tmp_path / "model", family, masks)
        loaded = load(tmp_path / "model")
        assert same(small, loaded)
        for inputs in (PADDED, batch([6, 6]), batch([38])):
            assert torch.equal(logits_of(small, inputs), logits_of(loaded, inputs))
        assert not any(p.requires_grad or p.is_meta for p in loaded.parameters())
        assert not any(buffer.is_meta for buffer in loaded.buffers())
        assert not any(module.training for module in loaded.modules())
        assert np.array_equal(checkpoint.read(tmp_path / "model").masks.heads, masks.heads), "factors are kept"


def test_a_model_that_answers_questions_comes_back(tmp_path):
    from transformers import AutoModelForQuestionAnswering

    config = tiny("bert").module.config
    model = PrunableModel(AutoModelForQuestionAnswering.from_config(config), arch_of("bert"), KINDS["span"])
    masks = random_masks(model.shape, 1, 0.5)
    save(tmp_path / "model", small := shrink(model, masks), masks, facts_of("bert", question_task()), [])
    assert torch.equal(logits_of(small, PADDED), logits_of(load(tmp_path / "model"), PADDED))


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_refuses_a_model_that_lost_units_and_loads_a_whole_one(family, tmp_path):
    """Whole sub-layers, single units, a quarter of each layer: by its Auto classes and by the family's own."""
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    own = type(tiny(family).module)
    shape, folder = tiny(family).shape, tmp_path / "model"
    even = Masks.ones(shape)
    even.heads[:, 0] = even.neurons[:, :10] = 0
    for masks in [*list(edges(shape))[1:], random_masks(shape, 11, 0.6), even]:
        saved(folder, family, masks)
        for loader in (AutoModel, AutoModelForSequenceClassification, AutoConfig, own):
            with pytest.raises(Exception, match=f"prunebench-{family}|expected int, got list"):
                loader.from_pretrained(folder)
        with pytest.raises(Exception, match="expected int, got list"):
            own.from_pretrained(folder, ignore_mismatched_sizes=True)
    whole = saved(folder, family, Masks.ones(shape))
    assert torch.equal(logits_of(AutoModelForSequenceClassification.from_pretrained(folder).eval(), PADDED), logits_of(whole, PADDED))


def test_a_model_that_was_saved_with_the_dense_models_config_still_loads(tmp_path):
    small = saved(tmp_path / "model")
    dense = {"model_type": "mpnet", "num_attention_heads": 4, "intermediate_size": 40}
    edit(tmp_path / "model", "config.json", lambda config: config.update(dense))
    assert same(small, load(tmp_path / "model"))


def test_tensors_that_share_memory_or_are_views_are_saved_apart(tmp_path):
    model = tiny("bert", dtype=torch.float32)
    layers = model.layers
    layers[1].output.dense.bias = layers[0].output.dense.bias
    layers[1].intermediate.dense.weight = torch.nn.Parameter(torch.randn(24, 40).t(), requires_grad=False)
    small = saved(tmp_path / "model", "bert", Masks.ones(model.shape), model.module)
    assert torch.equal(logits_of(small, PADDED), logits_of(load(tmp_path / "model"), PADDED))


def test_loading_does_not_touch_the_global_random_numbers_or_the_file(tmp_path):
    saved(tmp_path / "model")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    loaded = load(tmp_path / "model")
    assert torch.equal(torch.rand(2), expected)
    before = logits_of(loaded, PADDED)
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    assert torch.equal(logits_of(loaded, PADDED), before)


# what is done to a saved model, and what loading says then


def rewrite(folder, change):
    """Change tensors of the weights, and let the folder say that they are meant."""
    file = folder / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    change(weights)
    safetensors.torch.save_file({name: tensor.clone() for name, tensor in weights.items()}, file)
    agree(folder, "model.safetensors")


def agree(folder, name):
    edit(folder, "prunebench.json", lambda facts: facts["sha256"].update({name: digest(folder / name)}))


def edit(folder, name, change):
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def masks_with(folder, **arrays):
    file = folder / "masks.safetensors"
    safetensors.numpy.save_file(safetensors.numpy.load_file(file) | arrays, file)
    agree(folder, "masks.safetensors")


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(folder)))


class Bomb:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "exploded"),)


DAMAGE = {
    "no folder": (lambda f: shutil.rmtree(f), "is not there: name the folder of a saved model"),
    "no facts": (lambda f: (f / "prunebench.json").unlink(), "is not a saved model: it has no prunebench.json"),
    "no config": (lambda f: (f / "config.json").unlink(), "is not a whole saved model: it has no config.json"),
    "no masks": (lambda f: (f / "masks.safetensors").unlink(), "it has no masks.safetensors"),
    "pickle": (pickled, "it has no model.safetensors; pytorch_model.bin is not read, it may hold pickled code"),
    "pickle under our name": (lambda f: (f / "model.safetensors").write_bytes(pickle.dumps(Bomb(f))), "damaged or truncated"),
    "pickled masks": (lambda f: (f / "masks.safetensors").write_bytes(pickle.dumps(Bomb(f))), "damaged or truncated"),
    "newer": (lambda f: edit(f, "prunebench.json", lambda c: c.update(schema=2)), "has schema 2, this prunebench reads up to 1"),
    "no schema": (lambda f: edit(f, "prunebench.json", lambda c: c.pop("schema")), "does not say its schema"),
    "unknown key": (lambda f: edit(f, "prunebench.json", lambda c: c.update(colour=2)), "unknown key 'colour'"),
    "missing key": (lambda f: edit(f, "prunebench.json", lambda c: c.pop("arch")), "arch"),
    "bad task": (lambda f: edit(f, "prunebench.json", lambda c: c["task"].update(score="bleu")), "score=bleu is not among its metrics"),
    "environment": (lambda f: edit(f, "prunebench.json", lambda c: c.update(method="${oc.env:HOME}")), "it holds ${...}"),
    "code from elsewhere": (lambda f: edit(f, "prunebench.json", lambda c: c.update(attention="someone/kernel")), "its attention"),
    "other kind": (lambda f: edit(f, "prunebench.json", lambda c: c.update(outputs=3)), "its attention, kind or outputs"),
    "other paths": (lambda f: edit(f, "prunebench.json", lambda c: c["arch"].update(layers="bert.layers")), "do not fit"),
    "damaged facts": (lambda f: cut(f / "prunebench.json"), "prunebench.json cannot be read as JSON"),
    "damaged config": (lambda f: cut(f / "config.json"), "config.json cannot be read as JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "config.json does not hold an object"),
    "deep JSON": (lambda f: (f / "config.json").write_text("[" * 100_000), "cannot be read as JSON"),
    "other family": (lambda f: edit(f, "config.json", lambda c: c.update(model_type="bert")), "is of a bert, prunebench.json of a mpnet"),
    "other layers": (lambda f: edit(f, "config.json", lambda c: c.update(num_hidden_layers=4)), "has 3 layers of 4 heads and 40 neurons"),
    "other heads": (lambda f: edit(f, "config.json", lambda c: c.update(num_attention_heads=6)), "has 3 layers of 4 heads"),
    "other width": (lambda f: edit(f, "config.json", lambda c: c.update(hidden_size=48)), "the pruned model needs"),
    "odd width": (lambda f: edit(f, "config.json", lambda c: c.update(hidden_size=25)), "do not fit"),
    "words for numbers": (lambda f: edit(f, "config.json", lambda c: c.update(hidden_size="wide")), "config.json"),
    "other outputs": (lambda f: edit(f, "config.json", lambda c: c.update(id2label={"0": "a"}, label2id={"a": 0})), "has 1 outputs"),
    "truncated": (lambda f: cut(f / "model.safetensors"), "model.safetensors is damaged or truncated"),
    "empty weights": (lambda f: cut(f / "model.safetensors", 0), "model.safetensors is damaged or truncated"),
    "damaged header": (lambda f: flip(f / "model.safetensors", 3), "model.safetensors is damaged or truncated"),
    "a flipped bit": (lambda f: flip(f / "model.safetensors", -40), "its SHA-256 is not the one in prunebench.json"),
    "a flipped bit in a mask": (lambda f: flip(f / "masks.safetensors", -64), "masks.safetensors"),
    "missing": (lambda f: rewrite(f, lambda w: w.pop("classifier.dense.bias")), "lacks classifier.dense.bias"),
    "surplus": (lambda f: rewrite(f, lambda w: w.update(extra=torch.ones(2))), "holds extra, which the pruned model does not have"),
    "wrong shape": (
        lambda f: rewrite(f, lambda w: w.update({"classifier.dense.bias": torch.ones(2)})),
        "classifier.dense.bias has shape [2], the pruned model needs [24]",
    ),
    "half precision": (
        lambda f: rewrite(f, lambda w: w.update({"classifier.dense.bias": torch.ones(24).half()})),
        "holds torch.float16, a saved model has torch.float32",
    ),
    "masks of other units": (lambda f: masks_with(f, heads=np.ones((3, 4))), "they keep different units"),
    "masks of another model": (lambda f: masks_with(f, heads=np.ones((3, 5))), "they keep different units"),
    "masks of another kind": (lambda f: masks_with(f, more=np.ones(3)), "does not hold heads [L, H] and neurons [L, I]"),
    "masks of no number": (lambda f: masks_with(f, heads=np.full((3, 4), np.nan)), "does not hold finite float64 numbers"),
    "flat masks": (lambda f: masks_with(f, heads=np.ones(12)), "does not hold heads [L, H]"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_wrong_with_a_folder_is_one_sentence_and_nothing_is_unpickled(kind, tmp_path):
    folder = tmp_path / "model"
    saved(folder)
    change, sentence = DAMAGE[kind]
    change(folder)
    with pytest.raises(UserError) as caught:
        load(folder)
    assert sentence in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (folder / "exploded").exists()


def test_code_that_the_config_names_is_not_run(tmp_path):
    folder = tmp_path / "model"
    small = saved(folder)
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'exploded')!r})\nclass Model: pass\n")
    edit(
        folder, "config.json", lambda c: c.update(auto_map={"AutoModelForSequenceClassification": "evil.Model", "AutoConfig": "evil.Model"})
    )
    assert same(small, load(folder))
    assert not (tmp_path / "exploded").exists()


# where a model is saved


def test_an_earlier_saved_model_is_replaced_and_nothing_else_is(tmp_path):
    folder = tmp_path / "model"
    saved(folder, "bert")
    second = saved(folder, "mpnet")
    assert same(second, load(folder))
    (folder / "mine.onnx").write_text("mine")
    with pytest.raises(UserError, match=r"would be replaced, but holds mine.onnx"):
        saved(folder, "bert")
    (folder / "mine.onnx").unlink()
    assert same(second, load(folder))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        saved(tmp_path / "thesis")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert same(saved(tmp_path / "link"), load(tmp_path / "empty"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link", "model", "thesis"], "something half written is left"


def test_a_model_is_whole_or_absent(tmp_path, monkeypatch):
    first = saved(tmp_path / "model", "bert")
    for broken in ("_write_json", "_put", "load"):  # while it is written, read back, put in place
        with monkeypatch.context() as patch:
            patch.setattr(writing, broken, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                saved(tmp_path / "model", "mpnet")
        assert same(first, load(tmp_path / "model"))
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with monkeypatch.context() as patch:
        patch.setattr(writing, "same", lambda *_: False)
        with pytest.raises(RuntimeError, match="does not come back"):
            saved(tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_place_that_does_not_do_is_told_before_the_run(tmp_path):
    results, model = tmp_path / "results", tmp_path / "model"
    saved(model)
    (tmp_path / "file").write_text("")
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "empty").mkdir()
    closed.chmod(0o555)
    (tmp_path / "nowhere").symlink_to(tmp_path / "nothing")
    for given, many, sentence in (
        ("", False, "save= is empty"),
        (tmp_path / "file", False, "is a file, not a folder"),
        (tmp_path / "file" / "below", False, "is a file, not a folder"),
        (closed / "new", False, "is read-only"),
        (closed / "empty", False, "is read-only"),
        (tmp_path / "nowhere", False, "is a link that leads nowhere"),
        (tmp_path, False, "models and records need folders of their own"),
        (results / "model", False, "models and records need folders of their own"),
        (closed, False, "holds other files"),
        (model, True, "is a saved model: a multirun makes a folder for each"),
    ):
        with pytest.raises(UserError) as caught:
            check_save(str(given), results, many)
        assert sentence in str(caught.value)
    for given, many in ((model, False), (tmp_path / "new" / "below", False), (tmp_path / "new", True)):
        assert check_save(str(given), results, many) == given
    closed.chmod(0o755)


# from the command line


def resolved(*words):
    """The run that a command line asks for."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("config", [*SMALL, *words])
    names = {word.partition("=")[0]: word.partition("=")[2] for word in SMALL}
    reference = OmegaConf.to_container(OmegaConf.load(CONF / "method" / f"{names['method']}.yaml"))
    return cell.resolve(cfg, names, reference, [*SMALL, *words])


@pytest.fixture(scope="module")
def run_and_model(shared, tmp_path_factory):
    """One run with save=. Returns its record and the model's folder."""
    root = tmp_path_factory.mktemp("saving")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_DATA", str(shared / "data"))
        patch.setenv("BENCH_CACHE", str(shared / "cache"))
        patch.setattr(machine, "settle", lambda threads: None)
        outcome = cell.run_cell(resolved(f"results={root / 'results'}", f"save='{root / 'a model'}'"))
    assert outcome.status == "ok", outcome.reason
    return store.read(outcome.folder), root / "a model"


def test_a_run_leaves_its_model_and_the_record_says_nothing_of_the_place(run_and_model):
    stored, model = run_and_model
    assert (model / "record.json").read_bytes() == (stored.folder / "record.json").read_bytes()
    assert "save" not in stored.record["command"]
    assert (
        str(model)
        not in (model / "record.json").read_text() + (model / "config.json").read_text() + (model / "prunebench.json").read_text()
    )
    found = checkpoint.read(model)
    assert found.facts.heads == stored.record["pruned"]["heads"]
    assert found.facts.neurons == stored.record["pruned"]["neurons"]
    assert np.array_equal(found.masks.neurons, stored.arrays()["neurons"])
    assert json.loads((model / "config.json").read_text())["id2label"] == {"0": "not_equivalent", "1": "equivalent"}
    assert not [path for path in model.iterdir() if path.suffix in (".bin", ".npz", ".pt")]


def test_two_lines_load_it_in_a_process_that_knows_no_method(run_and_model, tmp_path, shared):
    stored, model = run_and_model
    text = f"""
import sys
class NoMethods:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("methods", "analysis", "hydra"):
            raise ImportError(name)
sys.meta_path.insert(0, NoMethods())
from bench.saved.checkpoint import load
model = load({str(model)!r})
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(model)!r})
import pyarrow.parquet as pq, torch
row = pq.read_table({str(shared / "data" / "mrpc" / "validation.parquet")!r}).to_pylist()[3]
assert type(tokenizer).__name__ == "BertTokenizer"
print(model(**tokenizer(row["sentence1"], row["sentence2"], return_tensors="pt")).logits.tolist())
"""
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=settings, cwd=tmp_path, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    assert np.allclose(json.loads(done.stdout)[0], stored.arrays()["logits_pruned"][3], atol=1e-5)


def test_saving_runs_again_and_changes_no_identity(run_and_model, bench, tmp_path):
    """A stored record does not answer, the id is that of the run without save=; a multirun makes a folder for each model,
    but none for a cell that is skipped."""
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "never.yaml").write_text("_target_: never.Never\n")
    (tmp_path / "never.py").write_text(
        "from bench.method import Method, Skip\nclass Never(Method):\n    def prune(self, *_):\n        raise Skip('not today')\n"
    )
    assert resolved("save=x").meaning() == resolved().meaning()
    stored, _ = run_and_model
    words = [f"hydra.searchpath=[file://{tmp_path}/conf]", f"results={stored.folder.parent.parent}", f"save={tmp_path / 'models'}"]
    done = bench("-m", *SMALL, *words, "method=magnitude,never", env={"PYTHONPATH": f"{ROOT}:{tmp_path}"})
    assert done.returncode == 0, done.stderr
    assert "stored already" not in done.stderr
    assert "no model is saved: the run is skipped" in done.stderr
    (made,) = (tmp_path / "models").iterdir()
    assert made.name == stored.folder.name.removesuffix("-1") + "-2"
    assert (made / "prunebench.json").exists()


# measured again


@pytest.fixture(autouse=True)
def unsettled(monkeypatch):
    """The test process keeps its own threads and modes."""
    monkeypatch.setattr(machine, "settle", lambda threads: None)


def measured(capsys, *words):
    code = measure.main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_measuring_finds_the_recorded_score_again(run_and_model, shared, monkeypatch, capsys):
    stored, model = run_and_model
    monkeypatch.setenv("BENCH_DATA", str(shared / "data"))
    code, out, _ = measured(capsys, model, "latency.batch=2", "latency.length=8", "threads=1", "device=cpu")
    assert code == 0
    score = f"{stored.record['pruned']['score']:.2f}"
    then, now = (row_of(out, name) for name in ("recorded", "now"))
    assert then[1] == now[1] == score
    assert then[2] == "-", "the run was not timed"
    assert float(now[2]) > 0
    assert now[-1] == then[-1] == machine.machine_name("cpu")


def row_of(out, name):
    (found,) = [line.split() for line in out.splitlines() if line.split()[:1] == [name]]
    return found


def test_without_its_data_a_model_is_timed_all_the_same(run_and_model, capsys):
    code, out, err = measured(capsys, run_and_model[1], "latency.batch=1", "latency.length=4", "threads=1")
    assert code == 0
    assert "no score: no data for task mrpc" in out + err
    assert row_of(out, "now")[1] == "-"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name the folder of a saved model"),
        (["nowhere"], "nowhere is not there"),
        (["MODEL", "nowhere"], "cannot read 'nowhere': write key=value"),
        (["MODEL", "latency.bach=3"], "unknown key 'latency.bach'; did you mean 'latency.batch'?"),
        (["MODEL", "threads=x"], "threads=x: a whole number, at least 1"),
        (["MODEL", "threads=0"], "threads=0: a whole number, at least 1"),
        (["MODEL", "threads=1000000"], "threads=1000000: at most"),
        (["MODEL", "latency.length=1000"], "latency.length=1000: the model has 128 positions"),
        (["MODEL", "device=tpu"], "device=tpu; choose from auto, cpu, cuda"),
        (["MODEL", "device=cuda"], "device=cuda: "),
    ],
)
def test_what_is_wrong_with_a_measurement_is_one_sentence(run_and_model, capsys, monkeypatch, words, sentence):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, out, err = measured(capsys, *(run_and_model[1] if word == "MODEL" else word for word in words))
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert sentence in err


def test_a_builder_that_a_folder_names_is_not_run(run_and_model, tmp_path, capsys):
    """A task's data may be built by code that a YAML names; of a saved model only our own YAML may say so."""
    model = tmp_path / "model"
    shutil.copytree(run_and_model[1], model)
    edit(model, "prunebench.json", lambda facts: facts["task"].update(build="shutil.rmtree"))
    assert checkpoint.read(model).facts.task.build is None
    assert measure._task("docstrings", PAIR).build == "bench.tasks.docstrings.build"
    assert measure._task("mine", PAIR).build is None
    edit(model, "prunebench.json", lambda facts: facts.update(task_name="../task/docstrings"))
    code, _, err = measured(capsys, model, "latency.batch=1", "latency.length=4", "threads=1")
    assert (code, len(err.splitlines())) == (1, 1)


def test_a_checkpoint_is_not_mistaken_for_a_saved_model(tmp_path):
    tiny("bert", dtype=torch.float32).module.save_pretrained(tmp_path / "plain")
    assert Checkpoint(tmp_path / "plain", "", "").folder.is_dir()
    with pytest.raises(UserError, match=r"is not a saved model: it has no prunebench.json; python -m bench ... save=DIR makes one"):
        load(tmp_path / "plain")


def test_a_tokenizer_is_what_it_was_even_where_no_file_says_its_class(tmp_path):
    from transformers import AutoTokenizer

    (tmp_path / "base").mkdir()
    write_random(RANDOM, tmp_path / "base")
    model = tiny("bert", dtype=torch.float32)
    masks = random_masks(model.shape, 1, 0.5)
    save(tmp_path / "model", shrink(model, masks), masks, facts_of("bert"), [tmp_path / "base" / "vocab.txt"])
    assert "token_type_ids" in AutoTokenizer.from_pretrained(tmp_path / "model")("a", "b")


def test_a_pruned_model_is_no_dense_one_and_that_is_told_before_anything_slow(run_and_model, bench, tmp_path):
    """Saved now, saved before it had a model type of its own, and copied without the file that says what it is."""
    model, earlier, bare = run_and_model[1], tmp_path / "earlier", tmp_path / "bare"
    dense = {"model_type": "bert", "num_attention_heads": 4, "intermediate_size": 64}
    for copy in (earlier, bare):
        shutil.copytree(model, copy)
    edit(earlier, "config.json", lambda config: config.update(dense))
    (bare / "prunebench.json").unlink()
    for folder in (model, earlier, bare):
        done = bench(*SMALL, f"model.path='{folder}'")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"{folder} is a pruned model, a run starts from a dense one: name the checkpoint"), done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_a_run_does_not_save_its_model_over_its_dense_checkpoint(tmp_path, bench):
    """A saved model that kept every unit may be pruned further, but not replaced by what comes of it; whatever the path's spelling."""
    model = tmp_path / "model"
    tiny_whole = tiny("bert", dtype=torch.float32)
    (tmp_path / "base").mkdir()
    write_random(RANDOM, tmp_path / "base")
    files = writing.tokenizer_files(tmp_path / "base")
    save(model, tiny_whole.module, Masks.ones(tiny_whole.shape), facts_of("bert"), files)
    (tmp_path / "link").symlink_to(model)
    before = digest(model / "model.safetensors")
    for words in (["save=model"], ["save=link"], ["-m", f"save={tmp_path}"]):
        done = bench(*SMALL, f"model.path={model}", *words)
        said = (done.stdout + done.stderr).strip()
        assert done.returncode == 1
        assert f"would replace the dense checkpoint {model}: name another folder" in said or "need folders of their own" in said
        assert len(said.splitlines()) == 1, said
    assert digest(model / "model.safetensors") == before
    with pytest.raises(UserError, match="would replace the dense checkpoint"):
        check_source("models", tmp_path, model, many=True)
    check_source("models", tmp_path / "other", model, many=True)
