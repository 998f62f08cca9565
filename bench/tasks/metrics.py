"""The metrics of the tasks as `evaluate.Metric` classes that need no network, in percent."""

import tempfile

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from bench.config import Task

ROUNDING = 1e-6  # relative; the same input in batches of other shapes differs by less in float32


class _Metric(evaluate.Metric):  # type: ignore[misc]
    """Shared by all: numbers in, one number in percent out, no files left behind."""

    kind = "int64"

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__class__.__doc__ or "",
            citation="",
            inputs_description="predictions and references, one value per example",
            features=datasets.Features({"predictions": datasets.Value(self.kind), "references": datasets.Value(self.kind)}),
        )


class Accuracy(_Metric):
    """Share of examples whose predicted class is the right one."""

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"accuracy": 100 * float(accuracy_score(references, predictions))}


class F1(_Metric):
    """Harmonic mean of precision and recall of class 1."""

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"f1": 100 * float(f1_score(references, predictions, zero_division=0))}


class Pearson(_Metric):
    """Pearson's correlation."""

    kind = "float64"

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {"pearson": 100 * float(stats.pearsonr(predictions, references).statistic)}


class Spearman(_Metric):
    """Spearman's rank correlation."""

    kind = "float64"

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {"spearman": 100 * float(stats.spearmanr(predictions, references).statistic)}


METRICS: dict[str, type[_Metric]] = {"accuracy": Accuracy, "f1": F1, "pearson": Pearson, "spearman": Spearman}


def scored(task: Task, predicted: np.ndarray, gold: np.ndarray) -> tuple[dict[str, float | None], float | None]:
    """A task's metrics of the answers to all examples, None where one is not defined, and the one that is the score."""
    values = {name: None if undefined(name, predicted, gold) else value(name, predicted, gold) for name in task.metrics}
    return values, values[task.score]


def value(name: str, predicted: np.ndarray, gold: np.ndarray) -> float:
    """One metric by name, in percent."""
    with tempfile.TemporaryDirectory(prefix="prunebench-") as scratch:  # evaluate insists on a folder
        metric = METRICS[name](keep_in_memory=True, cache_dir=scratch)
        return float(metric.compute(predictions=predicted, references=gold)[name])


def notes(task: Task, predicted: np.ndarray, gold: np.ndarray) -> list[str]:
    """Which of a task's metrics are not defined, and why."""
    why = {name: undefined(name, predicted, gold) for name in task.metrics}
    return [f"{name} is not defined: {reason}" for name, reason in why.items() if reason]


def undefined(name: str, predicted: np.ndarray, gold: np.ndarray) -> str | None:
    """Why a metric of these answers is not defined; None where it is."""
    if name == "f1":
        return None if (gold == 1).any() else "no example is of class 1"
    if name not in ("pearson", "spearman"):
        return None
    if is_constant(gold):
        return "all examples have the same label"
    return "the model gives every example the same number" if is_constant(predicted) else None


def is_constant(values: np.ndarray) -> bool:
    """Whether they are all the same, but for the rounding of float32."""
    return bool(np.ptp(values) <= ROUNDING * np.abs(values).max())
