"""A run as dataclasses, and the checks that come before anything heavy is imported."""

import ast
import importlib.util
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from bench.errors import UserError, nearest

T = TypeVar("T")


@dataclass
class AttentionPaths:
    """Module paths of an attention sub-layer, relative to its layer; `core` is what no head needs when none is left."""

    query: str
    key: str
    value: str
    output: str
    norm: str
    core: str


@dataclass
class FeedForwardPaths:
    """Module paths of a feed-forward sub-layer, relative to its layer."""

    up: str
    activation: str
    output: str
    norm: str
    core: str


@dataclass
class Arch:
    """Where the pieces of a model family lie (conf/arch)."""

    model_type: str
    embeddings: str
    layers: str
    heads: str
    neurons: str
    hidden: str
    position_offset: int
    position_bias: str | None
    attention: AttentionPaths
    feed_forward: FeedForwardPaths
    head: list[str]
    new_weights: list[str]


@dataclass
class Base:
    """Where a base encoder comes from: packages of the index, the hub, or random weights."""

    packages: list[str] = field(default_factory=list)
    parts: str | None = None
    folder: str | None = None
    sha256: str | None = None
    hub: str | None = None
    random: dict[str, Any] | None = None


@dataclass
class HubCheckpoint:
    """A fine-tuned checkpoint on the hub; `expected` in percent, `label_map[output]` is the task's label."""

    hub: str
    expected: float | None = None
    label_map: list[int] | None = None


@dataclass
class ModelTuning:
    """A model's side of the fine-tuning recipe."""

    learning_rate: float = 5e-5
    batch: int = 32
    warmup: float = 0.06
    weight_decay: float = 0.01
    freeze_embeddings: bool = False
    max_tokens: int | None = None


@dataclass
class Model:
    """A model by name: its architecture, base weights and known checkpoints (conf/model)."""

    arch: Arch
    attention: str = "sdpa"
    path: str | None = None
    weights: str | None = None
    base: Base = field(default_factory=Base)
    checkpoints: dict[str, HubCheckpoint] = field(default_factory=dict)
    tuning: ModelTuning = field(default_factory=ModelTuning)


@dataclass
class HubData:
    """A data set on the hub and the names of its splits there."""

    path: str
    name: str | None = None
    train: str = "train"
    validation: str = "validation"


@dataclass
class TaskTuning:
    """A task's side of the fine-tuning recipe."""

    epochs: float = 3
    max_tokens: int | None = None


@dataclass
class Task:
    """A task by name: columns, labels (None: regression), metrics, and the constants of the protocol (conf/task)."""

    columns: list[str]
    labels: list[str] | None
    metrics: list[str]
    score: str
    length: float
    max_length: int
    label: str = "label"
    hub: HubData | None = None
    build: str | None = None
    batch: int = 32
    calibration_tokens: int = 100_000
    tuning: TaskTuning = field(default_factory=TaskTuning)

    @property
    def outputs(self) -> int:
        """The number of outputs of a model for this task."""
        return len(self.labels) if self.labels else 1


@dataclass
class CalibrationPlan:
    """How the calibration sample is drawn (architecture: protocol, step 2)."""

    sampler: str
    tokens: int
    examples: int | None
    batch: int


@dataclass
class LatencyPlan:
    """One point of the timing grid and how long it is measured; `plan` "none" measures nothing."""

    plan: str
    batch: int = 32
    length: int = 128
    min_rounds: int = 20
    min_seconds: float = 2.0
    max_seconds: float = 60.0
    floor_rounds: int = 5


@dataclass
class Keys:
    """The keys of a run that are not groups."""

    unit: str
    ratio: float
    seed: int
    calibration: CalibrationPlan
    latency: LatencyPlan
    device: str
    precision: str
    threads: int | None
    recover: Any
    save: Any
    results: str
    rerun: bool


@dataclass(frozen=True)
class Run:
    """One cell: everything the protocol needs to know, checked."""

    method: str
    method_target: str
    method_fields: dict[str, Any]
    task_name: str
    task: Task
    model_name: str
    model: Model
    keys: Keys
    device: str
    threads: int
    command: str

    def meaning(self) -> dict[str, Any]:
        """What the run computes, as plain data: with the dense checkpoint's SHA-256 it is the run's identity.

        Every entry is named, so that a field that is added elsewhere does not change the identity of stored runs.
        """
        task, calibration = self.task, asdict(self.keys.calibration)
        calibration["tokens"] = None if calibration["examples"] else calibration["tokens"]
        return {
            "method": {"name": self.method, "target": self.method_target, **self.method_fields},
            "task": {
                "name": self.task_name,
                "columns": [*task.columns, task.label],
                "labels": task.labels,
                "metrics": task.metrics,
                "score": task.score,
                "length": task.length,
                "max_length": task.max_length,
            },
            "model": {"name": self.model_name, "type": self.model.arch.model_type, "attention": self.model.attention},
            "unit": self.keys.unit,
            "ratio": self.keys.ratio,
            "seed": self.keys.seed,
            "calibration": calibration,
            "recover": self.keys.recover,
            "device": self.device,
            "precision": self.keys.precision,
        }


