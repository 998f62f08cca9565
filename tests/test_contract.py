"""Every method by the contract that strangers' methods can be checked by, dead units, duplicates, poisoned data."""

import importlib
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf

from bench import contract, data, pruning, store
from bench.budget import Budget, Scores
from bench.calibration import draw
from bench.config import CalibrationPlan, Task
from bench.files import CONF
from bench.masks import Masks, WeightMasks
from bench.method import Method, Scorer, Skip
from tests.conftest import write_task

METHODS = sorted({path.stem for path in (CONF / "method").glob("*.yaml")} - {"replay"})  # which needs a record

# Methods whose score of a dead unit is not zero, or that do not rank all units, and why.
NOT_ZERO = {
    "dense": "prunes nothing",
    "random": "its scores know nothing of the model",
    "tp-random": "its scores know nothing of the model",
    "flap": "scores are standardised within a sub-layer, so the lowest of two sub-layers differ",
    "tp-fpgm": "a distance to all other units, large for a unit at the origin",
    "kcm": "heads stay",
    "kcm-r2": "heads stay, and a unit at the origin represents itself",
    "kcm-d2": "heads stay",
}


UNITS = {name: OmegaConf.load(CONF / "method" / f"{name}.yaml").get("_unit_", "flops") for name in METHODS}
WHOLE = [name for name, unit in UNITS.items() if unit == "flops"]  # methods that remove heads and neurons


def maker(name: str) -> Callable[[], Method]:
    fields = OmegaConf.to_container(OmegaConf.load(CONF / "method" / f"{name}.yaml"), resolve=True)
    fields.pop("_unit_", None)
    module, _, cls = fields.pop("_target_").rpartition(".")
    return lambda: getattr(importlib.import_module(module), cls)(**fields)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_the_contract(name):
    contract.check_method(maker(name), unit=UNITS[name])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_the_contract_on_a_gpu(name):
    contract.check_method(maker(name), "cuda", UNITS[name])


def waits(make: Callable[[], Method], batches: int) -> int:
    """How often a GPU is waited for while a method prunes with so many batches, all alike."""
    model, method = contract.tiny(dtype=torch.float32), make()
    model.module.to("cuda")
    one = {name: tensor.to("cuda") for name, tensor in contract.batch([9, 4, 1, 7]).items()}
    sample = contract.calibration([one] * batches)
    budget = Budget.of(model.shape, "flops", 0.5, contract.LENGTH)
    with warnings.catch_warnings(record=True) as told, torch.set_grad_enabled(method.gradients):
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            method.prune(model, sample if method.labels else sample.without_labels(), budget)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in told)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", WHOLE)
def test_a_gpu_is_not_waited_for_batch_by_batch(name):
    few, more = (waits(maker(name), batches) for batches in (6, 18))
    assert more - few < 12, f"{few} waits with 6 batches, {more} with 18"


@pytest.mark.parametrize("name", [name for name in WHOLE if name not in NOT_ZERO])
def test_dead_units_go_first_and_the_logits_stay(name):
    """A quarter of the heads and of the neurons of every sub-layer is dead; a quarter of the cost is what has to go."""
    model = contract.tiny()
    alive = contract.plant_dead(model, heads=1, neurons=10)
    sample = contract.calibration([contract.batch([9, 4, 1, 7], 0), contract.batch([6, 6, 6], 1)])
    before = [model(one) for one in sample.batches]
    method = maker(name)()
    with torch.set_grad_enabled(method.gradients):
        masks = method.prune(model, sample, Budget.of(model.shape, "flops", 0.25, contract.LENGTH))
    assert np.array_equal(masks.heads != 0, alive.heads != 0)
    assert np.array_equal(masks.neurons != 0, alive.neurons != 0)
    with model.masked(model.columns(masks)):
        for one, wanted in zip(sample.batches, before, strict=True):
            assert torch.allclose(model(one), wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["kcm", "kcm-d2"])
def test_kcm_takes_the_dead_neurons_first(name):
    model = contract.tiny()
    alive = contract.plant_dead(model, heads=0, neurons=10)
    sample = contract.calibration([contract.batch([9, 4, 1, 7], 0), contract.batch([6, 6, 6], 1)])
    ratio = model.shape.layers * 10 * Budget.of(model.shape, "flops", 0, 6.0).neuron / Budget.of(model.shape, "flops", 0, 6.0).total
    with torch.no_grad():
        masks = maker(name)().prune(model, sample, Budget.of(model.shape, "flops", ratio, 6.0))
    assert np.array_equal(masks.neurons != 0, alive.neurons != 0)
    assert masks.heads.all()


