"""What every pruning method has to keep to, ours or anybody's: `check_method` tries it on a small random model.

In the spirit of scikit-learn's check_estimator. Needs no data, no hub and a few seconds:

    from bench.contract import check_method
    check_method(lambda: MyMethod(strength=2.0))
"""

import copy
import string
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor
from transformers import BertTokenizer

from bench.budget import Budget, Price, Scores
from bench.calibration import Calibration, grouped
from bench.config import Arch, ModelTuning, Task, typed
from bench.encoding import Encoded, Encoder, Rows
from bench.errors import first_line
from bench.files import CONF
from bench.half import bf16_layers
from bench.machine import repeatable
from bench.masks import Masks, WeightMasks, by_array, place
from bench.method import Method, Scorer, Skip
from bench.model import PrunableModel, auto_class
from bench.packing import Batch
from bench.shrink import mask_error, shrink, zeroed
from bench.training import Training

RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SIZES = {
    "bert": {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40},
    "roberta": {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40, "pad_token_id": 1},
    "mpnet": {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40, "pad_token_id": 1},
    "distilbert": {"dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 40},
}
FAMILIES = tuple(sorted(SIZES))
VOCABULARY, PAD, LENGTH = 60, 1, 6.0

Make = Callable[[], Method]


def arch_of(family: str) -> Arch:
    """The architecture of a family, from conf/arch."""
    return typed(Arch, OmegaConf.load(CONF / "arch" / f"{family}.yaml"), "arch")


def tiny(
    family: str = "bert", seed: int = 0, dtype: torch.dtype = torch.float64, outputs: int = 2, kind: str = "classification"
) -> PrunableModel:
    """Random weights large enough that every unit matters; biases too, so that a forgotten one shows."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, max_position_embeddings=40, num_labels=outputs, **SIZES[family])
    attention = "eager" if family == "mpnet" else "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = auto_class(kind).from_config(config, attn_implementation=attention)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "LayerNorm.weight" not in name and "layer_norm.weight" not in name:
                    parameter.normal_(0, 0.3)
    return PrunableModel(module.to(dtype), arch_of(family))


def batch(lengths: list[int], seed: int = 0, regression: bool = False, classes: int = 2) -> dict[str, Tensor]:
    """A padded batch with labels; equal lengths give one without padding."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(3, VOCABULARY, (len(lengths), longest), generator=generator)
    mask = (torch.arange(longest)[None] < torch.tensor(lengths)[:, None]).long()
    labels = torch.rand(len(lengths), generator=generator) * 5
    if not regression:
        labels = torch.randint(0, classes, (len(lengths),), generator=generator)
    return {"input_ids": torch.where(mask.bool(), ids, PAD), "attention_mask": mask, "labels": labels}


def span_batch(lengths: list[int], seed: int = 0) -> dict[str, Tensor]:
    """A padded batch of questions: labels are the tokens of start and end."""
    return batch(lengths, seed) | {"labels": torch.tensor([[min(seed, n - 1), n - 1] for n in lengths])}


def calibration(batches: list[dict[str, Tensor]], regression: bool = False, seed: int = 0, micro: int = 12) -> Calibration:
    """Batches as the calibration sample of a run, in micro-batches of at most so many tokens."""
    examples = sum(len(one["labels"]) for one in batches)
    tokens = sum(int(one["attention_mask"].sum()) for one in batches)
    kind = "regression" if regression else "classification" if batches[0]["labels"].ndim == 1 else "span"
    return Calibration(list[Batch](batches), grouped(batches, micro), np.arange(examples), tokens, kind, "", np.random.default_rng(seed))


def training(model: PrunableModel, folder: Path, regression: bool = False) -> Training:
    """A small train split for a method that trains: 16 texts of characters, batches of 4, label words a and b."""
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation][: VOCABULARY - 5]
    (folder / "vocab.txt").write_text("\n".join(["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *letters]) + "\n", encoding="utf-8")
    encoder = Encoder.__new__(Encoder)
    encoder.tokenizer = BertTokenizer(str(folder / "vocab.txt"), model_input_names=["input_ids", "attention_mask"])
    encoder.inputs = ["input_ids", "attention_mask"]
    labels, words = (None, ["a"]) if regression else (["no", "yes"], ["a", "b"])
    metrics = ["pearson" if regression else "accuracy"]
    task = Task(["text"], labels, metrics, metrics[0], LENGTH, 16, label_words=words)
    model.module.save_pretrained(folder / "base")  # type: ignore[operator]
    return Training(
        task=task,
        recipe=ModelTuning(batch=4),
        encoder=encoder,
        base=folder / "base",
        train=_Made(regression),
        teacher=model.copy(),
        folder=folder,
        seed=0,
        device=str(model.device),
        embeddings=model.arch.embeddings,
    )


class _Made:
    """Examples for `training`: random tokens and labels, the same every time."""

    split: Any = None

    def __init__(self, regression: bool, count: int = 16) -> None:
        one = batch([3 + i % 7 for i in range(count)], regression=regression)
        lengths = one["attention_mask"].sum(1).tolist()
        self.coded = [{name: one[name][i, :n].tolist() for name in ("input_ids", "attention_mask")} for i, n in enumerate(lengths)]
        self.given = one["labels"].double().numpy() if regression else one["labels"].numpy()

    def __len__(self) -> int:
        return len(self.coded)

    def encode(self, rows: Sequence[int] | Rows) -> list[Encoded]:
        return [self.coded[row] for row in rows]

    def labels(self, rows: Sequence[int] | Rows) -> np.ndarray:
        found: np.ndarray = self.given[np.asarray(rows)]
        return found


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


def cases(method: Method, unit: str) -> list[Case]:
    """What a method is tried in; one that trains in less."""
    kinds = ("classification", "regression")
    if method.training:
        return [Case(ratio, kind, unit) for kind in kinds for ratio in RATIOS[::7]]
    more = [Case(0.5, "span", unit), Case(0.5, unit=unit, precision="bf16")]
    if unit == "flops":
        more += [Case(0.5, unit="params"), Case(0.5, unit="latency"), Case(0.9, unit="latency")]
    return [Case(ratio, kind, unit) for kind in kinds for ratio in RATIOS] + more


def check_method(make: Make, device: str = "cpu", unit: str = "flops") -> None:
    """Everything that holds for any method; `make` gives a new method object each time, `unit` is what its YAML's `_unit_` says,
    where it says so. A method that trains is given 16 short texts.

    Raises:
        AssertionError: one sentence for what does not hold.
    """
    assert callable(make), "check_method takes what makes a method, a class or a function, not a method object"
    for case in cases(make(), unit):
        check_run(make, case, device)
    if isinstance(make(), Scorer):
        check_score(make, device)


def check_run(make: Make, case: Case, device: str = "cpu") -> None:
    """Within the budget, repeatable, nothing left behind, masks and shrunk model agree; or a reason to skip."""
    results = []
    for seed_of_others in (1, 2):  # randomness comes from the calibration's generator alone
        torch.manual_seed(seed_of_others)
        np.random.seed(seed_of_others)
        method = make()
        with _told(str(case), method):
            results.append(_run(method, case, device))
    first, second = results
    assert (first is None) == (second is None), f"{case}: skipped in one of two equal runs"
    if first is None or second is None:
        return
    for name in first.masks:
        assert np.array_equal(first.masks[name], second.masks[name]), f"{case}: {name} differ between two equal runs"
    for name, tensor in first.weights.items():
        assert torch.allclose(tensor, second.weights[name], 1e-4, 1e-6), f"{case}: {name} differs between two equal runs"


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


def _run(method: Method, case: Case, device: str) -> _Result | None:
    """Run a method and check what it leaves; None: skipped."""
    model = tiny(dtype=torch.float32, outputs=1 if case.kind == "regression" else 2, kind=case.kind)
    model.module.to(device)
    sample, budget = _sample(case.kind, device), case.budget(model)
    with _nothing_left_behind(model, str(case)), tempfile.TemporaryDirectory() as folder:
        if method.training:
            sample = replace(sample, training=training(model, Path(folder), case.kind == "regression"))
        try:
            with torch.set_grad_enabled(method.gradients), repeatable(device), bf16_layers(model, case.precision == "bf16"):
                masks = method.prune(model, sample if method.labels else sample.without_labels(), budget)
            reason = None
        except Skip as skip:
            masks, reason = None, str(skip).strip()
    if reason is not None:
        assert reason, f"{case}: a skip gives a reason"
        return None
    assert isinstance(masks, Masks | WeightMasks), f"{case}: prune returns {type(masks).__name__}, not Masks"
    assert budget.fits(budget.cost(masks)), f"{case}: the masks cost {budget.cost(masks) / budget.total:.4f} of all units"
    assert all(torch.isfinite(p).all() for p in model.module.parameters()), f"{case}: a weight is not finite"
    if isinstance(masks, WeightMasks):
        before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
        assert all(torch.equal(tensor, before[name]) for name, tensor in zeroed(model, masks).state_dict().items()), (
            f"{case}: a pruned weight is not zero"
        )
        assert case.ratio > 0 or masks.share == 1, f"{case}: a weight was pruned"
        return _Result(dict(masks.kept), before)
    masks.check(model.shape)
    assert case.ratio > 0 or np.array_equal(masks.heads != 0, np.ones_like(masks.heads)), f"{case}: a head was pruned"
    assert case.ratio > 0 or np.array_equal(masks.neurons != 0, np.ones_like(masks.neurons)), f"{case}: a neuron was pruned"
    assert mask_error(model, masks, shrink(model, masks), sample.batches) < 1e-3, f"{case}: masked and shrunk model differ"
    return _Result({"heads": masks.heads, "neurons": masks.neurons}, dict(model.module.state_dict()))


def _sample(kind: str = "classification", device: str = "cpu") -> Calibration:
    """Three small batches, with and without padding."""
    make = span_batch if kind == "span" else partial(batch, regression=kind == "regression")
    batches = [make(lengths, seed) for seed, lengths in enumerate([[9, 4, 1, 7], [6, 6, 6], [5, 3]])]
    return calibration([_to(one, device) for one in batches], kind == "regression")


def _to(one: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in one.items()}


def check_score(make: Make, device: str = "cpu") -> None:
    """Scoring does not change the model, and gives a finite number for every unit."""
    method, model = make(), tiny(dtype=torch.float32)
    assert isinstance(method, Scorer)
    model.module.to(device)
    sample = calibration([_to(batch([9, 4, 1, 7]), device)])
    before = copy.deepcopy(model.module.state_dict())
    try:
        with _told("score", method), torch.set_grad_enabled(method.gradients):
            scores = method.score(model, sample if method.labels else sample.without_labels())
    except Skip:
        return
    assert isinstance(scores, Scores), f"score returns {type(scores).__name__}, not Scores"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items()), "scoring changes the model"
    with _told("score", method):
        scores.check(model.shape)


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


@torch.no_grad()
def plant_dead(model: PrunableModel, heads: int, neurons: int, seed: int = 0) -> Masks:
    """Kill so many random heads and neurons in every sub-layer (all their weights zero). Returns the masks without them."""
    random, alive = np.random.default_rng(seed), Masks.ones(model.shape)
    for s, sublayer in enumerate(model.sublayers):
        dead = random.choice(sublayer.units, (heads, neurons)[place(s)[0]], replace=False)
        alive.of(s)[dead] = 0.0
        sublayer.projection.weight[:, sublayer.columns(dead)] = 0.0
        for producer in sublayer.producers:
            for parameter in producer.linear.parameters():
                parameter[producer.rows(dead)] = 0.0
    return alive


@torch.no_grad()
def plant_duplicates(model: PrunableModel) -> None:
    """Make the second half of every feed-forward's neurons a copy of the first; each carries half of the output."""
    half = model.shape.neurons // 2
    for sublayer in by_array(model.sublayers)[1]:
        for producer in sublayer.producers:
            for parameter in producer.linear.parameters():
                parameter[half : 2 * half] = parameter[:half]
        weight = sublayer.projection.weight
        weight[:, :half] *= 0.5
        weight[:, half : 2 * half] = weight[:, :half]


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
