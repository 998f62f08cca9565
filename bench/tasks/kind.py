"""What a task asks of a model. A kind of task is one class in one file; nobody else asks which kind it is.

Importing a kind loads neither torch nor transformers: what needs them imports them when it is called.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from torch import Tensor, nn

    from bench.calibration import Calibration
    from bench.config import Arch, Task
    from bench.masks import Masks
    from bench.model import PrunableModel
    from bench.nn.packing import Batch, Context
    from bench.tasks.data import Split
    from bench.tasks.encoding import Encoder, Examples

Logits = NDArray[np.float32]
Values = dict[str, float | None]


@dataclass(frozen=True)
class Score:
    """What is kept of every example in row order of the split, the metrics in percent (None where one is not defined, as `notes`
    say), and the one that is the score."""

    arrays: dict[str, np.ndarray]
    metrics: Values
    score: float | None
    notes: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The score for people."""
        return "not defined" if self.score is None else f"{self.score:.2f}"


class Kind:
    """What depends on the kind of a task. *Logits* are a model's outputs: [B, outputs], or what the kind says instead."""

    name: ClassVar[str]
    metrics: ClassVar[frozenset[str]]
    transformers_class: ClassVar[str]  # that loads a model with the head
    problem_type: ClassVar[str | None] = None  # as transformers' config says it, for fine-tuning
    output_names: ClassVar[tuple[str, ...]] = ("logits",)
    per_token: ClassVar[bool] = False  # whether every token has outputs, not the example
    reads_first_tokens: ClassVar[bool] = True  # whether the logits read the last hidden states of first tokens alone
    fine_tuned: ClassVar[bool] = True  # whether a dense model is fine-tuned for the task, not used as it is published
    together: ClassVar[int] = 1  # consecutive examples that are drawn together
    padded: ClassVar[bool] = True  # whether a batch's examples differ in length, so that the tokenizer has to name a padding token

    def outputs(self, task: "Task") -> int:
        """The number of a model's outputs for an example or, of a span, for every token."""
        raise NotImplementedError

    def check(self, task: "Task") -> tuple[str, Any, bool, str] | None:
        """What is wrong with a task's YAML: a key, its value, False, and what is expected; None where nothing is."""
        return None

    def fits(self, arch: "Arch") -> str | None:
        """What a family lacks for such a task; None where it can do it."""
        return "is a decoder: this task wants an encoder" if arch.causal else None

    def head(self, arch: "Arch") -> list[str]:
        """Paths of the linear layers of the head; the rows of the last are the outputs."""
        return arch.head_layers

    def columns(self, task: "Task", names: Sequence[str]) -> list[str]:
        """Columns of a split that are read beside the texts; `names` are those it has."""
        return [task.label]

    def labels(self, table: "pa.Table", task: "Task", texts: list[list[str]], where: str) -> Mapping[str, Any]:
        """The fields of bench.tasks.data.Split that hold a split's labels.

        Raises:
            UserError: a label is not what the task asks for.
        """
        raise NotImplementedError

    def examples(self, encoder: "Encoder", split: "Split", scored: bool = False) -> "Examples":
        """The examples of a split: its rows, unless the kind cuts them otherwise. `scored`: it is the one that models are scored on."""
        from bench.tasks.encoding import Rows

        return Rows(encoder, split)

    def scored_together(self, task: "Task") -> int:
        """How many examples make a batch when a model is scored."""
        return 32

    def from_config(self, config: Any, **how: Any) -> "nn.Module":
        """A model of new weights."""
        import transformers

        return getattr(transformers, self.transformers_class).from_config(config, **how)  # type: ignore[no-any-return]

    def from_pretrained(self, folder: Any, **how: Any) -> Any:
        """A model of a transformers folder."""
        import transformers

        return getattr(transformers, self.transformers_class).from_pretrained(folder, **how)

    def logits(self, module: "nn.Module", batch: "Batch") -> "Tensor":
        """A transformers model's outputs for a batch."""
        from bench.nn.packing import inputs_of

        return module(**inputs_of(batch)).logits  # type: ignore[no-any-return]

    def answers(self, module: "nn.Module", batch: "Batch") -> "Tensor":
        """What the score is computed from, for each example of a batch [B, ...]."""
        return self.logits(module, batch)

    def of(self, model: "PrunableModel") -> "Kind":
        """The kind as a method sees it: knowing of the model what loss and divergence need."""
        return self

    def output(self, model: "PrunableModel", hidden: "Tensor", context: "Context") -> "Tensor":
        """The same from the last hidden state [tokens, d]."""
        return model.classify(hidden[context.first][:, None])

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """The task's ordinary loss for each example [B]."""
        raise NotImplementedError

    def divergence(self, student: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
        """How far a student's logits are from a teacher's, for each example [B]."""
        raise NotImplementedError

    def for_trainer(self, batch: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """A batch with labels as transformers' model takes it, which computes the loss itself."""
        return batch

    def supervised(self, model: "PrunableModel", calibration: "Calibration") -> "Calibration":
        """A sample with the labels that `loss` wants, for a method that declares them; part of what pruning costs."""
        return calibration

    def files(self, task: "Task", folder: "Path", arch: "Arch", masks: "Masks", small: "nn.Module") -> None:
        """Write what other libraries need to open a saved model of this kind."""

    def cut(self, logits: "Tensor", length: int) -> "Tensor":
        """Logits of a batch of so many tokens, of logits that were kept for longer ones."""
        return logits

    def score(self, task: "Task", logits: Logits, examples: "Examples") -> Score:
        """The metrics of all examples' logits."""
        raise NotImplementedError

    def stored(self, task: "Task", examples: "Examples") -> dict[str, np.ndarray]:
        """What a record keeps of the evaluation split beside a model's answers."""
        return {"gold": examples.split.labels}

    def stream(self, examples: "Examples") -> dict[str, Any] | None:
        """The record's `data.stream`: how a text was cut that is read as one; None where rows are read."""
        return None
