"""Every method by the contract that strangers' methods can be checked by, dead units, duplicates, poisoned data."""

import gc
import hashlib
import importlib
import re
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf

from bench import contract, made_up, pruning
from bench.budget import Budget, Scores
from bench.calibration import Calibration, draw
from bench.config import CalibrationPlan, Task
from bench.files import CONF
from bench.masks import Masks, WeightMasks
from bench.method import Method, Scorer, Skip
from bench.records import store
from bench.tasks import data
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
    "shortgpt": "ranks whole layers",
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
    model, method = made_up.tiny(dtype=torch.float32), make()
    model.module.to("cuda")
    one = {name: tensor.to("cuda") for name, tensor in made_up.batch([9, 4, 1, 7]).items()}
    sample = made_up.calibration([one] * batches)
    budget = Budget.of(model, "flops", 0.5, made_up.LENGTH)
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
    model = made_up.tiny()
    alive = made_up.plant_dead(model, heads=1, neurons=10)
    sample = made_up.calibration([made_up.batch([9, 4, 1, 7], 0), made_up.batch([6, 6, 6], 1)])
    before = [model(one) for one in sample.batches]
    method = maker(name)()
    with torch.set_grad_enabled(method.gradients):
        masks = method.prune(model, sample, Budget.of(model, "flops", 0.25, made_up.LENGTH))
    assert np.array_equal(masks.heads != 0, alive.heads != 0)
    assert np.array_equal(masks.neurons != 0, alive.neurons != 0)
    with model.masked(model.columns(masks)):
        for one, wanted in zip(sample.batches, before, strict=True):
            assert torch.allclose(model(one), wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["kcm", "kcm-d2"])
def test_kcm_takes_the_dead_neurons_first(name):
    model = made_up.tiny()
    alive = made_up.plant_dead(model, heads=0, neurons=10)
    sample = made_up.calibration([made_up.batch([9, 4, 1, 7], 0), made_up.batch([6, 6, 6], 1)])
    ratio = model.shape.layers * 10 * Budget.of(model, "flops", 0, 6.0).neuron / Budget.of(model, "flops", 0, 6.0).total
    with torch.no_grad():
        masks = maker(name)().prune(model, sample, Budget.of(model, "flops", ratio, 6.0))
    assert np.array_equal(masks.neurons != 0, alive.neurons != 0)
    assert masks.heads.all()


DUPLICATES = {  # as docs/methods.md tells: the share of equal pairs of which one is kept; every other method keeps none of these
    **{"dense": None, "random": 0.58, "tp-random": 0.60, "fisher": 0.04, "kwon-no-rearrangement": 0.04, "tp-lamp": 0.05},
    "llm-pruner": 0.04,
    **dict.fromkeys(["kwon", "kwon-no-tuning"], 0.26),
    **dict.fromkeys(["kcm", "kcm-r2", "kcm-d2"], 0.25),
}


@pytest.mark.parametrize("name", WHOLE)
def test_of_equal_neurons_a_method_keeps_what_the_docs_tell(name):
    share, told = contract.kept_of_duplicates(maker(name)), DUPLICATES.get(name, 0.0)
    assert share == told or share == pytest.approx(told, abs=0.006)


@pytest.mark.parametrize(("kept", "share"), [((1, 0), 1.0), ((1, 1), 0.0), ((0, 0), 0.0)])
def test_equal_neurons_are_counted(kept, share):
    class Choosing(Method):
        def prune(self, model, calibration, budget):
            masks = Masks.ones(model.shape)
            masks.neurons[:] = np.repeat(kept, 20)
            return masks

    assert contract.kept_of_duplicates(Choosing) == share


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


class Nosy(Method):
    """Prunes neurons by a digest of every tensor that it is given: whatever reaches `prune` shows in its masks."""

    def prune(self, model, calibration, budget):
        digest = hashlib.sha256()
        for one in [*calibration.batches, *calibration.all_parts]:
            for name in sorted(one):
                digest.update(name.encode() + one[name].numpy().tobytes())
        masks = Masks.ones(model.shape)
        drawn = np.random.default_rng(list(digest.digest())).permutation(masks.neurons.size)
        masks.neurons.ravel()[drawn[:60]] = 0.0
        return masks


class NosyWithLabels(Nosy):
    labels = True


def masks_of(method, folder, monkeypatch):
    """What a method prunes by the data of a folder."""
    monkeypatch.setenv("BENCH_DATA", str(folder))
    splits = data.load("pairs", TASK)
    sample = draw(CalibrationPlan("tokens", 400, None, 8), TASK, Characters(splits.train), Characters(splits.train), 0, "cpu")
    model = made_up.tiny(dtype=torch.float32)
    budget = Budget.of(model, "flops", 0.1, 10.0)
    return pruning.prune(method, model, sample, budget).masks.neurons.tolist()


