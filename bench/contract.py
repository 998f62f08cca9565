"""What every pruning method has to keep to, ours or anybody's: `check_method` tries it on a small random model.

In the spirit of scikit-learn's check_estimator. Needs no data, no hub and a few seconds, says what it tries, and ends with `passed`:

    from bench.contract import check_method
    check_method(lambda: MyMethod(strength=2.0))
"""

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.budget import Budget, Price, Scores
from bench.calibration import Calibration
from bench.errors import first_line
from bench.machine import hush, repeatable
from bench.made_up import LENGTH, batch, calibration, plant_duplicates, span_batch, tiny, training, windows
from bench.masks import Masks, Shape, WeightMasks
from bench.method import Method, Scorer, Skip
from bench.model import PrunableModel
from bench.nn.bf16 import bf16_layers
from bench.nn.shrink import mask_error, shrink, zeroed
from bench.stages import say

TWICE = (0.5, 0.2)  # at these a method runs twice; they come first, before it could keep anything of an earlier run
RATIOS = (*TWICE, 0.0, 0.1, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95)
DIFFER = "differ between two equal runs: randomness comes from calibration.generator alone, and nothing is kept of an earlier run"

Make = Callable[[], Method]


@dataclass(frozen=True)
class Case:
    """One situation of the contract: how much is removed in what unit, of what kind of task, and how it is computed."""

    ratio: float
    kind: str = "classification"
    unit: str = "flops"
    precision: str = "fp32"

    def __str__(self) -> str:
        usual = Case(self.ratio)
        told = [getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != getattr(usual, one.name)]
        return ", ".join([f"at ratio {self.ratio:g}", *told])

    def budget(self, model: PrunableModel) -> Budget:
        """In seconds the first units of a sub-layer cost more, as on a machine."""
        if self.unit == "latency":
            return Budget.of_kinds(model.shape, Price(1.0, 1.5, 1), Price(0.1, 0.6, 4), self.ratio, self.unit)
        return Budget.of(model, self.unit, self.ratio, LENGTH)


def steps(method: Method, unit: str) -> dict[str, list[Case]]:
    """What a method is tried in, by what is told of it; one that trains in less."""
    if method.training:
        return {kind: [Case(ratio, kind, unit) for ratio in (0.5, 0.0)] for kind in ("classification", "regression")}
    found = {
        "classification at all ratios": [Case(ratio, unit=unit) for ratio in RATIOS],
        "regression": [Case(ratio, "regression", unit) for ratio in (*TWICE, 0.0, 0.9)],
        "spans": [Case(0.5, "span", unit)],
        "embeddings": [Case(0.5, "embedding", unit)],
        "a decoder": [Case(0.5, "language", unit)],
        "bf16": [Case(0.5, unit=unit, precision="bf16")],
    }
    if unit == "flops":
        found["parameters and seconds"] = [Case(0.5, unit="params"), Case(0.5, unit="latency"), Case(0.9, unit="latency")]
    return found


def check_method(make: Make, device: str = "cpu", unit: str = "flops") -> None:
    """Everything that holds for any method; `make` gives a new method object each time, `unit` is what its YAML's `_unit_` says,
    where it says so. A method that trains is given 16 short texts. What is tried is said on stderr; the last line is `passed`.

    Raises:
        AssertionError: one sentence for what does not hold.
    """
    assert callable(make), "check_method takes what makes a method, a class or a function, not a method object"
    method = make()
    assert isinstance(method, Method), f"what check_method is given makes {_kind(method)}, not a bench.method.Method"
    hush()
    if isinstance(method, Scorer):
        _step("score", method)
        check_score(make, device)
    skips: list[str | None] = []
    for name, cases in steps(method, unit).items():
        _step(name, method)
        skips += [check_run(make, case, device) for case in cases]
    reasons = sorted({reason for reason in skips if reason})
    assert None in skips, f"it skips whatever it is tried in: {reasons[0]}"
    say("passed" + (f"; {len(skips) - skips.count(None)} of {len(skips)} runs skipped: {reasons[0]}" if reasons else ""))


def _step(name: str, method: Method) -> None:
    say(f"check_method {_kind(method)}: {name}")


def _kind(thing: object) -> str:
    return type(thing).__name__


def check_run(make: Make, case: Case, device: str = "cpu") -> str | None:
    """The budget is kept to and used, nothing is left behind, masks and shrunk model agree; at the ratios `TWICE` also: a second run
    gives the same, though the first one's model and data have been spoiled and labels that are hidden have changed.

    Returns the reason where it skips.
    """
    first = _run(make, case, device)
    if case.ratio in TWICE:
        _check_same(case, first, _run(make, case, device, again=True))
    return first if isinstance(first, str) else None


