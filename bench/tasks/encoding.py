"""Texts as a model reads them: a checkpoint's tokenizer under a task's length limit, and padded batches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from bench.config import Arch, Task
from bench.errors import UserError, first_line
from bench.nn.packing import Batch, places_of
from bench.tasks import KINDS
from bench.tasks.data import Split

Positions = NDArray[np.intp]
Encoded = dict[str, list[int]]


class Examples(Protocol):
    """The examples of a split: its rows, or the windows of its questions' contexts. `cut`: those of them, as far as they have been
    encoded, whose text (of windows: whose question) was too long for the model."""

    split: Split
    cut: set[int]

    def __len__(self) -> int: ...

    def encode(self, rows: Sequence[int] | Positions) -> list[Encoded]:
        """The token ids (and masks) of some examples, truncated, not padded."""

    def labels(self, rows: Sequence[int] | Positions) -> np.ndarray:
        """Class indices or numbers [n], or the tokens of start and end [n, 2]."""


def told_cut(cut: dict[str, tuple[int, int]]) -> str | None:
    """In words how many examples of how many were cut, by where they are from; None where none was."""
    some = [f"{count} of {total} {name} examples" for name, (count, total) in cut.items() if count]
    return f"cut, being too long for the model or the task's max_length: {', '.join(some)}" if some else None


def tells_segments_apart(config: Any) -> bool:
    """Whether a model takes token_type_ids. A DistilBERT does not, though its tokenizer, which is BERT's, may give them."""
    return getattr(config, "type_vocab_size", 1) > 1


class Encoder:
    """A checkpoint's tokenizer under a task's length limit; its own stored padding and truncation are overridden.

    `config`: of the model, where the folder's is none that transformers knows.
    """

    def __init__(self, folder: Path, task: Task, arch: Arch, config: Any = None) -> None:
        from transformers import AutoConfig, AutoTokenizer

        self.task = task
        try:
            config = config or AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True, trust_remote_code=False)
            self.hidden = int(getattr(config, arch.hidden))
            self.positions = int(config.max_position_embeddings) - arch.position_offset
            self.max_length = int(min(task.max_length, self.tokenizer.model_max_length, self.positions))
            names = [name for name in self.tokenizer.model_input_names if name in self.tokenizer("a")]
            self.inputs = [name for name in names if name != "token_type_ids" or tells_segments_apart(config)]
        except Exception as error:
            raise UserError(f"{folder} holds no tokenizer that can be read: {type(error).__name__}: {first_line(error)}") from error
        if len(self.tokenizer) > config.vocab_size:
            words = f"{len(self.tokenizer)} words, its model {config.vocab_size}"
            raise UserError(f"{folder}: its tokenizer has {words}")
        self.padding = self.tokenizer.pad_token_id
        if self.padding is None and not KINDS[task.kind].padded:
            self.padding = 0  # never looked at
        if "attention_mask" not in self.inputs or self.padding is None or self.max_length < 3:
            raise UserError(f"{folder}: its tokenizer gives no attention mask, has no padding token, or no room for a text")

    def examples(self, split: Split, scored: bool = False) -> Examples:
        """The examples of a split. `scored`: it is the one that models are scored on."""
        return KINDS[self.task.kind].examples(self, split, scored)

    def batch(self, examples: Sequence[Encoded], labels: np.ndarray | None, device: torch.device | str) -> Batch:
        """Pad on the right to the longest example: int64 tensors [B, T], labels [B] or [B, 2]."""
        lengths = [len(example["input_ids"]) for example in examples]
        longest = max(lengths)
        out: dict[str, torch.Tensor] = {}
        for name in self.inputs:
            pad = {"input_ids": self.padding, "token_type_ids": self.tokenizer.pad_token_type_id}.get(name, 0)
            rows = [example[name] + [pad] * (longest - len(example[name])) for example in examples]
            out[name] = torch.tensor(rows, device=device)
        out["places"] = places_of(lengths, device)
        if labels is not None:
            kind = torch.float32 if labels.dtype == np.float64 else torch.int64
            out["labels"] = torch.as_tensor(labels, device=device).to(kind)
        return out


class Rows:
    """Every row of a split is an example, tokenised when it is asked for."""

    def __init__(self, encoder: Encoder, split: Split) -> None:
        self.encoder, self.split = encoder, split
        self.cut: set[int] = set()

    def __len__(self) -> int:
        return len(self.split)

    def encode(self, rows: Sequence[int] | Positions) -> list[Encoded]:
        """The token ids (and masks) of some rows."""
        texts = [[column[row] for row in rows] for column in self.split.texts]
        coded = self.encoder.tokenizer(*texts, truncation=True, padding=False, max_length=self.encoder.max_length)
        self.cut |= {int(row) for row, one in zip(rows, coded.encodings or (), strict=False) if one.overflowing}
        return [{name: coded[name][i] for name in self.encoder.inputs} for i in range(len(rows))]

    def labels(self, rows: Sequence[int] | Positions) -> np.ndarray:
        """The labels of some rows."""
        found: np.ndarray = self.split.labels[np.asarray(rows, dtype=np.intp)]
        return found
