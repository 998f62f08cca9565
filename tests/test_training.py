"""Training: one step by the formulas, interruptions, several processes, distillation, label words, retraining."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM

from bench import made_up
from bench.budget import Budget
from bench.config import Recover
from bench.masks import Masks
from bench.method import Skip
from bench.nn import word_head
from bench.nn.shrink import grow, mask_error, shrink
from bench.saved import checkpoint
from bench.tasks import KINDS, losses
from bench.train.order import Drawn, collate
from bench.train.recover import Recovery
from bench.train.resuming import last_checkpoint
from methods import label_words
from methods.movement import Unstructured
from methods.smp import SMP, Schedule
from tests.conftest import HANGS, ROOT
from tests.helpers import logits_of
from tests.test_spans import tiny_spans

WORDS = "task.label_words=[a,b]"
SMALL = ["task=mrpc", "model=tiny-random", "latency=none", "ratio=0.7", WORDS]


def still(model):
    """Without dropout."""
    for module in model.module.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    model.module.config.attention_probs_dropout_prob = 0.0
    return model


@pytest.fixture
def prepared(tmp_path):
    """A tiny model, its training of 16 examples in batches of 4, and a calibration set that holds it."""
    model = still(made_up.tiny())
    training = made_up.training(model, tmp_path)
    sample = replace(made_up.calibration([made_up.batch([5, 3])]), training=training)
    return model, training, sample


def effective_gradients(model, training, batch, masks):
    """G = dL/d(mask * W) of every matrix, by plain autograd on a model whose weights are mask * W."""
    plain = model.copy()
    linears = {name: linear for own in plain.matrices().values() for name, linear in own.items()}
    with torch.no_grad():
        for name, linear in linears.items():
            linear.weight.mul_(masks[name])
    for linear in linears.values():
        linear.weight.requires_grad_(True)
    plain.module.train()
    loss = training.task_loss(plain.module, batch)
    return dict(zip(linears, torch.autograd.grad(loss, [linear.weight for linear in linears.values()]), strict=True))


def adam(gradients, state, step, rate):
    """Decoupled Adam without decay, after clipping to a global norm of 1."""
    norm = torch.sqrt(sum((g**2).sum() for g in gradients.values()))
    scale = min(1.0, 1.0 / (float(norm) + 1e-6))
    moved = {}
    for name, gradient in gradients.items():
        first, second = state.setdefault(name, [torch.zeros_like(gradient), torch.zeros_like(gradient)])
        first.mul_(0.9).add_(0.1 * scale * gradient)
        second.mul_(0.999).add_(0.001 * (scale * gradient) ** 2)
        moved[name] = -rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return moved


@pytest.mark.parametrize("allocation", ["sigmoid", "local"])
def test_two_steps_of_smp_are_the_formulas(prepared, monkeypatch, allocation):
    """Density and regulariser by the schedule, masks by the allocation, dS = G * W + lambda s(1 - s) / (matrices n_m), Adam."""
    model, training, sample = prepared
    density, method = 0.4, SMP(allocation=allocation, epochs=1.0, lambda_r=400.0)
    seen, chosen = [], []
    keep = SMP.keep

    def spy(self, masked, share):
        seen.append(
            (share, {n: masked.masked(linear).scores.detach().clone() for own in masked.types.values() for n, linear in own.items()})
        )
        keep(self, masked, share)
        chosen.append({n: masked.masked(linear).mask.clone() for own in masked.types.values() for n, linear in own.items()})

    monkeypatch.setattr(SMP, "keep", spy)
    monkeypatch.setattr(SMP, "schedule_of", lambda self, training, density: Schedule(3, 4, 2, 3))
    start = model.copy()
    label_words.install(start, training.base, training.encoder.tokenizer, ["a", "b"])
    weights = {name: linear.weight for own in start.matrices().values() for name, linear in own.items()}
    method.prune(model, sample, Budget.of(model, "weights", 1 - density, 6.0))

    drawn = Drawn(training.examples, 3, 4, 0)
    scores, state = {name: torch.zeros_like(weight) for name, weight in weights.items()}, {}
    for step in range(3):
        share = density + (1 - density) * (1 - step / 2) ** 3 if step < 2 else density
        assert seen[step][0] == pytest.approx(share)
        assert all(torch.allclose(seen[step][1][name], scores[name], atol=1e-6) for name in scores)
        wanted = by_hand(scores, model, share, allocation)
        assert all(torch.equal(chosen[step][name], wanted[name]) for name in scores), f"masks at step {step}"
        batch = collate(training.encoder, [drawn[i] for i in range(4 * step, 4 * step + 4)])
        found = effective_gradients(start, training, batch, wanted)
        strength = 400.0 * (1 - (1 - step / 3) ** 3)
        gradients = {}
        for name, weight in weights.items():
            sigma = scores[name].sigmoid()
            gradients[name] = found[name] * weight + strength * sigma * (1 - sigma) / (len(weights) * weight.numel())
        moved = adam(gradients, state, step + 1, 2e-2 * (3 - step) / 3)
        scores = {name: scores[name] + moved[name] for name in scores}
    assert all(torch.allclose(seen[3][1][name], scores[name], atol=1e-6) for name in scores), "the last scores choose the masks"


def by_hand(scores, model, share, allocation):
    """Of every matrix the entries that are at least as high as its k-th highest score."""
    masks = {}
    for own in model.matrices().values():
        means = {name: float(scores[name].sigmoid().mean()) for name in own}
        for name in own:
            part = share if allocation == "local" else share * len(own) * means[name] / sum(means.values())
            count = int(min(part, 1.0) * scores[name].numel() * (1 + 1e-9))
            edge = scores[name].flatten().sort(descending=True).values[count - 1]
            masks[name] = scores[name] >= edge
    return masks


def test_only_scores_change_in_smp(prepared):
    model, _, sample = prepared
    masks = SMP(epochs=2.0).prune(model, sample, Budget.of(model, "weights", 0.5, 6.0))
    fresh = still(made_up.tiny())
    after, before = model.module.state_dict(), fresh.module.state_dict()
    for name in before:
        if name.startswith("bert.encoder"):
            mask = masks.kept.get(name.removesuffix(".weight"))
            wanted = before[name] if mask is None or name.endswith("bias") else before[name] * torch.as_tensor(mask)
            assert torch.equal(after[name], wanted), name


@pytest.mark.parametrize("masking", ["movement", "soft", "magnitude", "l0"])
def test_weights_are_trained_under_masks_but_embeddings_are_not(prepared, masking):
    model, _, sample = prepared
    method = Unstructured(masking=masking, epochs=3.0, learning_rate=1e-3, regularizer=0.0 if masking == "magnitude" else 1.0)
    masks = method.prune(model, sample, Budget.of(model, "weights", 0.5, 6.0))
    before = still(made_up.tiny()).module.state_dict()
    after = model.module.state_dict()
    name = next(iter(masks.kept))
    kept = torch.as_tensor(masks.kept[name])
    assert not torch.allclose(after[f"{name}.weight"][kept], before[f"{name}.weight"][kept], atol=1e-5)
    assert not after[f"{name}.weight"][~kept].any()
    assert all(torch.equal(after[key], before[key]) for key in before if ".embeddings." in key)
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])


def test_micro_batches_make_the_same_update(tmp_path):
    """Without dropout, two micro-batches an update give the masks of one."""
    found = []
    for accumulate in (1, 2):
        model = still(made_up.tiny())
        (tmp_path / str(accumulate)).mkdir()
        training = replace(made_up.training(model, tmp_path / str(accumulate)), accumulate=accumulate)
        sample = replace(made_up.calibration([made_up.batch([5, 3])]), training=training)
        found.append(SMP(epochs=2.0).prune(model, sample, Budget.of(model, "weights", 0.5, 6.0)).kept)
    agree = np.mean([np.mean(found[0][name] == found[1][name]) for name in found[0]])
    assert agree > 0.99


def test_mixed_precision_ends_with_the_training(tmp_path):
    """accelerate leaves an autocast around the forward pass, in which scores would be bfloat16's, and speed too."""
    model = still(made_up.tiny(dtype=torch.float32))
    training = replace(made_up.training(model, tmp_path), bf16=True)
    sample = replace(made_up.calibration([made_up.batch([5, 3])]), training=training)
    SMP(epochs=2.0).prune(model, sample, Budget.of(model, "weights", 0.5, 6.0))
    one = made_up.batch([6, 4])
    found = model(one)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(one)
    assert not torch.equal(found, rounded.float())
    assert torch.allclose(found, model.copy()(one), atol=0)
    assert torch.allclose(found, model.forward(one), atol=1e-5)
    assert "forward" not in vars(model.module)