def _check_same(case: Case, first: "_Result | str", second: "_Result | str") -> None:
    if isinstance(first, str) or isinstance(second, str):
        assert type(first) is type(second), f"{case}: skipped in one of two equal runs"
        return
    for name in first.masks:
        assert np.array_equal(first.masks[name], second.masks[name]), f"{case}: {name} {DIFFER}"
    for name, tensor in first.weights.items():
        assert torch.allclose(tensor, second.weights[name], 1e-4, 1e-6), f"{case}: {name} {DIFFER}"


@dataclass(frozen=True)
class _Result:
    """What a run leaves: masks by name, and the model's weights."""

    masks: dict[str, NDArray[Any]]
    weights: dict[str, Tensor]


@contextmanager
def _told(where: str, method: Method) -> Iterator[None]:
    """Whatever is raised within it becomes an AssertionError that says where."""
    try:
        yield
    except (AssertionError, Skip):
        raise
    except Exception as error:
        labels = isinstance(error, KeyError) and error.args == ("labels",) and not method.labels
        hint = "; labels are hidden unless the class says `labels = True`" if labels else ""
        raise AssertionError(f"{where}: {type(error).__name__}: {first_line(error)}{hint}") from error


def _run(make: Make, case: Case, device: str, again: bool = False) -> _Result | str:
    """Run a method, check what it leaves, and spoil what it was given; a string: why it skipped."""
    torch.manual_seed(again)  # of which nothing may depend
    np.random.seed(again)
    method = make()
    family = "llama" if case.kind == "language" else "bert"
    model = tiny(family, dtype=torch.float32, outputs=1 if case.kind == "regression" else 2, kind=case.kind)
    model.module.to(device)
    sample = _sample(case.kind, device, poisoned=again and not method.labels)
    with _told(str(case), method):
        budget = case.budget(model)
        try:
            masks = _prune(method, model, sample, budget, case)
        except Skip as skip:
            return _reason(skip, case)
        result = _checked(case, model, masks, budget, sample, method.layers)
    _spoil(model, sample)
    return result


def _reason(skip: Skip, case: Case) -> str:
    reason = str(skip).strip()
    assert reason, f"{case}: a skip gives a reason"
    return reason


def _prune(method: Method, model: PrunableModel, sample: Calibration, budget: Budget, case: Case) -> Any:
    """What the method returns under the conditions of a run."""
    with _nothing_left_behind(model, str(case)), tempfile.TemporaryDirectory() as folder:
        if method.training:
            sample = replace(sample, training=training(model, Path(folder), case.kind == "regression"))
        seen = (sample if method.labels else sample.without_labels()).of(model)
        with torch.set_grad_enabled(method.gradients), repeatable(str(model.device)), bf16_layers(model, case.precision == "bf16"):
            return method.prune(model, seen.kind.supervised(model, seen) if method.labels else seen, budget)


def _checked(case: Case, model: PrunableModel, masks: Any, budget: Budget, sample: Calibration, layers: bool) -> _Result:
    """Masks that use the budget and no more, and weights that belong to them."""
    assert isinstance(masks, Masks | WeightMasks), f"{case}: prune returns {_kind(masks)}, not Masks"
    cost = budget.cost(masks)
    told = f"{case}: the masks cost {cost / budget.total:.4f} of all units, the budget is {budget.limit / budget.total:.4f}"
    assert budget.fits(cost), told
    dearest = _dearest(model, budget) * (2 if layers else 1)
    assert budget.limit - cost < dearest, f"{told}, which would pay for a whole sub-layer or matrix more"
    assert all(torch.isfinite(p).all() for p in model.module.parameters()), f"{case}: a weight is not finite"
    weights = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    if isinstance(masks, WeightMasks):
        assert all(torch.equal(tensor, weights[name]) for name, tensor in zeroed(model, masks).state_dict().items()), (
            f"{case}: a pruned weight is not zero"
        )
        assert case.ratio > 0 or masks.share == 1, f"{case}: a weight was pruned"
        return _Result(dict(masks.kept), weights)
    masks.check(model.shape)
    assert case.ratio > 0 or masks.heads.all(), f"{case}: a head was pruned"
    assert case.ratio > 0 or masks.neurons.all(), f"{case}: a neuron was pruned"
    assert mask_error(model, masks, shrink(model, masks), sample.batches) < 1e-3, f"{case}: masked and shrunk model differ"
    return _Result({"heads": masks.heads, "neurons": masks.neurons}, weights)


def _dearest(model: PrunableModel, budget: Budget) -> float:
    """The cost of the dearest sub-layer; of single weights, of the largest matrix."""
    if budget.unit == "weights":
        return max(linear.weight.numel() for own in model.matrices().values() for linear in own.values())
    return max(float(price.of(sublayer.units)) for price, sublayer in zip(budget.prices, model.sublayers, strict=True))