def test_duplicates_are_reported_for_every_method():
    shares = {name: contract.kept_of_duplicates(maker(name)) for name in WHOLE}
    assert shares["dense"] is None
    assert all(share is None or 0 <= share <= 1 for share in shares.values())
    # as docs/methods.md tells: only what looks at units together, or at nothing, tells equal units apart
    assert shares["kprune"] == shares["magnitude"] == shares["taylor"] == 0
    assert shares["kwon"] > 0.15 > shares["kwon-no-rearrangement"]
    assert shares["random"] > 0.4


TASK = Task(["sentence1", "sentence2"], ["no", "yes"], ["accuracy"], "accuracy", 10.0, 32)


class Characters:
    """An encoder that needs no checkpoint: one token for every letter."""

    hidden = 8

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return len(self.split)

    def labels(self, rows):
        return self.split.labels[rows]

    def encode(self, rows):
        texts = [[column[row] for row in rows] for column in self.split.texts]
        ids = [[2 + ord(letter) % 50 for letter in " ".join(parts)][:20] for parts in zip(*texts, strict=True)]
        return [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids]

    def batch(self, examples, labels, device):
        longest = max(len(example["input_ids"]) for example in examples)
        padded = {
            name: torch.tensor([example[name] + [0] * (longest - len(example[name])) for example in examples])
            for name in ("input_ids", "attention_mask")
        }
        return padded | ({} if labels is None else {"labels": torch.as_tensor(labels)})


@pytest.mark.parametrize("name", METHODS)
def test_a_method_sees_neither_evaluation_data_nor_labels_that_it_did_not_ask_for(name, tmp_path, monkeypatch):
    """The masks stay the same when validation is poisoned, and labels are not in what is handed over."""
    found = []
    for poison in (False, True):
        write_task(tmp_path / str(poison) / "pairs", rows=40)
        if poison:
            file = tmp_path / str(poison) / "pairs" / "validation.parquet"
            table = pq.read_table(file)
            pq.write_table(table.set_column(2, "label", [[1 - label for label in table["label"].to_pylist()]]).slice(3), file)
        monkeypatch.setenv("BENCH_DATA", str(tmp_path / str(poison)))
        splits = data.load("pairs", TASK)
        sample = draw(CalibrationPlan("tokens", 400, None, 8), TASK, Characters(splits.train), Characters(splits.train), 0, "cpu")
        assert splits.validation.texts[0][0] not in splits.train.texts[0]
        method = maker(name)()
        seen = sample if method.labels else sample.without_labels()
        assert seen.training is None
        assert method.labels or not any("labels" in one for one in seen.batches)
        model = contract.tiny(dtype=torch.float32)
        ratio = 0.0 if name == "dense" else 0.3
        if method.training:
            (tmp_path / name / str(poison)).mkdir(parents=True)
            own = contract.training(model, tmp_path / name / str(poison))
            sample = replace(sample, training=replace(own, train=Characters(splits.train)))
        pruned = pruning.prune(method, model, sample, Budget.of(model.shape, UNITS[name], ratio, 10.0))
        found.append({"heads": pruned.masks.heads, "neurons": pruned.masks.neurons, **(pruned.weights.kept if pruned.weights else {})})
    assert all(np.array_equal(found[0][mask], found[1][mask]) for mask in found[0])
    json.dumps(found[0]["heads"].tolist(), allow_nan=False)


@pytest.mark.parametrize("name", ["kwon", "smp"])
def test_a_run_prunes_the_same_whatever_evaluation_data_say(name, bench, shared, tmp_path):
    """The whole command, with validation as it is and with other texts and labels: only the scores may differ."""
    folder = tmp_path / "poisoned" / "mrpc"
    write_task(folder, seed=5)
    shutil.copy(shared / "data" / "mrpc" / "train.parquet", folder)
    masks, seen = [], set()
    for env in ({}, {"BENCH_DATA": str(tmp_path / "poisoned")}):
        words = ["task=mrpc", "model=tiny-random", "latency=none", "ratio=0.5", "task.label_words=[a,b]"]
        done = bench(f"method={name}", *words, "rerun=true", env={**env, "BENCH_RESULTS": str(tmp_path / f"results{len(masks)}")})
        assert done.returncode == 0, done.stderr
        (entry,) = store.load(tmp_path / f"results{len(masks)}").records
        pruned, arrays = entry.record["pruned"], entry.arrays()
        masks.append((arrays["heads"].tolist(), arrays["neurons"].tolist(), pruned["mask_sha256"], entry.record["calibration"]["sha256"]))
        seen.add(entry.record["data"]["validation"])
    assert masks[0] == masks[1]
    assert len(seen) == 2


