"""What tests share."""

from typing import Any

import numpy as np
from torch import Tensor, nn

from bench.config import Task
from bench.tasks import KINDS, metrics


def logits_of(module: nn.Module, batch: Any) -> Tensor:
    """A transformers model's logits, padding of questions masked."""
    return KINDS["span" if hasattr(module, "qa_outputs") else "classification"].logits(module, batch)


def measured(names: list[str], logits: np.ndarray, gold: np.ndarray) -> dict[str, float | None]:
    """Metrics by name of logits [examples, outputs]."""
    predicted = logits[:, 0].astype(np.float64) if gold.dtype == np.float64 else logits.argmax(1)
    return metrics.scored(Task(["text"], None, names, names[0], 10.0, 16), predicted, gold)[0]
