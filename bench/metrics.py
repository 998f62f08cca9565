"""The metrics of the tasks as `evaluate.Metric` classes that need no network, in percent."""

import tempfile

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score


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
    """Pearson's correlation; 0 where one side is constant."""

    kind = "float64"

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {"pearson": _correlation(stats.pearsonr, predictions, references)}


class Spearman(_Metric):
    """Spearman's rank correlation; 0 where one side is constant."""

    kind = "float64"

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {"spearman": _correlation(stats.spearmanr, predictions, references)}


def _correlation(function: object, predictions: list[float], references: list[float]) -> float:
    if len(set(predictions)) < 2 or len(set(references)) < 2:
        return 0.0
    return 100 * float(function(predictions, references).statistic)  # type: ignore[operator]


METRICS: dict[str, type[_Metric]] = {"accuracy": Accuracy, "f1": F1, "pearson": Pearson, "spearman": Spearman}


def compute(names: list[str], logits: NDArray[np.float32], gold: np.ndarray) -> dict[str, float]:
    """Metrics by name from logits [examples, outputs] and gold labels [examples]."""
    predictions = logits[:, 0].astype(np.float64) if gold.dtype == np.float64 else logits.argmax(1)
    if not np.isfinite(logits).all():
        raise ValueError("the model gives logits that are not finite")
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="prunebench-") as scratch:  # evaluate insists on a folder
        for name in names:
            metric = METRICS[name](keep_in_memory=True, cache_dir=scratch)
            results |= metric.compute(predictions=predictions, references=gold) or {}
    return results