class Sloppy(Method):
    """Breaks one rule of the contract."""

    gradients = True

    def __init__(self, how: str) -> None:
        self.how, self.notes = how, []

    def prune(self, model, calibration, budget):
        masks = Masks.ones(model.shape)
        if budget.ratio > 0:
            masks.heads[:], masks.neurons[:] = 0, 0
        if self.how == "budget":
            return Masks.ones(model.shape)
        if self.how == "hook":
            model.projection(0).register_forward_pre_hook(lambda *_: None)
        if self.how == "mode":
            model.module.train()
        if self.how == "gradient":
            model.projection(0).weight.requires_grad_(True)
        if self.how == "seed" and budget.ratio > 0:
            masks.neurons[0, int(torch.randint(0, 40, ()))] = 1
        if self.how == "nan":
            model.projection(0).weight[:] = torch.nan
        if self.how == "weights":
            model.projection(0).weight += 0.01 * torch.randn_like(model.projection(0).weight)
        if self.how == "backward hook":
            model.projection(0).register_full_backward_pre_hook(lambda *_: None)
        if self.how == "labels":
            assert calibration.batches[0]["labels"] is not None
        if self.how == "crash" and calibration.kind == "regression":
            raise RuntimeError("no regressions")
        if self.how == "single":
            every = [(name, one) for kind in model.matrices().values() for name, one in kind.items()]
            return WeightMasks({name: np.ones(tuple(one.weight.shape), dtype=bool) for name, one in every})
        if self.how == "nothing":
            return None
        if self.how == "skip":
            raise Skip(" ")
        return masks


RULES = {
    "budget": "of all units",
    "hook": "a hook is left",
    "mode": "training mode",
    "gradient": "ask for gradients",
    "seed": "differ between two equal runs",
    "nan": "not finite",
    "weights": "weight differs between two equal runs",
    "backward hook": "a hook is left",
    "labels": r"at ratio 0: KeyError: .labels.; .*`labels = True`",
    "crash": "at ratio 0, regression: RuntimeError: no regressions",
    "single": r"single weights are no flops: .* `_unit_: weights`",
    "skip": "a skip gives a reason",
    "nothing": "prune returns NoneType, not Masks",
}


@pytest.mark.parametrize("how", RULES)
def test_the_contract_notices(how):
    with pytest.raises(AssertionError, match=RULES[how]), torch.no_grad():
        contract.check_method(lambda: Sloppy(how))


def test_the_contract_notices_a_score_that_changes_the_model():
    class Changing(Scorer):
        def score(self, model, calibration):
            model.projection(0).weight.mul_(2)
            return Scores(np.ones((3, 4)), np.ones((3, 40)))

    with pytest.raises(AssertionError, match="scoring changes the model"):
        contract.check_method(Changing)


def test_a_scorer_may_skip_and_no_unit_is_made_up():
    class Picky(Scorer):
        def score(self, model, calibration):
            if calibration.kind != "regression":
                raise Skip("numbers only")
            return Scores(np.ones((3, 4)), np.ones((3, 40)))

    contract.check_method(Picky)
    with pytest.raises(AssertionError, match="unit=wieghts: flops, params or weights"):
        contract.check_method(Picky, unit="wieghts")


def test_check_method_takes_a_class_not_an_object():
    with pytest.raises(AssertionError, match="what makes a method"):
        contract.check_method(maker("random")())


def test_scores_that_are_no_numbers_fail_the_run():
    class Blind(Scorer):
        def score(self, model, calibration):
            return Scores(np.full((3, 4), np.nan), np.ones((3, 40)))

    model = contract.tiny()
    with pytest.raises(ValueError, match="scores: heads holds values that are not finite"):
        Blind().prune(model, contract.calibration([contract.batch([6, 6])]), Budget.of(model.shape, "flops", 0.5, 6.0))


def test_a_random_method_needs_the_calibrations_generator():
    """Another seed gives other masks, the same seed the same."""
    make = maker("random")
    sample = contract.calibration([contract.batch([6, 6])])
    masks = []
    for seed in (0, 0, 1):
        model = contract.tiny()
        own = replace(sample, generator=np.random.default_rng(seed))
        masks.append(make().prune(model, own, Budget.of(model.shape, "flops", 0.5, 6.0)).neurons)
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


@pytest.mark.parametrize("given", [None, (1, 2), [1, 2]])
def test_a_scorer_that_returns_no_scores_is_told_what_to_return(given):
    @dataclass
    class Own(Scorer):
        def score(self, model, calibration):
            return given

    with pytest.raises(AssertionError, match=r"score returns \w+: it has to return bench.budget.Scores\(heads, neurons\), here of shapes"):
        contract.check_method(Own)
