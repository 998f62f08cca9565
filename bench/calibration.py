"""Tokenised examples: the calibration sample of a (task, seed), and the batches of both splits."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench.config import Arch, CalibrationPlan, Task
from bench.data import Split
from bench.errors import UserError, first_line
from bench.model import Batch, inputs_of

Rows = NDArray[np.intp]
Encoded = dict[str, list[int]]
CHUNK = 1024  # examples tokenised at a time


class Encoder:
    """A checkpoint's tokenizer under a task's length limit; its own stored padding and truncation are overridden."""

    def __init__(self, folder: Path, task: Task, arch: Arch) -> None:
        from transformers import AutoConfig, AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            self.positions = int(config.max_position_embeddings) - arch.position_offset
            self.max_length = int(min(task.max_length, self.tokenizer.model_max_length, self.positions))
            self.inputs = [name for name in self.tokenizer.model_input_names if name in self.tokenizer("a")]
        except Exception as error:
            raise UserError(f"{folder} holds no tokenizer that can be read: {type(error).__name__}: {first_line(error)}") from error
        if "attention_mask" not in self.inputs or self.tokenizer.pad_token_id is None or self.max_length < 3:
            raise UserError(f"{folder}: its tokenizer gives no attention mask, has no padding token, or no room for a text")

    def encode(self, split: Split, rows: Sequence[int] | Rows) -> list[Encoded]:
        """The token ids (and masks) of some rows of a split, truncated, not padded."""
        texts = [[column[row] for row in rows] for column in split.texts]
        coded = self.tokenizer(*texts, truncation=True, padding=False, max_length=self.max_length)
        return [{name: coded[name][i] for name in self.inputs} for i in range(len(rows))]

    def batch(self, examples: Sequence[Encoded], labels: np.ndarray | None, device: torch.device | str) -> Batch:
        """Pad on the right to the longest example: int64 tensors [B, T], labels [B]."""
        longest = max(len(example["input_ids"]) for example in examples)
        out: dict[str, torch.Tensor] = {}
        for name in examples[0]:
            pad = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}.get(name, 0)
            rows = [example[name] + [pad] * (longest - len(example[name])) for example in examples]
            out[name] = torch.tensor(rows, device=device)
        if labels is not None:
            kind = torch.float32 if labels.dtype == np.float64 else torch.int64
            out["labels"] = torch.as_tensor(labels, device=device).to(kind)
        return out


@dataclass(frozen=True)
class Calibration:
    """What a method may look at: batches in drawing order (labels only where it declares them), and its randomness.

    `rows` are the positions in train, `tokens` counts real tokens, `regression` says that labels are numbers.
    """

    batches: list[Batch]
    rows: Rows
    tokens: int
    regression: bool
    sha256: str
    generator: np.random.Generator

    @property
    def examples(self) -> int:
        """The number of examples, with repetition."""
        return len(self.rows)

    def without_labels(self) -> "Calibration":
        """The same sample, labels hidden."""
        hidden: list[Batch] = [inputs_of(batch) for batch in self.batches]
        return replace(self, batches=hidden)


def draw(plan: CalibrationPlan, task: Task, train: Split, encoder: Encoder, seed: int, device: str) -> Calibration:
    """The calibration sample of a (task, seed): the same examples for every method, only from train."""
    if plan.sampler == "legacy":
        rows = legacy_rows(len(train), plan.examples or max(1, int(plan.tokens / task.length)), seed)
        examples = encoder.encode(train, rows)
    else:
        rows, examples = _token_sample(plan, train, encoder, seed)
    batches = [
        encoder.batch(examples[i : i + plan.batch], train.labels[rows[i : i + plan.batch]], device) for i in range(0, len(rows), plan.batch)
    ]
    content = hashlib.sha256(rows.astype("<i8").tobytes())
    for example in examples:
        content.update(np.asarray(example["input_ids"], "<i8").tobytes())
    tokens = sum(len(example["input_ids"]) for example in examples)
    return Calibration(batches, rows, tokens, task.labels is None, content.hexdigest(), np.random.default_rng(seed))


def legacy_rows(rows: int, count: int, seed: int) -> Rows:
    """The published sample: drawn with replacement by numpy's RandomState (algorithms, section 1.5)."""
    return np.random.RandomState(seed).choice(rows, count)


def _token_sample(plan: CalibrationPlan, train: Split, encoder: Encoder, seed: int) -> tuple[Rows, list[Encoded]]:
    """A seeded permutation of train, cut where enough real tokens (or examples) are reached."""
    order = np.random.default_rng(seed).permutation(len(train))
    taken: list[Encoded] = []
    tokens = 0
    for example in _encode_in_order(order, train, encoder):
        taken.append(example)
        tokens += len(example["input_ids"])
        if len(taken) == plan.examples or (plan.examples is None and tokens >= plan.tokens):
            break
    return order[: len(taken)], taken


def _encode_in_order(order: Rows, train: Split, encoder: Encoder) -> Iterator[Encoded]:
    for start in range(0, len(order), CHUNK):
        yield from encoder.encode(train, order[start : start + CHUNK])
