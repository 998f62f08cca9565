"""One of several labels for a text or a pair of texts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.tasks import columns
from bench.tasks.kind import Kind, Logits, Score

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from bench.config import Task
    from bench.tasks.encoding import Examples


class Classification(Kind):
    """Labels are class indices [B]."""

    name = "classification"
    metrics = frozenset({"accuracy", "f1"})
    transformers_class = "AutoModelForSequenceClassification"
    problem_type = "single_label_classification"

    def outputs(self, task: "Task") -> int:
        """One for each label."""
        return len(task.labels or ())

    def check(self, task: "Task") -> tuple[str, Any, bool, str] | None:
        """F1 is that of two labels."""
        return ("metrics", "f1", False, "it is defined for two labels here") if "f1" in task.metrics and self.outputs(task) != 2 else None

    def labels(self, table: "pa.Table", task: "Task", texts: list[list[str]], where: str) -> Mapping[str, Any]:
        """Class numbers, or names of the task's labels."""
        assert task.labels is not None
        return {"labels": columns.classes(table[task.label], task.labels, where)}

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Cross-entropy."""
        from torch.nn import functional as F

        return F.cross_entropy(logits, labels, reduction="none")

    def divergence(self, student: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
        """T² KL(teacher || student)."""
        return softened_divergence(student, teacher, temperature)

    def score(self, task: "Task", logits: Logits, examples: "Examples") -> Score:
        """By the largest logit."""
        from bench.tasks import metrics

        gold = examples.split.labels
        predicted = logits.argmax(1)
        notes = metrics.notes(task, predicted, gold) + _one_answer(task.labels or (), predicted)
        return Score({"logits": logits}, *metrics.scored(task, predicted, gold), notes)


def softened_divergence(student: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
    """T² KL(teacher || student) over dimension 1 of logits [B, classes] or [B, T, 2], the mean of what is left [B]."""
    from torch.nn import functional as F

    one, other = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    divergences = F.kl_div(one, other, reduction="none", log_target=True).sum(1)
    return temperature * temperature * divergences.view(len(student), -1).mean(1)


def _one_answer(labels: Sequence[str], predicted: np.ndarray) -> list[str]:
    same = len(np.unique(predicted)) == 1
    return [f"the model answers {labels[predicted[0]]} to every example"] if same else []
