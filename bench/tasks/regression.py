"""A number for a text or a pair of texts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.tasks import columns
from bench.tasks.kind import Kind, Logits, Score

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from bench.config import Task
    from bench.tasks.encoding import Examples


class Regression(Kind):
    """Labels are numbers [B], logits [B, 1]."""

    name = "regression"
    metrics = frozenset({"pearson", "spearman"})
    transformers_class = "AutoModelForSequenceClassification"
    problem_type = "regression"

    def outputs(self, task: "Task") -> int:
        """One."""
        return 1

    def labels(self, table: "pa.Table", task: "Task", texts: list[list[str]], where: str) -> Mapping[str, Any]:
        """Finite numbers."""
        return {"labels": columns.numbers(table[task.label], where)}

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Squared error."""
        return (logits.squeeze(-1) - labels.to(logits.dtype)).square()

    def divergence(self, student: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
        """Squared difference, since one output has no softmax."""
        return (student - teacher).square().sum(1)

    def score(self, task: "Task", logits: Logits, examples: "Examples") -> Score:
        """Correlations with the gold numbers."""
        return correlated(task, logits, examples.split.labels)


def correlated(task: "Task", logits: Logits, gold: np.ndarray) -> Score:
    """Correlations of predicted numbers [examples, 1] with gold ones."""
    from bench.tasks import metrics

    predicted = logits[:, 0].astype(np.float64)
    return Score({"logits": logits}, *metrics.scored(task, predicted, gold), metrics.notes(task, predicted, gold))
