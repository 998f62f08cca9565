"""Exports of saved models: the same logits in ONNX and torch.export, one file, whole or absent."""

import copy
import itertools
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForQuestionAnswering

from bench import export
from bench.errors import UserError
from bench.made_up import FAMILIES, arch_of, batch, tiny
from bench.model import PrunableModel
from bench.nn.shrink import shrink
from bench.saved.writing import save
from bench.tasks import KINDS
from tests.test_checkpoint import facts_of, question_task, saved
from tests.test_model import random_masks


def harsh(shape):
    """Masks with factors that leave one attention, one feed-forward and both of the last layer empty."""
    masks = random_masks(shape, 3, 0.6)
    for sublayer in (0, 3, 4, 5):
        masks.of(sublayer)[:] = 0
    masks.heads[1] = [0, 0.7, 0, 1.3]
    return masks


# each takes seconds; roberta and distilbert as ONNX come in other tests too
LONG = [("bert", "pt2"), ("distilbert", "pt2"), ("roberta", "pt2"), ("roberta", "onnx"), ("distilbert", "onnx")]
EVERY = [pytest.param(*pair, marks=pytest.mark.long if pair in LONG else ()) for pair in itertools.product(FAMILIES, ["onnx", "pt2"])]


@pytest.mark.parametrize(("family", "ending"), EVERY)
def test_an_export_gives_the_models_logits(family, ending, tmp_path, capsys):
    small = saved(tmp_path / "model", family, harsh(tiny(family).shape))
    out = tmp_path / f"out.{ending}"
    assert export.main([str(tmp_path / "model"), str(out)]) == 0
    assert "logits differ by at most" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", out.name], "it is one file"
    forward = (export.read_onnx if ending == "onnx" else export.read_program)(out)
    positions = 38 if family in ("mpnet", "roberta") else 40
    for lengths in ([5, 4, 3, 1], [positions]):
        inputs = export.examples(small, lengths, positions, seed=9)
        (logits,) = forward(inputs)
        assert torch.allclose(logits, small(**inputs).logits, atol=1e-4)


@pytest.mark.parametrize("ending", [pytest.param("onnx", marks=pytest.mark.long), "pt2"])
def test_a_model_that_answers_questions_gives_starts_and_ends_and_reads_segments(ending, tmp_path):
    module = AutoModelForQuestionAnswering.from_config(tiny("bert").module.config)
    model = PrunableModel(module, arch_of("bert"), KINDS["span"])
    masks = random_masks(model.shape, 1, 0.5)
    small = shrink(model, masks)
    save(tmp_path / "model", small, masks, facts_of("bert", question_task()), [])
    difference, (out,) = export.export(tmp_path / "model", tmp_path / f"out.{ending}")
    assert difference < 1e-5
    inputs = export.examples(small, [6, 9], 40)
    forward = (export.read_onnx if ending == "onnx" else export.read_program)(out)
    start, end = forward(inputs)
    assert torch.allclose(start, small(**inputs).start_logits, atol=1e-4)
    assert torch.allclose(end, small(**inputs).end_logits, atol=1e-4)
    assert not torch.allclose(start, forward({**inputs, "token_type_ids": inputs["token_type_ids"] * 0})[0], atol=1e-4)


def test_an_export_that_computes_something_else_is_not_kept(tmp_path, monkeypatch, capsys):
    saved(tmp_path / "model", "distilbert")
    (tmp_path / "out.pt2").write_text("an earlier one")
    write = export.write_program

    def wrong(module, *rest):
        other = copy.deepcopy(module)
        other.classifier.bias.add_(0.01)
        write(other, *rest)

    monkeypatch.setattr(export, "write_program", wrong)
    assert export.main([str(tmp_path / "model"), str(tmp_path / "out.pt2")]) == 1
    assert "the export's logits differ from the model's by" in capsys.readouterr().err
    assert (tmp_path / "out.pt2").read_text() == "an earlier one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.pt2"]


def test_weights_beyond_one_file_lie_beside_it(tmp_path, monkeypatch, capsys):
    small = saved(tmp_path / "model", "distilbert", harsh(tiny("distilbert").shape))
    monkeypatch.setattr(export, "LARGEST", 0)
    assert export.main([str(tmp_path / "model"), str(tmp_path / "out.onnx")]) == 0
    assert "out.onnx.data: keep the files together" in capsys.readouterr().out
    inputs = export.examples(small, [5], 40)
    assert torch.allclose(export.read_onnx(tmp_path / "out.onnx")(inputs)[0], small(**inputs).logits, atol=1e-4)


def test_the_runner_runs_the_model_it_is_given():
    model = tiny("roberta", dtype=torch.float32)
    small = shrink(model, harsh(model.shape))
    inputs = {name: batch([6])[name] for name in ("input_ids", "attention_mask")}  # one example: nothing is fixed to it
    run = export.onnx_runner(small, ["logits"], list(inputs), threads=1)(inputs)
    assert torch.allclose(torch.from_numpy(run()[0]), small(**inputs).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name a saved model's folder and a file"),
        (["MODEL"], "name a saved model's folder and a file"),
        (["MODEL", "out.pdf"], "out.pdf: name a file that ends in .onnx or .pt2"),
        (["MODEL", "nowhere/out.onnx"], "nowhere is not a folder"),
        (["MODEL", "folder.onnx"], "folder.onnx is a folder: name a file in it"),
        (["nothing", "out.pt2"], "nothing is not there"),
        (["folder.onnx", "out.pt2"], "folder.onnx is not a saved model"),
    ],
)
def test_what_is_wrong_with_an_export_is_one_sentence(words, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "MODEL", "bert")
    (tmp_path / "folder.onnx").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert export.main(words) == 1
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert sentence in err
    assert sorted(tmp_path.rglob("*")) == before


def test_without_its_packages_onnx_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert export.main([str(tmp_path), str(tmp_path / "out.onnx")]) == 1
    assert capsys.readouterr().err == "ONNX needs onnxscript: pip install 'prunebench[export]'\n"
    with pytest.raises(UserError, match="ONNX needs onnxscript"):
        export.onnx_runner(tiny("bert").module, ["logits"], [], 1)


def test_help_needs_neither_torch_nor_onnx():
    text = "import sys; from bench import export, measure; export.main(['--help']); measure.main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("python -m bench.export DIR OUT.onnx|OUT.pt2")
    assert done.stdout.endswith("False\n")
