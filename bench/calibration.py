"""The calibration sample of a (task, seed)."""

import hashlib
import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch

from bench.config import CalibrationPlan, Task
from bench.encoding import Encoded, Encoder, Examples, Rows
from bench.model import Batch, places_of

CHUNK = 1024  # examples tokenised at a time
MICRO_TOKENS = {"cpu": 384, "cuda": 16384}  # real tokens of a micro-batch: what a cache holds, what fills a GPU


@dataclass(frozen=True)
class Calibration:
    """What a method may look at: batches in drawing order (labels only where it declares them), and its randomness.

    `parts` holds every batch once more, cut into micro-batches of examples of similar length: less padding, less memory.
    What is a sum over a batch is the sum over its parts. `rows` are the positions among train's examples, `tokens` counts
    real tokens. `kind` is what the task asks for, as in bench.config.Task: labels are class indices [B] (classification),
    numbers [B] (regression), or the tokens of start and end [B, 2] (span).
    """

    batches: list[Batch]
    parts: list[list[Batch]]
    rows: Rows
    tokens: int
    kind: str
    sha256: str
    generator: np.random.Generator

    @property
    def examples(self) -> int:
        """The number of examples, with repetition."""
        return len(self.rows)

    @property
    def all_parts(self) -> list[Batch]:
        """The micro-batches of all batches, for what is a sum over the set."""
        return list(itertools.chain.from_iterable(self.parts))

    def without_labels(self) -> "Calibration":
        """The same sample, labels hidden."""
        return replace(self, batches=_unlabelled(self.batches), parts=[_unlabelled(parts) for parts in self.parts])


def _unlabelled(batches: list[Batch]) -> list[Batch]:
    return [{name: tensor for name, tensor in batch.items() if name != "labels"} for batch in batches]


def split(batch: Batch, tokens: int) -> list[Batch]:
    """Micro-batches of at most so many real tokens (or one example), the shortest examples first."""
    lengths = batch["attention_mask"].sum(1).tolist()
    chunks: list[list[int]] = [[]]
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if chunks[-1] and sum(lengths[other] for other in chunks[-1]) + lengths[row] > tokens:
            chunks.append([])
        chunks[-1].append(row)
    return [_cut(batch, rows, [lengths[row] for row in rows]) for rows in chunks]


def _cut(batch: Batch, rows: list[int], lengths: list[int]) -> Batch:
    longest, mask = max(lengths), batch["attention_mask"]
    picked = torch.tensor(rows, device=mask.device)
    part = {name: tensor.index_select(0, picked) for name, tensor in batch.items() if name != "places"}
    part = {name: tensor[:, :longest].contiguous() if tensor.shape[1:] == mask.shape[1:] else tensor for name, tensor in part.items()}
    return {**part, "places": places_of(lengths, mask.device)}


def draw(plan: CalibrationPlan, task: Task, examples: Examples, encoder: Encoder, seed: int, device: str) -> Calibration:
    """The calibration sample of a (task, seed): the same examples of train for every method."""
    if plan.sampler == "legacy":
        rows = legacy_rows(len(examples), plan.examples or max(1, int(plan.tokens / task.length)), seed)
        taken = examples.encode(rows)
    else:
        rows, taken = _token_sample(plan, examples, seed)
    labels = examples.labels(rows)
    starts = range(0, len(rows), plan.batch)
    batches = [encoder.batch(taken[i : i + plan.batch], labels[i : i + plan.batch], device) for i in starts]
    parts = [split(batch, MICRO_TOKENS["cuda" if device == "cuda" else "cpu"]) for batch in batches]
    content = hashlib.sha256(rows.astype("<i8").tobytes())
    for example in taken:
        content.update(np.asarray(example["input_ids"], "<i8").tobytes())
    tokens = sum(len(example["input_ids"]) for example in taken)
    return Calibration(batches, parts, rows, tokens, task.kind, content.hexdigest(), np.random.default_rng(seed))


def legacy_rows(rows: int, count: int, seed: int) -> Rows:
    """The published sample: drawn with replacement by numpy's RandomState (algorithms, section 1.5)."""
    return np.random.RandomState(seed).choice(rows, count)


def _token_sample(plan: CalibrationPlan, examples: Examples, seed: int) -> tuple[Rows, list[Encoded]]:
    """A seeded permutation of train, cut where enough real tokens (or examples) are reached."""
    order = np.random.default_rng(seed).permutation(len(examples))
    taken: list[Encoded] = []
    tokens = 0
    for start in range(0, len(order), CHUNK):
        for example in examples.encode(order[start : start + CHUNK]):
            taken.append(example)
            tokens += len(example["input_ids"])
            if len(taken) == plan.examples or (plan.examples is None and tokens >= plan.tokens):
                return order[: len(taken)], taken
    return order, taken