@torch.no_grad()
def _spoil(model: PrunableModel, sample: Calibration) -> None:
    """A run is over: whatever still looks at its model or its data finds nothing there."""
    for parameter in model.module.parameters():
        parameter.fill_(torch.nan)
    for one in [*sample.batches, *sample.all_parts]:
        for tensor in one.values():
            tensor.zero_()


def _sample(kind: str = "classification", device: str = "cpu", poisoned: bool = False) -> Calibration:
    """Three small batches, with and without padding (windows of a text have none); poisoned: with other labels."""
    lengths = [[9, 4, 1, 7], [6, 6, 6], [5, 3]]
    if kind == "language":
        made = [windows(len(one), 8, seed) for seed, one in enumerate(lengths)]
    elif kind == "embedding":  # whose texts come in pairs
        made = [batch(one[: len(one) // 2 * 2], seed, classes=2) for seed, one in enumerate(lengths)]
    else:
        make = span_batch if kind == "span" else partial(batch, regression=kind == "regression")
        made = [make(one, seed) for seed, one in enumerate(lengths)]
    batches = [_to(one, device) for one in made]
    if poisoned:
        batches = [one | {"labels": torch.zeros_like(one["labels"])} for one in batches]
    return calibration(batches, kind=kind)


def _to(one: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in one.items()}


def check_score(make: Make, device: str = "cpu") -> None:
    """Scoring does not change the model, gives a finite number for every unit, and the same a second time."""
    try:
        first, second = _scored(make, device), _scored(make, device)
    except Skip:
        return
    for name in ("heads", "neurons"):
        same = np.allclose(getattr(first, name), getattr(second, name), 1e-4, 1e-6)
        assert same, f"score: those of {name} {DIFFER}"


def _scored(make: Make, device: str) -> Scores:
    """The scores of a model and data that are spoiled afterwards."""
    method, model, sample = make(), tiny(dtype=torch.float32), _sample(device=device)
    assert isinstance(method, Scorer)
    model.module.to(device)
    before = copy.deepcopy(model.module.state_dict())
    with _told("score", method), torch.set_grad_enabled(method.gradients), repeatable(device):
        scores = method.score(model, sample if method.labels else sample.without_labels())
    _check_scores(scores, model.shape)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items()), "scoring changes the model"
    scores = copy.deepcopy(scores)
    _spoil(model, sample)
    return scores


def _check_scores(scores: object, shape: Shape) -> None:
    sizes = [(shape.layers, shape.heads), (shape.layers, shape.neurons)]
    wanted = "score has to return Scores(heads, neurons), arrays of finite numbers with shapes {} and {}".format(*sizes)
    assert isinstance(scores, Scores), f"{wanted}, not {_kind(scores)}"
    try:
        scores.check(shape)
    except Exception as error:
        raise AssertionError(f"{wanted}: {first_line(error)}") from None


@contextmanager
def _nothing_left_behind(model: PrunableModel, where: str) -> Iterator[None]:
    """No hook, mode, gradient or global switch is left as it was not."""
    grad, dtype, threads = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    yield
    modules = list(model.module.modules())
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks = [len(getattr(module, name)) for module in modules for name in kinds]
    assert not any(hooks), f"{where}: a hook is left on the model"
    assert not any(module.training for module in modules), f"{where}: the model is left in training mode"
    assert not any("forward" in vars(module) for module in modules), f"{where}: a module's forward pass is left replaced"
    assert not any(p.requires_grad or p.grad is not None for p in model.module.parameters()), f"{where}: weights ask for gradients"
    assert torch.is_grad_enabled() == grad, f"{where}: gradients are left switched"
    assert torch.get_default_dtype() == dtype, f"{where}: the default dtype is left changed"
    assert torch.get_num_threads() == threads, f"{where}: the number of threads is left changed"


def kept_of_duplicates(make: Make, ratio: float = 0.4) -> float | None:
    """Of the pairs of equal neurons from which a method keeps any, the share from which it keeps one; None: skipped."""
    method, model = make(), tiny()
    plant_duplicates(model)
    sample = _sample()
    try:
        with torch.set_grad_enabled(method.gradients):
            masks = method.prune(model, sample, Budget.of(model, "flops", ratio, LENGTH))
    except Skip:
        return None
    assert isinstance(masks, Masks), "single weights have no duplicates"
    half = model.shape.neurons // 2
    both = (masks.neurons[:, :half] != 0).astype(int) + (masks.neurons[:, half : 2 * half] != 0)
    return float((both == 1).sum() / max(1, (both > 0).sum()))
