"""What a model is trained on: the task's ordinary loss, and a teacher's answers."""

from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 2.0  # of distillation, in the papers on movement pruning and SMP


def task_losses(logits: Tensor, labels: Tensor, kind: str) -> Tensor:
    """The ordinary loss of the task for each example [B]: squared error, cross-entropy, or the mean of start's and end's.

    Logits [B, outputs] or [B, T, 2]; labels [B] or [B, 2]; `kind` as in bench.config.Task.
    """
    if kind == "regression":
        return (logits.squeeze(-1) - labels.to(logits.dtype)).square()
    if kind == "classification":
        return F.cross_entropy(logits, labels, reduction="none")
    return F.cross_entropy(_by_place(logits), labels.flatten(), reduction="none").view(-1, 2).mean(1)


def distillation(logits: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """T^2 KL(teacher || student) of softened answers, mean over the examples (Sanh et al. 2020, arXiv 2005.07683, with T = 2;
    of questions the mean of start's and end's); of a regression the squared difference, since one output has no softmax."""
    if kind == "regression":
        return (logits - teacher).square().mean()
    if kind == "span":
        logits, teacher = _by_place(logits), _by_place(teacher)
    soft, target = F.log_softmax(logits / TEMPERATURE, -1), F.log_softmax(teacher / TEMPERATURE, -1)
    return TEMPERATURE**2 * F.kl_div(soft, target, reduction="batchmean", log_target=True)


def objective(logits: Tensor, labels: Tensor, teacher: Tensor | None, kind: str) -> Tensor:
    """The mean loss of a batch: the task's, or where there is a teacher half of it and half of distillation."""
    task = task_losses(logits, labels, kind).mean()
    return task if teacher is None else 0.5 * task + 0.5 * distillation(logits, teacher, kind)


def _by_place(logits: Tensor) -> Tensor:
    """[B, T, 2] as [2 B, T]: all starts and ends."""
    return logits.transpose(1, 2).flatten(0, 1)
