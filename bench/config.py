"""A run as dataclasses, built from plain configuration with every key and kind of value checked."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue

from bench import machine
from bench.errors import UserError, first_line, nearest
from bench.files import digest
from bench.tasks import KINDS

T = TypeVar("T")


@dataclass
class AttentionPaths:
    """Module paths of an attention sub-layer, relative to its layer; `core` is what no head needs when none is left. `query_norm` and
    `key_norm` are norms of each head's query and key, where the family has them."""

    query: str
    key: str
    value: str
    output: str
    norm: str
    core: str
    query_norm: str | None = None
    key_norm: str | None = None


@dataclass
class FeedForwardPaths:
    """Module paths of a feed-forward sub-layer, relative to its layer; `gate` is the linear map whose activated output the output of
    `up` is multiplied by, where the family has one."""

    up: str
    activation: str
    output: str
    norm: str
    core: str
    gate: str | None = None


@dataclass
class Arch:
    """Where the pieces of a model family lie (conf/arch). `kv_heads`: config.json's field for the number of key-value heads, where query
    heads share them. `norm_first`: always, never, or the field that says whether a sub-layer's norm comes before it. `causal`: a token
    attends to those before it alone. `output`: modules from the last hidden state to a language model's logits, as far as it has them."""

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
    span_head: str
    language_head: list[str] = field(default_factory=list)
    weights: dict[str, list[str]] = field(default_factory=dict)
    head_layers: list[str] = field(default_factory=list)
    kv_heads: str | None = None
    norm_first: str = "never"
    causal: bool = False
    output: list[str] = field(default_factory=list)

    @property
    def groups(self) -> str:
        """config.json's field for the number of an attention's units: key-value heads, each with the query heads that use it."""
        return self.kv_heads or self.heads


@dataclass
class Base:
    """Where base weights come from: packages of the index, the hub, or random weights. `gguf`: the file of a package that holds them in
    that format; `sha256` is then the file's.

    `random` and `shape` are fields of transformers' config: of a model that has never had other weights, and of one whose
    shape alone is asked for (model.weights=random).
    """

    packages: list[str] = field(default_factory=list)
    parts: str | None = None
    folder: str | None = None
    gguf: str | None = None
    sha256: str | None = None
    hub: str | None = None
    random: dict[str, Any] | None = None
    shape: dict[str, Any] | None = None


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
class Windows:
    """How the contexts of questions are cut, and how answers are read off (SQuAD).

    `stride` tokens overlap; an answer is a pair of the `best` starts and ends, of at most `longest_answer` tokens;
    `unanswerable`: there may be none (SQuAD v2.0).
    """

    stride: int = 128
    best: int = 20
    longest_answer: int = 30
    unanswerable: bool = False


@dataclass
class Task:
    """A task by name: columns, labels (None: numbers, or what its kind asks for), metrics, and the constants of the protocol
    (conf/task).

    `kind` names one of bench.tasks, `options` are what that kind wants to know. `data` is another task whose data it uses, `evaluation`
    the file that models are scored on, `unit` what a ratio counts where nothing is said. `label_words`: a word of the vocabulary for
    each output, for methods that classify by them.
    """

    columns: list[str]
    labels: list[str] | None
    metrics: list[str]
    score: str
    length: float
    max_length: int
    label: str = "label"
    hub: HubData | None = None
    label_words: list[str] | None = None
    build: str | None = None
    batch: int = 32
    calibration_tokens: int = 100_000
    windows: Windows | None = None
    tuning: TaskTuning = field(default_factory=TaskTuning)
    kind: str = ""
    data: str | None = None
    evaluation: str = "validation"
    unit: str = "flops"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """A kind that the YAML does not name is told by the labels."""
        self.kind = self.kind or ("span" if self.windows else "regression" if self.labels is None else "classification")

    @property
    def outputs(self) -> int:
        """The number of outputs of a model for this task: of an example, or for a span of every token."""
        return KINDS[self.kind].outputs(self)


@dataclass
class CalibrationPlan:
    """How the calibration sample is drawn (architecture: protocol, step 2)."""

    sampler: str
    tokens: int
    examples: int | None
    batch: int


@dataclass(frozen=True)
class Point:
    """A point of the timing grid: examples, tokens of each, precision (float32, bfloat16, float16) and mode (eager,
    compile, onnx)."""

    batch: int
    length: int
    dtype: str
    mode: str

    @property
    def kind(self) -> tuple[str, str]:
        """What a model has to be prepared for."""
        return self.dtype, self.mode


