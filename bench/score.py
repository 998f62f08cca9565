"""Loading a dense checkpoint strictly, and scoring a model on the whole evaluation split."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench import weights
from bench.config import Run, Task
from bench.data import Split
from bench.dense import Checkpoint
from bench.encoding import Encoded, Encoder, Examples
from bench.errors import UserError, first_line
from bench.files import cache_folder, keep_file
from bench.model import PrunableModel
from bench.stages import progress, say
from bench.tasks import KINDS
from bench.tasks.kind import Logits, Score
from bench.tasks.spans import NEVER

BATCH = 32
VERSION = 1  # of the cached dense scores: raised with what a score is computed from


def load_dense(run: Run, checkpoint: Checkpoint) -> PrunableModel:
    """The dense model in float32 on the run's device, its outputs in the order of the task's labels.

    Raises:
        UserError: a weight of the model is not in the file, or has another shape.
    """
    module, lacking = load_module(run, checkpoint.folder)
    weights.refuse_lacking(checkpoint.folder, lacking)
    if run.task.labels:
        _order_outputs(module.get_submodule(run.model.arch.head[-1]), output_labels(run, checkpoint))
    return PrunableModel(module.to(run.device), run.model.arch, KINDS[run.task.kind])


def load_module(run: Run, folder: Path, **config: Any) -> tuple[Any, list[str]]:
    """A transformers folder in float32 as the model that the task needs, and the weights that it lacks or has in another shape.

    Raises:
        UserError: transformers cannot load it.
    """
    try:
        module, info = KINDS[run.task.kind].from_pretrained(
            folder,
            num_labels=run.task.outputs,
            dtype=torch.float32,
            attn_implementation=run.model.attention,
            output_loading_info=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # told by name below
            **config,
        )
    except Exception as error:
        raise UserError(f"{folder} cannot be loaded: {type(error).__name__}: {first_line(error)}") from error
    return module, sorted([*info["missing_keys"], *(f"{name} of the config's shape" for name, *_ in info["mismatched_keys"])])


def output_labels(run: Run, checkpoint: Checkpoint) -> list[int]:
    """The task's label for each of the model's outputs: as listed, else by name where names match, else by number."""
    labels = run.task.labels
    if checkpoint.label_map:
        if sorted(checkpoint.label_map) != list(range(run.task.outputs)):
            raise UserError(f"label_map={checkpoint.label_map} of {run.model_name} for {run.task_name} is no permutation of its labels")
        return checkpoint.label_map
    named = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8")).get("id2label")
    if labels and isinstance(named, dict) and len(named) == len(labels):
        found = _by_name([str(named.get(str(i), i)) for i in range(len(labels))], labels)
        return found or list(range(run.task.outputs))
    return list(range(run.task.outputs))


def _by_name(names: list[str], labels: list[str]) -> list[int] | None:
    """The place among the labels of each name; None where they are not the same names. They are compared as they are first, then
    without regard to case, then by their letters and digits alone, as far as that still tells the labels apart."""
    for plain in (str, _caseless, _alphanumeric):
        found, wanted = [plain(name) for name in names], [plain(label) for label in labels]
        if all(wanted) and len(set(wanted)) == len(wanted) and sorted(found) == sorted(wanted):
            return [wanted.index(name) for name in found]
    return None


def _caseless(name: str) -> str:
    return name.strip().casefold()


def _alphanumeric(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


@torch.no_grad()
def _order_outputs(head: nn.Module, labels: list[int]) -> None:
    last = [module for module in head.modules() if isinstance(module, nn.Linear)][-1]
    rows = [labels.index(label) for label in range(len(labels))]
    last.weight.copy_(last.weight[rows].clone())
    if last.bias is not None:
        last.bias.copy_(last.bias[rows].clone())


@torch.no_grad()
def predict(module: nn.Module, encoder: Encoder, encoded: Sequence[Encoded], device: str) -> Logits:
    """Logits of some examples in their order, [examples, outputs] or [examples, T, 2]; batches are of similar length."""
    order = np.argsort([len(example["input_ids"]) for example in encoded], kind="stable")
    kind, found = KINDS[encoder.task.kind], list[Logits]()
    for start in progress(range(0, len(order), BATCH), "scoring"):
        batch = encoder.batch([encoded[row] for row in order[start : start + BATCH]], None, device)
        found.append(kind.logits(module, batch).float().cpu().numpy())
    logits = np.full((len(order), *found[-1].shape[1:]), NEVER, np.float32)  # the longest come last
    for start, part in zip(range(0, len(order), BATCH), found, strict=True):
        rows = order[start : start + BATCH]
        logits[rows, : part.shape[1]] = part  # of every token those that there are
    return logits


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


def arrays(task: Task, before: Score | None, after: Score | None, split: Split) -> dict[str, np.ndarray]:
    """What a record keeps of every example."""
    both = [
        (f"{name}_{which}", array) for which, side in (("dense", before), ("pruned", after)) if side for name, array in side.arrays.items()
    ]
    return {**KINDS[task.kind].stored(task, split), **dict(both)}


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
