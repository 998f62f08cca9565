"""`python -m tests.made_up FOLDER COUNT`: plausible records that nothing was measured for, to time the analysis with."""

import itertools
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from bench.records import store
from tests.test_store import made

EXAMPLES = {"mrpc": 408, "sst2": 872, "stsb": 1500, "qnli": 5463, "squad": 10570}
METHODS = ("kprune", "kwon", "fisher", "flap", "kcm", "wanda-sp", "taylor", "magnitude", "random", "kprune-one-shot")  # best first
MODELS, RATIOS = ("minilm", "mpnet-base"), (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8)
ARTICLES = 48


def cells() -> list[tuple[str, str, str, float, int]]:
    """Task, model, method, ratio, seed: of small tasks three seeds, of large ones half of the methods and one seed."""
    small = itertools.product(("mrpc", "sst2"), MODELS, METHODS, RATIOS, range(3))
    large = itertools.product(("stsb", "qnli", "squad"), MODELS, METHODS[:5], RATIOS, (0,))
    return [*small, *large]


def arrays_of(task: str, model: str, noise: float, seed: int) -> dict[str, Any]:
    """The same examples and dense model for all records of a task and model; the pruned one errs more with the noise."""
    same, own = np.random.default_rng(zlib.crc32(f"{task}{model}".encode())), np.random.default_rng(seed)
    count = EXAMPLES[task]
    masks = {"heads": own.integers(0, 2, (6, 12)) * 1.0, "neurons": own.integers(0, 2, (6, 1536)) * 1.0}
    if task == "squad":
        gold = np.arange(count)
        answers = [np.where(rng.random(count) < wrong, gold + 1, gold) for rng, wrong in ((same, 0.2), (own, min(0.9, 0.2 + noise / 4)))]
        right = [100.0 * (answer == gold) for answer in answers]
        found = {f"{kind}_{which}": values for which, values in zip(("dense", "pruned"), right, strict=True) for kind in ("em", "f1")}
        texts = {f"answers_{which}": answer.astype(str) for which, answer in zip(("dense", "pruned"), answers, strict=True)}
        return masks | found | texts | {"cluster": np.sort(gold % ARTICLES)}
    gold = same.uniform(0, 5, count) if task == "stsb" else same.integers(0, 2, count)
    outputs = gold[:, None] if task == "stsb" else np.eye(2)[gold] * 2
    dense = outputs + same.normal(size=outputs.shape)
    return masks | {"gold": gold, "logits_dense": dense, "logits_pruned": dense + noise * own.normal(size=dense.shape)}


def score_of(task: str, arrays: dict[str, Any], which: str) -> dict[str, float]:
    """The task's metric, in percent."""
    if task == "squad":
        return {"f1": float(arrays[f"f1_{which}"].mean())}
    logits = arrays[f"logits_{which}"]
    if task == "stsb":
        return {"pearson": 100 * float(np.corrcoef(logits[:, 0], arrays["gold"])[0, 1])}
    return {"accuracy": 100 * float(np.mean(logits.argmax(1) == arrays["gold"]))}


def write(folder: Path, number: int, task: str, model: str, method: str, ratio: float, seed: int) -> None:
    """One record."""
    arrays = arrays_of(task, model, 3 * ratio**2 * (1 + METHODS.index(method)) / 5, number)
    record = made(task=task, model=model, ratio=ratio, seed=seed, id=f"{number:016x}")
    record["method"] = {"name": method}
    record["machine"] |= {"name": "made-up", "load": 0.0}
    record["calibration"] |= {"tokens": 100_020}
    for which in ("dense", "pruned"):
        metrics = score_of(task, arrays, which)
        record[which] |= {"metrics": metrics, "score": next(iter(metrics.values()))}
    record["pruned"] |= {"flops_kept": 1 - ratio, "params_kept": 1 - ratio}
    record["prune"] |= {"seconds": 8.0, "passes": 2.0, "peak_bytes": 5_000_000, "pass_seconds": 4.0, "stages": {"measure": 8.0}}
    speedup = 0.95 / (1 - ratio)
    record["latency"]["headline"] |= {"speedup": speedup, "low": speedup - 0.1, "high": speedup + 0.1}
    store.write(folder, record, arrays)


if __name__ == "__main__":
    for number, cell in enumerate(cells()[: int(sys.argv[2])]):
        write(Path(sys.argv[1]), number, *cell)
