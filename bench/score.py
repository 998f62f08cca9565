"""Loading a dense checkpoint strictly, and scoring a model on the whole evaluation split."""

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bench import metrics
from bench.calibration import Encoder
from bench.config import Run
from bench.data import Split
from bench.dense import Checkpoint
from bench.errors import UserError, first_line
from bench.files import cache_folder
from bench.model import PrunableModel
from bench.stages import progress, say

BATCH = 32
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """Logits [examples, outputs] in row order of the split, the metrics in percent, and the one that is the score."""

    logits: Logits
    metrics: dict[str, float]
    score: float


def load_dense(run: Run, checkpoint: Checkpoint) -> PrunableModel:
    """The dense model in float32 on the run's device, its outputs in the order of the task's labels.

    Raises:
        UserError: a weight of the model is not in the file, or has another shape.
    """
    module, lacking = load_module(run, checkpoint.folder)
    if lacking:
        raise UserError(f"{checkpoint.folder} lacks weights of the model: {', '.join(lacking[:3])}{', …' * (len(lacking) > 3)}")
    _order_outputs(module.get_submodule(run.model.arch.head[-1]), output_labels(run, checkpoint))
    return PrunableModel(module.to(run.device), run.model.arch)


def load_module(run: Run, folder: Path, **config: Any) -> tuple[Any, list[str]]:
    """A transformers folder as a classifier in float32, and the weights that it lacks or has in another shape.

    Raises:
        UserError: transformers cannot load it.
    """
    from transformers import AutoModelForSequenceClassification

    try:
        module, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=run.task.outputs,
            dtype=torch.float32,
            attn_implementation=run.model.attention,
            output_loading_info=True,
            local_files_only=True,
            **config,
        )
    except Exception as error:
        raise UserError(f"{folder} cannot be loaded: {type(error).__name__}: {first_line(error)}") from error
    return module, sorted([*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])])


def output_labels(run: Run, checkpoint: Checkpoint) -> list[int]:
    """The task's label for each of the model's outputs: as listed, else by name where names match, else by number."""
    labels = run.task.labels
    if checkpoint.label_map:
        if sorted(checkpoint.label_map) != list(range(run.task.outputs)):
            raise UserError(f"label_map={checkpoint.label_map} of {run.model_name} for {run.task_name} is no permutation of its labels")
        return checkpoint.label_map
    named = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8")).get("id2label")
    if labels and isinstance(named, dict) and len(named) == len(labels):
        names = [_plain(str(named.get(str(i), i))) for i in range(len(labels))]
        if sorted(names) == sorted(map(_plain, labels)):
            return [list(map(_plain, labels)).index(name) for name in names]
    return list(range(run.task.outputs))


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


@torch.no_grad()
def _order_outputs(head: nn.Module, labels: list[int]) -> None:
    last = [module for module in head.modules() if isinstance(module, nn.Linear)][-1]
    rows = [labels.index(label) for label in range(len(labels))]
    last.weight.copy_(last.weight[rows].clone())
    if last.bias is not None:
        last.bias.copy_(last.bias[rows].clone())


@torch.no_grad()
def predict(module: nn.Module, encoder: Encoder, split: Split, device: str) -> Logits:
    """Logits of every example in row order; batches are made of examples of similar length."""
    examples = encoder.encode(split, range(len(split)))
    order = np.argsort([len(example["input_ids"]) for example in examples], kind="stable")
    parts = []
    for start in progress(range(0, len(order), BATCH), "scoring"):
        batch = encoder.batch([examples[row] for row in order[start : start + BATCH]], None, device)
        parts.append(module(**batch).logits.float())
    logits = np.empty((len(order), parts[0].shape[1]), np.float32)
    logits[order] = torch.cat(parts).cpu().numpy()
    return logits


def score(run: Run, module: nn.Module, encoder: Encoder, split: Split) -> Score:
    """Logits and metrics of a model on the whole evaluation split."""
    return _measured(run, predict(module, encoder, split, run.device), split)


def _measured(run: Run, logits: Logits, split: Split) -> Score:
    values = metrics.compute(run.task.metrics, logits, split.labels)
    return Score(logits, values, values[run.task.score])


def dense_score(run: Run, model: PrunableModel, checkpoint: Checkpoint, encoder: Encoder, split: Split) -> Score:
    """The dense model's score, measured once per content of checkpoint, split and protocol, then cached."""
    facts: list[Any] = [checkpoint.sha256, checkpoint.label_map, split.sha256, run.meaning()["task"], run.meaning()["model"], run.device]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    file = cache_folder() / "dense" / f"{key}.npy"
    try:
        logits = np.load(file, allow_pickle=False)
    except (OSError, ValueError):
        logits = predict(model.module, encoder, split, run.device)
        _keep(file, logits)
    result = _measured(run, logits, split)
    if checkpoint.expected is not None and abs(result.score - checkpoint.expected) > 1:
        say(f"warning: the dense score is {result.score:.2f}, the model's card claims {checkpoint.expected:.2f}")
    return result


def _keep(file: Any, logits: Logits) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, half = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "wb") as out:
            np.save(out, logits)
        os.replace(half, file)
    except OSError as error:
        say(f"the dense score is not cached: {error}")