def typed(cls: type[T], given: Any, where: str) -> T:
    """Build a dataclass from plain configuration; every key and every kind of value is checked.

    Raises:
        UserError: a key that the dataclass does not have, a missing one, or a value of the wrong kind.
    """
    schema = OmegaConf.structured(cls)
    try:
        built = OmegaConf.to_object(OmegaConf.merge(schema, given))
    except OmegaConfBaseException as error:
        key = f"{where}.{error.full_key or ''}".strip(".")
        if isinstance(error, ConfigKeyError):
            known = [str(name) for name in error.parent_node or ()]
            raise UserError(f"unknown key '{key}'{nearest(key.rsplit('.', 1)[-1], known)}") from error
        if isinstance(error, MissingMandatoryValue):
            raise UserError(f"{key} is missing") from error
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from error
    return built  # type: ignore[return-value]


KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a word", "None": "null"}


def check_method_fields(name: str, given: dict[str, Any], reference: dict[str, Any]) -> None:
    """The fields of a method against its YAML: the same names, and kinds of value that fit, without importing it.

    Where the method's source annotates a field with plain kinds (`float | str`) these count, else its YAML's default.

    Raises:
        UserError: an unknown field (with the nearest known one), or a value of another kind.
    """
    annotated = _annotations(str(reference.get("_target_", "")))
    for key, value in given.items():
        if key not in reference:
            raise UserError(f"method {name} has no field {key!r}{nearest(key, set(reference) - {'_target_'})}")
        kinds = annotated.get(key) or {_kind(reference[key])}
        if kinds <= set(KINDS) and kinds != {"None"} and not _fits(value, kinds):
            expected = " or ".join(KINDS[kind] for kind in sorted(kinds))
            raise UserError(f"method.{key}={value!r}: expected {expected}, for example {reference[key]!r}")


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _fits(value: Any, kinds: set[str]) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return _kind(value) in kinds or (_kind(value) == "int" and "float" in kinds)


def _annotations(target: str) -> dict[str, set[str]]:
    """The kinds that a class's source annotates its fields with, read by ast."""
    module, _, name = target.rpartition(".")
    try:
        spec = importlib.util.find_spec(module)
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8")) if spec and spec.origin else ast.Module([], [])
    except (ImportError, ValueError, OSError, SyntaxError):
        return {}  # told when the method is imported
    bodies = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    fields = [node for body in bodies for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    return {node.target.id: set(ast.unparse(node.annotation).split(" | ")) for node in fields}  # type: ignore[union-attr]


def check_keys(keys: Keys) -> None:
    """The values of the run's own keys.

    Raises:
        UserError: one sentence for the first value that cannot be used.
    """
    _choice("unit", keys.unit, {"flops", "params"}, later={"latency", "weights"})
    _choice("precision", keys.precision, {"fp32"}, later={"bf16"})
    _choice("device", keys.device, {"auto", "cpu", "cuda"})
    _choice("latency", keys.latency.plan, {"none", "quick"}, later={"paper"})
    _choice("calibration.sampler", keys.calibration.sampler, {"tokens", "legacy"})
    for later in ("recover", "save"):
        if getattr(keys, later) is not None:
            raise UserError(f"{later}= is not there yet: leave it out")
    if not 0 <= keys.ratio < 1:
        raise UserError(f"ratio={keys.ratio:g}: the share to remove lies in [0, 1), for example ratio=0.5")
    if keys.seed < 0 or keys.seed >= 2**32:
        raise UserError(f"seed={keys.seed}: a whole number from 0 to 2**32 - 1")
    for name, value in asdict(keys.calibration).items():
        if isinstance(value, int) and value < 1:
            raise UserError(f"calibration.{name}={value}: at least 1")
    for name, value in asdict(keys.latency).items():
        if name != "plan" and value <= 0:
            raise UserError(f"latency.{name}={value}: more than 0")
    if keys.threads is not None and keys.threads < 1:
        raise UserError(f"threads={keys.threads}: at least 1")


def _choice(key: str, value: str, known: set[str], later: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    if value in later:
        raise UserError(f"{key}={value} is not there yet; choose from {', '.join(sorted(known))}")
    if value not in known:
        raise UserError(f"{key}={value}{nearest(value, known)}")


def check_task(name: str, task: Task) -> None:
    """A task's YAML makes sense.

    Raises:
        UserError: an unknown metric, a score that is not measured, too many text columns.
    """
    known = {"accuracy", "f1", "pearson", "spearman"}
    for metric in task.metrics:
        _choice(f"task {name}: metrics", metric, known)
    if task.score not in task.metrics:
        raise UserError(f"task {name}: score={task.score} is not among its metrics{nearest(task.score, task.metrics)}")
    if len(task.columns) not in (1, 2):
        raise UserError(f"task {name}: columns has {len(task.columns)} entries, a model reads one text or a pair")
    if task.length <= 0 or task.max_length < 3:
        raise UserError(f"task {name}: length and max_length are numbers of tokens, more than 0 and at least 3")
    if task.labels is not None and (len(task.labels) < 2 or len(set(task.labels)) < len(task.labels)):
        raise UserError(f"task {name}: labels lists at least two different names, or is null for a regression")
    if ("f1" in task.metrics) and task.outputs != 2:
        raise UserError(f"task {name}: f1 is defined for two labels here")


def check_results(folder: str) -> Path:
    """The results folder can be written, or made; nothing is made yet.

    Raises:
        UserError: it is a file, or it or the folder above it is read-only.
    """
    path = Path(folder).expanduser()
    above = path
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        raise UserError(f"results={folder}: {'it' if above == path else str(above)} is a file, not a folder")
    # the mode is asked as well: to root every folder looks writable
    if not os.access(above, os.W_OK | os.X_OK) or not above.stat().st_mode & 0o222:
        raise UserError(f"results={folder}: {'it' if above == path else str(above)} is read-only")
    return path
