"""What a model is trained on: the task's ordinary loss, and a teacher's answers."""

from torch import Tensor

from bench.tasks.kind import Kind

TEMPERATURE = 2.0  # of distillation, in the papers on movement pruning and SMP


def objective(logits: Tensor, labels: Tensor, teacher: Tensor | None, kind: Kind) -> Tensor:
    """The mean loss of a batch: the task's, or where there is a teacher half of it and half of the divergence from the teacher
    (Sanh et al. 2020, arXiv 2005.07683)."""
    task = kind.loss(logits, labels).mean()
    return task if teacher is None else 0.5 * task + 0.5 * kind.divergence(logits, teacher, TEMPERATURE).mean()
