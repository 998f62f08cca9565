"""Scoring a model on the whole evaluation split."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.config import Run, Task
from bench.dense.finding import Checkpoint
from bench.files import cache_folder, keep_file
from bench.model import PrunableModel
from bench.nn.sublayer import widened
from bench.stages import progress, say
from bench.tasks import KINDS
from bench.tasks.encoding import Encoded, Encoder, Examples
from bench.tasks.kind import Logits, Score
from bench.tasks.spans import NEVER

VERSION = 1  # of the cached dense scores: raised with what a score is computed from


@torch.no_grad()
def predict(module: nn.Module, encoder: Encoder, encoded: Sequence[Encoded], device: str) -> Logits:
    """What some examples' score is computed from, in their order: logits [examples, outputs] or [examples, T, 2], or what the kind of
    the task says. Batches are of similar length."""
    order = np.argsort([len(example["input_ids"]) for example in encoded], kind="stable")
    kind, found = KINDS[encoder.task.kind], list[Logits]()
    size = kind.scored_together(encoder.task)
    for start in progress(range(0, len(order), size), "scoring"):
        batch = encoder.batch([encoded[row] for row in order[start : start + size]], None, device)
        found.append(widened(kind.answers(module, batch)).cpu().numpy())
    answers = np.full((len(order), *found[-1].shape[1:]), NEVER, found[-1].dtype)  # the longest come last
    for start, part in zip(range(0, len(order), size), found, strict=True):
        rows = order[start : start + size]
        if part.ndim == 1:
            answers[rows] = part
        else:
            answers[rows, : part.shape[1]] = part  # of every token those that there are
    return answers


def everything(examples: Examples) -> list[Encoded]:
    """All examples of a split, tokenised."""
    return examples.encode(range(len(examples)))


def score(run: Run, module: nn.Module, encoder: Encoder, examples: Examples) -> Score:
    """Metrics of a model on the examples of the whole evaluation split."""
    return measured(run.task, predict(module, encoder, everything(examples), run.device), examples)


def measured(task: Task, logits: Logits, examples: Examples) -> Score:
    """The metrics of a task from the logits of its examples.

    Raises:
        ValueError: a logit is not finite; of questions it would look like "no answer".
    """
    if not np.isfinite(logits).all():
        raise ValueError("the model gives logits that are not finite")
    return KINDS[task.kind].score(task, logits, examples)


def arrays(task: Task, before: Score | None, after: Score | None, examples: Examples) -> dict[str, np.ndarray]:
    """What a record keeps of every example."""
    both = [
        (f"{name}_{which}", array) for which, side in (("dense", before), ("pruned", after)) if side for name, array in side.arrays.items()
    ]
    return {**KINDS[task.kind].stored(task, examples), **dict(both)}


def dense_score(run: Run, model: PrunableModel, checkpoint: Checkpoint, encoder: Encoder, examples: Examples) -> Score:
    """The dense model's score, measured once per content of checkpoint, split and task, then cached."""
    facts: list[Any] = [
        VERSION,
        checkpoint.sha256,
        checkpoint.label_map,
        examples.split.sha256,
        run.meaning()["task"],
        run.meaning()["model"],
        run.device,
    ]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    file = cache_folder() / "dense" / f"{key}.npy"
    try:
        logits = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        logits = predict(model.module, encoder, everything(examples), run.device)
        try:
            keep_file(file, lambda out: np.save(out, logits))
        except OSError as error:
            say(f"the dense score is not cached: {error}")
    result = measured(run.task, logits, examples)
    if checkpoint.expected is not None and (result.score is None or abs(result.score - checkpoint.expected) > 1):
        say(f"warning: the dense score is {result.text}, the model's card claims {checkpoint.expected:.2f}")
    return result