@dataclass
class LatencyPlan:
    """What is timed and how long; `plan` "none" measures nothing.

    The headline is the point (`batch`, `length`), eager and in float32. All combinations of the lists come after it, none
    where `batches` is empty; `lengths` empty: the headline's; `dtypes` null: what the device has units for. A point takes at
    least `min_rounds` and `min_seconds`, goes on until the 95 % interval is no wider than the share `width` of the speedup,
    where that is asked for, and ends at `max_seconds`, though never before `floor_rounds`. `energy_seconds`: for how long a
    model runs while a GPU counts its energy; 0: not counted. `limits`: whether the headline is taken apart (bench.speed.bounds).
    """

    plan: str
    batch: int = 32
    length: int = 128
    batches: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    dtypes: list[str] | None = None
    modes: list[str] = field(default_factory=lambda: ["eager"])
    min_rounds: int = 20
    min_seconds: float = 2.0
    max_seconds: float = 60.0
    floor_rounds: int = 5
    width: float | None = None
    energy_seconds: float = 1.0
    limits: bool = True

    def points(self, device: str) -> list[Point]:
        """The headline first; those of the same precision and mode lie together."""
        dtypes = machine.dtypes(device) if self.dtypes is None else self.dtypes
        grid = itertools.product(dtypes, self.modes, self.batches, self.lengths or [self.length])
        found = [Point(batch, length, dtype, mode) for dtype, mode, batch, length in grid if mode != "onnx" or dtype == "float32"]
        headline = Point(self.batch, self.length, "float32", "eager")
        rest = [point for point in found if point != headline]
        return [headline, *sorted(rest, key=lambda point: point.kind != headline.kind)]


@dataclass
class Recover:
    """Fine-tuning after pruning: for how many epochs in all (0: none), with the dense model as teacher or not, and in how many
    rounds of pruning a little more and training again."""

    epochs: float = 0.0
    distil: bool = False
    rounds: int = 1


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
    round_to: int | None
    threads: int | None
    recover: Recover
    accumulate: int
    save: str | None
    results: str
    rerun: bool


@dataclass(frozen=True)
class Run:
    """One cell: everything the protocol needs to know, checked. `trains`: the method trains on the whole train split;
    `pretrained`: it starts from the base encoder."""

    method: str
    method_target: str
    method_fields: dict[str, Any]
    trains: bool
    pretrained: bool
    task_name: str
    task: Task
    model_name: str
    model: Model
    keys: Keys
    device: str
    threads: int
    command: str

    @property
    def scored(self) -> bool:
        """Whether accuracy says anything: random weights have none."""
        return self.model.weights is None

    @property
    def recover(self) -> dict[str, Any] | None:
        """How the pruned model is fine-tuned, None where it is not."""
        return asdict(self.keys.recover) if self.keys.recover.epochs else None

    def _recipe(self) -> dict[str, Any]:
        """What a training goes by beside the fields of its method."""
        return {"model": asdict(self.model.tuning), "task": asdict(self.task.tuning), "label_words": self.task.label_words}

    def meaning(self) -> dict[str, Any]:
        """What the run computes, as plain data: with the dense checkpoint's SHA-256 it is the run's identity.

        Every entry is named, so that a field that is added elsewhere does not change the identity of stored runs.
        """
        task, calibration = self.task, asdict(self.keys.calibration)
        calibration["tokens"] = None if calibration["examples"] else calibration["tokens"]
        return {
            "method": {"name": self.method, "target": self.method_target, **{k: _content(v) for k, v in self.method_fields.items()}},
            "task": {
                "name": self.task_name,
                "columns": [*task.columns, task.label],
                "labels": task.labels,
                "metrics": task.metrics,
                "score": task.score,
                "length": task.length,
                "max_length": task.max_length,
                **({"windows": asdict(task.windows)} if task.windows else {}),
                **({"kind": task.kind, "options": task.options} if task.options else {}),
            },
            "model": {"name": self.model_name, "type": self.model.arch.model_type, "attention": self.model.attention},
            "unit": self.keys.unit,
            "ratio": self.keys.ratio,
            "seed": self.keys.seed,
            "calibration": calibration,
            "recover": self.recover,
            "device": self.device,
            "precision": self.keys.precision,
            **({"round_to": self.keys.round_to} if self.keys.round_to else {}),
            **({"recipe": self._recipe()} if self.trains or self.recover else {}),
        }


def _content(value: Any) -> Any:
    """A method's field as it counts: where it names a record's folder, what lies in it and not where."""
    arrays = Path(value) / "arrays.npz" if isinstance(value, str) and value else None
    return digest(arrays) if arrays and arrays.is_file() else value


def typed(cls: type[T], given: Any, where: str) -> T:
    """Build a dataclass from plain configuration; every key and every kind of value is checked.

    Raises:
        UserError: a key that the dataclass does not have, a missing one, or a value of the wrong kind.
    """
    schema = OmegaConf.structured(cls)
    try:
        built = OmegaConf.to_object(OmegaConf.merge(schema, given))
    except Exception as error:
        key = f"{where}.{getattr(error, 'full_key', None) or ''}".strip(".")
        if isinstance(error, ConfigKeyError):
            known = [str(name) for name in error.parent_node or ()]
            raise UserError(f"unknown key '{key}'{nearest(key.rsplit('.', 1)[-1], known)}") from error
        if isinstance(error, MissingMandatoryValue):
            raise UserError(f"{key} is missing") from error
        raise UserError(f"{key}: {first_line(error)}") from error
    for key, value in _leaves(asdict(built), where):  # type: ignore[arg-type]
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value}: expected a finite number")
    return built  # type: ignore[return-value]


def _leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Every value that is no container, with its key."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _leaves(entry, f"{where}.{key}".strip("."))
    else:
        yield where, value
