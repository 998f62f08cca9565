"""Loading a checkpoint strictly: every weight has to be there, and the outputs come in the order of the task's labels."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.config import Run
from bench.dense import weights
from bench.dense.finding import Checkpoint
from bench.errors import UserError, first_line
from bench.model import PrunableModel
from bench.tasks import KINDS


def load(run: Run, checkpoint: Checkpoint) -> PrunableModel:
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
