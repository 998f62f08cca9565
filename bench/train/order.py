"""The examples of a training: which of train, in which order, and as batches."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from bench.config import ModelTuning, Task
from bench.tasks import KINDS
from bench.tasks.encoding import Encoded, Encoder, Examples, Positions

POOL = 50  # batches among whose examples those of similar length are put together


def rows(train: Examples, task: Task, recipe: ModelTuning) -> Positions:
    """A permutation of train's examples, the same every time, cut at the recipe's number of tokens."""
    order = np.random.default_rng(0).permutation(len(train))
    limits = [limit for limit in (task.tuning.max_tokens, recipe.max_tokens) if limit]
    if limits:
        few = order[: min(limits) // 4]  # an example has four tokens at the least
        lengths = np.cumsum([len(example["input_ids"]) for example in train.encode(few)])
        order = few[: max(1, int(np.searchsorted(lengths, min(limits), side="right")))]
    return order


def labelled(train: Examples, task: Task, recipe: ModelTuning) -> list[Encoded]:
    """Those examples, tokenised, with their labels."""
    chosen = rows(train, task, recipe)
    coded, labels = train.encode(chosen), train.labels(chosen)
    return [example | {"label": label} for example, label in zip(coded, labels, strict=True)]


def updates(examples: int, batch: int, epochs: float) -> int:
    """How many there are in so many epochs, at least one."""
    return max(1, int(-(-examples // batch) * epochs))


class Drawn(Dataset[Encoded]):
    """The examples of a whole training in the order of its updates: permutations of train by a seed, one an epoch, in which
    examples of a batch are of similar length (less padding). However many processes or micro-batches share an update, it is
    the same, and an interrupted training goes on with the examples that come next."""

    def __init__(self, examples: Sequence[Encoded], steps: int, batch: int, seed: int) -> None:
        self.examples = examples
        lengths = np.array([len(example["input_ids"]) for example in examples])
        random, parts, drawn = np.random.default_rng(seed), list[NDArray[np.intp]](), 0
        while drawn < steps * batch:
            parts.append(_epoch(lengths, batch, random))
            drawn += len(parts[-1])
        self.order = np.concatenate(parts)[: steps * batch]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> Encoded:
        return self.examples[int(self.order[place])]


def _epoch(lengths: NDArray[np.intp], batch: int, random: np.random.Generator) -> NDArray[np.intp]:
    """Every example once, in batches of similar length in random order; the last is filled up with examples drawn again."""
    order = random.permutation(len(lengths))
    order = np.concatenate([order, random.choice(len(lengths), -len(order) % batch)])
    pools = [order[start : start + POOL * batch] for start in range(0, len(order), POOL * batch)]
    batches = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")].reshape(-1, batch) for pool in pools])
    return batches[random.permutation(len(batches))].ravel()


def collate(encoder: Encoder, examples: Sequence[Encoded]) -> dict[str, Tensor]:
    """Some examples with labels as a padded batch; with the teacher's logits [B, outputs] or [B, T, 2] where they have them."""
    out = dict(encoder.batch(examples, np.array([example["label"] for example in examples]), "cpu"))
    out.pop("places", None)
    if "teacher" in examples[0]:
        logits = torch.as_tensor(np.stack([example["teacher"] for example in examples]))
        out["teacher"] = KINDS[encoder.task.kind].cut(logits, out["input_ids"].shape[1])
    return out