@pytest.mark.parametrize(
    ("method", "split", "column", "seen"),
    [
        (NosyWithLabels, "validation", "sentence1", False),
        (NosyWithLabels, "validation", "label", False),
        (NosyWithLabels, "train", "label", True),
        (Nosy, "train", "label", False),
        (Nosy, "train", "sentence1", True),
    ],
)
def test_a_method_sees_train_and_labels_only_where_it_asks_for_them(method, split, column, seen, tmp_path, monkeypatch):
    for name in ("clean", "poisoned"):
        write_task(tmp_path / name / "pairs", rows=40)
    file = tmp_path / "poisoned" / "pairs" / f"{split}.parquet"
    table = pq.read_table(file)
    poison = [1 - one if column == "label" else f"{one} poison" for one in table[column].to_pylist()]
    pq.write_table(table.set_column(table.column_names.index(column), column, [poison]), file)
    clean, poisoned = (masks_of(method(), tmp_path / name, monkeypatch) for name in ("clean", "poisoned"))
    assert (clean != poisoned) == seen


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


def from_the_top(shape, budget):
    """Masks without the upper sub-layers, as few as the budget asks for."""
    masks = Masks.ones(shape)
    for sublayer in reversed(range(shape.sublayers)):
        if not budget.fits(budget.cost(masks)):
            masks.of(sublayer)[:] = 0
    return masks


class Sloppy(Method):
    """Breaks one rule of the contract."""

    gradients = True

    def __init__(self, how: str, earlier: dict) -> None:
        self.how, self.notes, self.earlier = how, [], earlier

    def prune(self, model, calibration, budget):
        masks = from_the_top(model.shape, budget)
        if self.how == "budget":
            return Masks.ones(model.shape)
        if self.how == "twice the ratio":
            return from_the_top(model.shape, budget.at(min(1.0, 2 * budget.ratio)))
        if self.how == "everything" and budget.ratio > 0:
            masks.heads[:], masks.neurons[:] = 0, 0
        if self.how == "at nothing" and budget.ratio == 0:
            masks.neurons[0, 0] = 0
        if self.how == "hook":
            model.sublayers[0].projection.register_forward_pre_hook(lambda *_: None)
        if self.how == "mode":
            model.module.train()
        if self.how == "gradient":
            model.sublayers[0].projection.weight.requires_grad_(True)
        if self.how == "seed" and budget.ratio > 0:
            masks.neurons[0, int(torch.randint(0, 40, ()))] = 0
        if self.how == "nan":
            model.sublayers[0].projection.weight[:] = torch.nan
        if self.how == "weights":
            model.sublayers[0].projection.weight += 0.01 * torch.randn_like(model.sublayers[0].projection.weight)
        if self.how == "backward hook":
            model.sublayers[0].projection.register_full_backward_pre_hook(lambda *_: None)
        if self.how == "labels":
            assert calibration.batches[0]["labels"] is not None
        if self.how == "labels of others" and budget.ratio > 0:
            masks.neurons[0, int(hidden_labels(calibration).sum())] = 0
        if self.how == "earlier data":
            batch = self.earlier.setdefault(calibration.kind, calibration.batches[0])
            model.sublayers[0].projection.bias += 0.01 * batch["input_ids"].sum()
        if self.how == "earlier model":
            weight = self.earlier.setdefault(calibration.kind, model.sublayers[0].projection.weight)
            masks.neurons[0, int(weight.nan_to_num().abs().sum()) % 40] *= budget.ratio == 0
        if self.how == "crash" and calibration.kind.name == "regression":
            raise RuntimeError("no regressions")
        if self.how == "single":
            every = [(name, one) for kind in model.matrices().values() for name, one in kind.items()]
            return WeightMasks({name: np.ones(tuple(one.weight.shape), dtype=bool) for name, one in every})
        if self.how == "nothing":
            return None
        if self.how == "skip":
            raise Skip(" ")
        if self.how == "always skips":
            raise Skip("not today")
        return masks


def hidden_labels(calibration):
    """The labels of the sample that this one was made from, found behind the harness's back."""
    found = [thing for thing in gc.get_objects() if isinstance(thing, Calibration) and thing.generator is calibration.generator]
    return next(one.batches[0]["labels"] for one in found if "labels" in one.batches[0])


RULES = {
    "budget": "of all units, the budget is 0.5",
    "everything": "the masks cost 0.0000 of all units, .* would pay for a whole sub-layer",
    "twice the ratio": "would pay for a whole sub-layer",
    "at nothing": "at ratio 0: a neuron was pruned",
    "hook": "a hook is left",
    "mode": "training mode",
    "gradient": "ask for gradients",
    "seed": "differ between two equal runs",
    "nan": "not finite",
    "weights": "weight differ between two equal runs",
    "backward hook": "a hook is left",
    "labels": r"at ratio 0.5: KeyError: .labels.; .*`labels = True`",
    "labels of others": "at ratio 0.5: neurons differ between two equal runs",
    "earlier data": "at ratio 0.5: .*bias differ between two equal runs",
    "earlier model": "at ratio 0.5: neurons differ between two equal runs",
    "crash": "at ratio 0.5, regression: RuntimeError: no regressions",
    "single": r"single weights are no flops: .* `_unit_: weights`",
    "skip": "a skip gives a reason",
    "always skips": "skips whatever it is tried in: not today",
    "nothing": "prune returns NoneType, not Masks",
}