def test_examples_come_in_batches_of_similar_length_each_once_an_epoch():
    lengths = np.random.default_rng(0).integers(3, 40, 100)
    examples = [{"input_ids": [0] * n, "row": i} for i, n in enumerate(lengths)]
    drawn = Drawn(examples, 20, 10, 3)
    assert len(drawn) == 200
    first = [drawn[i]["row"] for i in range(100)]
    assert sorted(first) == list(range(100))
    assert first != [drawn[i]["row"] for i in range(100, 200)]
    spread = [np.ptp([len(drawn[i]["input_ids"]) for i in range(10 * b, 10 * b + 10)]) for b in range(10)]
    assert np.mean(spread) < 8
    assert [Drawn(examples, 20, 10, 3)[i]["row"] for i in range(200)] == [drawn[i]["row"] for i in range(200)]


def test_half_a_checkpoint_is_not_taken_for_one(tmp_path):
    for step, state in ((50, "{}"), (100, "{"), (150, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-50")
    assert not (tmp_path / "checkpoint-150").exists()
    assert last_checkpoint(tmp_path / "none") is None


def environment(shared, tmp_path, **more):
    own = {
        "BENCH_DATA": shared / "data",
        "BENCH_CACHE": tmp_path / "cache",
        "BENCH_RESULTS": tmp_path / "results",
        "PYTHONPATH": ROOT,
    }
    return {**os.environ, **{name: str(value) for name, value in own.items()}, **more}


def the_record(folder):
    (file,) = folder.rglob("record.json")
    return json.loads(file.read_text())


LONG = [sys.executable, "-m", "bench", "method=smp", "method.epochs=150", *SMALL]


@pytest.fixture(scope="module")
def uninterrupted(shared, tmp_path_factory):
    """The record of a training of 300 updates."""
    folder = tmp_path_factory.mktemp("whole")
    done = subprocess.run(LONG, env=environment(shared, folder), cwd=folder, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    return the_record(folder / "results")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_training_ends_with_the_same_masks(shared, uninterrupted, tmp_path, how):
    env = environment(shared, tmp_path / "cut")
    running = subprocess.Popen(LONG, env=env, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    work = tmp_path / "cut" / "cache" / "training"
    limit = time.monotonic() + HANGS
    while not list(work.glob("*/1/checkpoint-*/trainer_state.json")) and time.monotonic() < limit:
        time.sleep(0.02)
    running.send_signal(how)
    assert running.wait(HANGS) != 0
    assert not list((tmp_path / "cut").rglob("record.json"))
    done = subprocess.run(LONG, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    first, second = uninterrupted, the_record(tmp_path / "cut" / "results")
    assert second["prune"]["stages"]["interrupted"] > 0, "it began anew"
    assert second["prune"]["seconds"] > second["prune"]["stages"]["interrupted"]
    assert first["id"] == second["id"]
    assert first["pruned"]["mask_sha256"] == second["pruned"]["mask_sha256"]
    assert first["pruned"]["score"] == second["pruned"]["score"]
    assert not list(work.iterdir()), "what is not needed any more is kept"


def test_two_processes_train_together_and_leave_one_record(shared, tmp_path):
    together = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29617", "-m", "bench"]
    env = environment(shared, tmp_path)
    done = subprocess.run(
        [*together, "method=movement", "method.epochs=5", "threads=1", *SMALL[:-1]],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stderr
    record = the_record(tmp_path / "results")
    assert record["status"] == "ok"
    assert record["pruned"]["weights_kept"] == pytest.approx(0.3, abs=0.002)
    refused = subprocess.run(
        [*together, "method=random", "threads=1", *SMALL[:-1]], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert refused.returncode == 1
    assert "random does not train: run it in one process" in refused.stderr


def test_distillation_is_the_softened_divergence_from_the_teacher():
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    wanted = 4 * (p * (p / q).log()).sum(-1).mean()
    classes, t = KINDS["classification"], losses.TEMPERATURE
    assert float(classes.divergence(student, teacher, t).mean()) == pytest.approx(float(wanted), abs=1e-6)
    both = losses.objective(student, labels, teacher, classes)
    assert both == pytest.approx(float(0.5 * F.cross_entropy(student, labels) + 0.5 * wanted), abs=1e-6)
    starts, ends = torch.randn(2, 7), torch.randn(2, 7)
    spans = KINDS["span"].divergence(torch.stack([starts, ends], -1), torch.stack([ends, starts], -1), t).mean()
    one, other = (classes.divergence(*pair, t).mean() for pair in ((starts, ends), (ends, starts)))
    assert float(spans) == pytest.approx(float((one + other) / 2), abs=1e-6)
    assert KINDS["regression"].divergence(torch.ones(4, 1), torch.zeros(4, 1), t).mean() == 1


def masked_language_model(family, tmp_path):
    """A base with a masked-language-model head, of random weights, and the same encoder as a classifier."""
    model = made_up.tiny(family, dtype=torch.float32)
    config = model.module.config
    torch.manual_seed(1)
    base = AutoModelForMaskedLM.from_config(config, attn_implementation="eager" if family == "mpnet" else "sdpa").eval()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.normal_(0, 0.3)
    encoder = model.arch.layers.split(".")[0]
    model.module.get_submodule(encoder).load_state_dict(base.get_submodule(encoder).state_dict(), strict=False)
    base.save_pretrained(tmp_path / "language")
    return model, base


@pytest.mark.parametrize("family", made_up.FAMILIES)
def test_a_classifier_of_words_is_the_masked_language_models_head(family, tmp_path):
    """Where the base has one: its logits of the words at the first token, and piece by piece the same."""
    model, base = masked_language_model(family, tmp_path)
    tokenizer = made_up.training(model, tmp_path).encoder.tokenizer
    assert label_words.install(model, tmp_path / "language", tokenizer, ["c", "d"])
    ids = label_words.tokens(tokenizer, ["c", "d"], 2)
    one = made_up.batch([6, 4, 5])
    wanted = base(input_ids=one["input_ids"], attention_mask=one["attention_mask"]).logits[:, 0, ids]
    assert torch.allclose(model(one), wanted, atol=1e-4)
    assert torch.allclose(model.forward(one), wanted, atol=1e-4)
    assert word_head.found(model.module, model.arch) is True


@pytest.mark.parametrize("family", made_up.FAMILIES)
def test_without_such_a_head_it_is_the_inner_product_with_the_words(family, tmp_path):
    model = made_up.tiny(family, dtype=torch.float32)
    training = made_up.training(model, tmp_path)
    encoder = getattr(model.module, model.arch.layers.split(".")[0])
    assert not label_words.install(model, training.base, training.encoder.tokenizer, ["c", "d"])
    one = made_up.batch([6, 4, 5])
    hidden = encoder(input_ids=one["input_ids"], attention_mask=one["attention_mask"]).last_hidden_state[:, 0]
    ids = label_words.tokens(training.encoder.tokenizer, ["c", "d"], 2)
    rows = model.module.get_submodule(model.arch.embeddings).word_embeddings.weight[ids]
    assert torch.allclose(model(one), hidden @ rows.T, atol=1e-5)
    assert torch.allclose(model.forward(one), hidden @ rows.T, atol=1e-5)


@pytest.mark.parametrize("family", made_up.FAMILIES)
def test_of_questions_every_token_is_compared_with_the_two_words(family, tmp_path):
    model = tiny_spans(family, dtype=torch.float32)
    training = made_up.training(model, tmp_path)
    assert not label_words.install(model, training.base, training.encoder.tokenizer, ["c", "d"])
    one = made_up.batch([6, 4, 5])
    encoder = getattr(model.module, model.arch.layers.split(".")[0])
    hidden = encoder(input_ids=one["input_ids"], attention_mask=one["attention_mask"]).last_hidden_state
    ids = label_words.tokens(training.encoder.tokenizer, ["c", "d"], 2)
    wanted = hidden @ model.module.get_submodule(model.arch.embeddings).word_embeddings.weight[ids].T
    real = one["attention_mask"].bool()
    assert torch.allclose(model(one)[real], wanted[real], atol=1e-5)
    assert torch.allclose(model.forward(one)[real], wanted[real], atol=1e-5)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (None, "has no label_words"),
        (["a"], "2 different words are needed"),
        (["a", "a"], "2 different words are needed"),
        (["ab", "c"], "label word 'ab' is no single token"),
    ],
)
def test_words_that_do_not_do_are_told_before_any_training(words, told, prepared):
    _, training, _ = prepared
    with pytest.raises(Skip, match=told):
        label_words.tokens(training.encoder.tokenizer, words, 2)


def test_a_published_schedule_is_used_where_there_is_one_for_the_density(prepared):
    _, training, _ = prepared
    made = {name: replace(training, task_name=name) for name in ("mrpc", "mnli", "squad", "unknown")}
    for one in made.values():
        one.steps = lambda epochs, batch: {12: 73_632, 60: 6_900, 10: 27_670, 20: 55_340}[epochs]
    method = SMP(schedule="paper")
    assert method.schedule_of(made["mrpc"], 0.8) == Schedule(6_900, 32, 3_500, 6_900)
    assert method.schedule_of(made["mrpc"], 0.7).ramp == 5_250
    assert method.schedule_of(made["mnli"], 0.1) == Schedule(73_632, 64, 43_632, 73_632)
    assert method.schedule_of(made["squad"], 0.03) == Schedule(55_340, 32, 22_650, 27_660)
    assert method.schedule_of(made["squad"], 0.1).ramp == 22_670
    for name, density in (("mrpc", 0.1), ("mnli", 0.9), ("unknown", 0.5)):
        with pytest.raises(Skip, match="schedule=paper"):
            method.schedule_of(made[name], density)


@pytest.mark.parametrize("family", made_up.FAMILIES)
def test_a_shrunk_model_grows_back(family):
    """What is trained in the small model stands in the full one, under masks without factors; an empty sub-layer too."""
    model = made_up.tiny(family)
    random = np.random.default_rng(0)
    masks = Masks(random.random((3, 4)).round(1) * (random.random((3, 4)) > 0.4), (random.random((3, 40)) > 0.5).astype(float))
    masks.heads[1], masks.neurons[2] = 0, 0
    small = shrink(model, masks)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    plain = grow(model, masks, small)
    assert set(np.unique(plain.heads)) <= {0.0, 1.0}
    one = made_up.batch([7, 3, 5])
    with model.masked(model.columns(plain)):
        assert torch.allclose(model(one), logits_of(small, one), atol=1e-9)
    assert mask_error(model, plain, shrink(model, plain), [one]) < 1e-9
    assert torch.allclose(model(one), logits_of(small, one), atol=1e-9), "pruned units are dead without any mask"


def test_retraining_is_part_of_the_cost_and_of_the_meaning(bench, tmp_path):
    words = ["method=magnitude", "task=mrpc", "model=tiny-random", "latency=none", "ratio=0.5"]
    for more in ([], ["recover.epochs=2"], ["recover.epochs=4", "recover.rounds=2", "recover.distil=true"]):
        done = bench(*words, *more)
        assert done.returncode == 0, done.stderr
    found = [json.loads(file.read_text()) for file in (tmp_path / "results").rglob("record.json")]
    assert len({record["id"] for record in found}) == 3
    by = {json.dumps(record["recover"]): record for record in found}
    rounds = by[json.dumps({"epochs": 4.0, "distil": True, "rounds": 2})]
    assert rounds["prune"]["stages"]["retrain"] > 0
    assert "retrain" not in by["null"]["prune"]["stages"]
    assert all(record["status"] == "ok" and record["pruned"]["flops_kept"] <= 0.5 for record in found)
    assert "magnitude + 4 epochs distilled in 2 rounds" in bench("results", module="bench.show").stdout


def test_a_saved_model_of_single_weights_comes_back_with_its_masks(bench, tmp_path):
    done = bench("method=smp", *SMALL, "save=saved")
    assert done.returncode == 0, done.stderr
    saved = checkpoint.read(tmp_path / "saved")
    record = saved.record()
    masks = checkpoint.weight_masks(saved)
    assert masks.sha256() == record["pruned"]["mask_sha256"]
    assert masks.share == record["pruned"]["weights_kept"]
    model = checkpoint.load(tmp_path / "saved")
    for name, mask in masks.kept.items():
        assert not model.get_submodule(name).weight[~torch.as_tensor(mask)].any()
    (tmp_path / "saved" / "weight_masks.safetensors").write_bytes(b"x")
    assert "weight_masks.safetensors is damaged" in bench("saved", module="bench.measure").stderr


def test_units_and_methods_that_do_not_fit_are_told_at_once(bench):
    assert "smp removes single weights, leave unit= out" in bench("method=smp", *SMALL, "unit=flops").stderr
    assert "smp removes weights" in bench("method=smp", *SMALL, "recover.epochs=1").stderr
    assert bench("method=magnitude", *SMALL[:-1], "unit=weights").returncode == 0


def test_a_task_without_label_words_is_skipped(bench):
    done = bench("method=smp", *SMALL[:-1], "task.label_words=[several tokens, b]")
    assert done.returncode == 0
    assert "label word 'several tokens' is no single token" in done.stdout


def test_a_batch_that_cannot_be_shared_evenly_is_told_at_once(bench):
    assert "accumulate=3: it has to divide the batch of 32" in bench("method=movement", *SMALL, "accumulate=3").stderr
    done = bench("method=magnitude", *SMALL[:-1], env={"WORLD_SIZE": "2"})
    assert "magnitude does not train: run it in one process" in done.stderr


def test_an_unlabelled_train_split_is_enough_for_methods_without_labels(bench, shared, tmp_path):
    """The dense model is there; what needs labels is skipped with the reason, the others run."""
    first = bench("method=dense", *SMALL[:-1], "ratio=0")
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "data" / "mrpc"
    folder.mkdir(parents=True)
    table = pq.read_table(shared / "data" / "mrpc" / "train.parquet")
    empty = table.set_column(2, "label", pa.array([None] * len(table), pa.int64()))
    pq.write_table(empty, folder / "train.parquet")
    pq.write_table(pq.read_table(shared / "data" / "mrpc" / "validation.parquet"), folder / "validation.parquet")
    there = {"BENCH_DATA": str(tmp_path / "data")}
    source = json.loads(next((tmp_path / "results").glob("*/*/record.json")).read_text())["dense"]["checkpoint"]["source"]
    (tuned,) = (shared / "cache" / "tuned").glob(f"{source.removeprefix('tuned:')}*")
    for words, status in (("method=kprune", "ok"), ("method=kwon", "skipped"), ("method=kprune recover.epochs=1", "skipped")):
        done = bench(*words.split(), *SMALL[:-1], f"model.path={tuned}", env=there)
        assert done.returncode == 0, done.stderr
        newest = max((tmp_path / "results").glob("*/*/record.json"), key=lambda path: path.stat().st_mtime_ns)
        record = json.loads(newest.read_text())
        assert record["status"] == status, record["reason"]
        assert status == "ok" or "needs labels, and train has none" in record["reason"]
    assert "no dense checkpoint" in bench("method=kprune", *SMALL[:-1], "task.tuning.epochs=9", env=there).stderr


@pytest.mark.parametrize(("epochs", "rounds", "shares"), [(1.0, 3, [1, 1, 2]), (2.0, 2, [4, 4]), (0.5, 2, [1, 1])])
def test_rounds_share_the_updates_of_all_epochs(tmp_path, monkeypatch, epochs, rounds, shares):
    model = made_up.tiny(dtype=torch.float32)
    training = made_up.training(model, tmp_path)  # 16 texts, batches of 4
    steps = []
    monkeypatch.setattr(type(training), "fit", lambda self, module, plan, distil: steps.append(plan.steps))
    recovery = Recovery(Recover(epochs, False, rounds), training)
    recovery.prune(model, Budget.of(model, "flops", 0.5, 6.0), lambda budget: Masks.ones(model.shape))
    assert steps == shares


def test_more_rounds_than_updates_are_a_reason_to_skip(tmp_path):
    model = made_up.tiny(dtype=torch.float32)
    recovery = Recovery(Recover(1.0, False, 5), made_up.training(model, tmp_path))
    with pytest.raises(Skip, match=r"recover.rounds=5: 1 epochs have 4 updates"):
        recovery.prune(model, Budget.of(model, "flops", 0.5, 6.0), lambda budget: Masks.ones(model.shape))


def test_rounds_that_want_back_what_is_gone_say_so(bench, tmp_path):
    done = bench("method=random", *SMALL[:-1], "recover.epochs=2", "recover.rounds=3")
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "results").glob("*/*/record.json")
    assert any("its units were gone before" in note for note in json.loads(file.read_text())["prune"]["notes"])