@pytest.mark.parametrize("how", RULES)
def test_the_contract_notices(how):
    earlier = {}
    with pytest.raises(AssertionError, match=RULES[how]), torch.no_grad():
        contract.check_method(lambda: Sloppy(how, earlier))


def test_the_contract_finds_nothing_in_a_method_that_keeps_it(capsys):
    """What the broken ones are made from passes; every step is a plain line, where there is no terminal."""
    begun = time.process_time()
    contract.check_method(lambda: Sloppy("", {}))
    assert time.process_time() - begun < 30
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "check_method Sloppy: classification at all ratios"
    assert lines[-1] == "passed"


UNUSABLE = {
    "None": (None, "not NoneType"),
    "shapes": (Scores(np.ones((4, 3)), np.ones((3, 40))), r"heads has shape \(4, 3\)"),
    "not finite": (Scores(np.ones((3, 4)), np.full((3, 40), np.inf)), "neurons holds values that are not finite"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_the_contract_says_what_score_has_to_return(what):
    class Unusable(Scorer):
        def score(self, model, calibration):
            return UNUSABLE[what][0]

    told = rf"^score has to return Scores\(heads, neurons\), .* \(3, 4\) and \(3, 40\).*{UNUSABLE[what][1]}.*$"
    with pytest.raises(AssertionError, match=told):
        contract.check_method(Unusable)


def test_the_contract_passes_on_what_scores_refuse():
    class Words(Scorer):
        def score(self, model, calibration):
            return Scores("heads", "neurons")

    with pytest.raises(AssertionError, match="heads is no table of numbers but str"):
        contract.check_method(Words)


def test_the_contract_notices_scores_of_earlier_data():
    """A method that keeps what it was given for the runs to come, to save time."""

    class Keeping(Scorer):
        kept = []  # noqa: RUF012

        def score(self, model, calibration):
            self.kept.append(model.sublayers[1].projection.weight)
            return Scores(np.ones((3, 4)), np.ones((3, 1)) * self.kept[0].nan_to_num().abs().sum(0).numpy())

    with pytest.raises(AssertionError, match="score: those of neurons differ"):
        contract.check_method(Keeping)


def test_the_contract_notices_a_score_that_changes_the_model():
    class Changing(Scorer):
        def score(self, model, calibration):
            model.sublayers[0].projection.weight.mul_(2)
            return Scores(np.ones((3, 4)), np.ones((3, 40)))

    with pytest.raises(AssertionError, match="scoring changes the model"):
        contract.check_method(Changing)


def test_a_scorer_may_skip_and_no_unit_is_made_up():
    class Picky(Scorer):
        def score(self, model, calibration):
            if calibration.kind.name != "regression":
                raise Skip("numbers only")
            return Scores(np.ones((3, 4)), np.ones((3, 40)))

    contract.check_method(Picky)
    with pytest.raises(AssertionError, match="unit=wieghts: flops, params or weights"):
        contract.check_method(Picky, unit="wieghts")


DOCS = (Path(__file__).parent.parent / "docs" / "adding.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^`mine/(\w+)\.py`\n\n```python\n(.*?)```$", DOCS, re.MULTILINE | re.DOTALL))


def test_the_docs_examples_are_found():
    assert set(EXAMPLES) == {"early_layers", "from_the_top", "largest_trained"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_the_docs_keeps_the_contract(name, tmp_path, monkeypatch):
    (tmp_path / f"{name}.py").write_text(EXAMPLES[name], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = getattr(importlib.import_module(name), name.title().replace("_", ""))
    contract.check_method(found, unit="weights" if "WeightMasks" in EXAMPLES[name] else "flops")


def test_check_method_takes_a_class_not_an_object():
    with pytest.raises(AssertionError, match="what makes a method"):
        contract.check_method(maker("random")())


def test_scores_that_are_no_numbers_fail_the_run():
    class Blind(Scorer):
        def score(self, model, calibration):
            return Scores(np.full((3, 4), np.nan), np.ones((3, 40)))

    model = made_up.tiny()
    with pytest.raises(ValueError, match="scores: heads holds values that are not finite"):
        Blind().prune(model, made_up.calibration([made_up.batch([6, 6])]), Budget.of(model, "flops", 0.5, 6.0))


def test_a_random_method_needs_the_calibrations_generator():
    """Another seed gives other masks, the same seed the same."""
    make = maker("random")
    sample = made_up.calibration([made_up.batch([6, 6])])
    masks = []
    for seed in (0, 0, 1):
        model = made_up.tiny()
        own = replace(sample, generator=np.random.default_rng(seed))
        masks.append(make().prune(model, own, Budget.of(model, "flops", 0.5, 6.0)).neurons)
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


@pytest.mark.parametrize("given", [None, (1, 2), [1, 2]])
def test_a_scorer_that_returns_no_scores_is_told_what_to_return(given):
    @dataclass
    class Own(Scorer):
        def score(self, model, calibration):
            return given

    with pytest.raises(AssertionError, match=r"has to return (bench.budget.)?Scores"):
        contract.check_method(Own)
