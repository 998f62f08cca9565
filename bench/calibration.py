"""The calibration sample of a (task, seed)."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.config import CalibrationPlan, Task
from bench.nn.packing import NOT_INPUTS, Batch, places_of
from bench.tasks import KINDS
from bench.tasks.encoding import Encoded, Encoder, Examples, Positions
from bench.tasks.kind import Kind

if TYPE_CHECKING:
    from bench.model import PrunableModel
    from bench.training import Training

CHUNK = 1024  # examples tokenised at a time
CPU_TOKENS, CPU_TOKENS_WIDE, WIDE = 384, 256, 512  # real tokens of a micro-batch; fewer in models wider than this
GPU_TOKENS, GPU_GIB, GPU_MOST = 8192, 16, 4  # so many for each of so many GiB of a GPU, at most four times


@dataclass(frozen=True)
class Calibration:
    """What a method may look at: batches in drawing order (labels only where it declares them), and its randomness.

    `parts` holds the batches once more as groups of micro-batches of about the size that suits the device: one batch in
    several, cut by length (less padding, less memory), or several batches in one (a GPU is not kept waiting). What is a
    sum over a group's batches is the sum over its parts. A part's `shares` [B] are its examples' shares of their batch's
    mean, its `owners` [batches, tokens] say with 1 and 0 which batch a token belongs to, where it holds several.
    `rows` are the positions among train's examples, `tokens` counts real tokens. `kind` is what the task asks for and says what the
    labels are (bench.tasks).
    """

    batches: list[Batch]
    parts: list[list[Batch]]
    rows: Positions
    tokens: int
    kind: Kind
    sha256: str
    generator: np.random.Generator
    training: "Training | None" = None  # the whole train split, for a method that declares it

    @property
    def examples(self) -> int:
        """The number of examples, with repetition."""
        return len(self.rows)

    @property
    def all_parts(self) -> list[Batch]:
        """The micro-batches of all batches, for what is a sum over the set."""
        return list(itertools.chain.from_iterable(self.parts))

    def singles(self) -> list[Batch]:
        """Every example as a batch of its own, without padding."""
        lengths = torch.cat([batch["attention_mask"].sum(1) for batch in self.batches]).tolist()  # at once: a GPU is waited for
        rows = ((batch, row) for batch in self.batches for row in range(len(batch["attention_mask"])))
        return [_cut(batch, [row], [length]) for (batch, row), length in zip(rows, lengths, strict=True)]

    def labelled(self, kind: Kind, labels: Sequence[Tensor], tokens: int) -> "Calibration":
        """The same sample with other labels, those of each batch, for a kind that knows them; in micro-batches of so many tokens."""
        batches: list[Batch] = [{**batch, "labels": own} for batch, own in zip(self.batches, labels, strict=True)]
        return replace(self, batches=batches, parts=grouped(batches, tokens), kind=kind)

    def of(self, model: "PrunableModel") -> "Calibration":
        """The same sample as a method of this model sees it: its kind knows what the model's loss needs."""
        return replace(self, kind=self.kind.of(model))

    def without_labels(self) -> "Calibration":
        """The same sample, labels hidden."""
        return replace(self, batches=_unlabelled(self.batches), parts=[_unlabelled(parts) for parts in self.parts])


def _unlabelled(batches: list[Batch]) -> list[Batch]:
    return [{name: tensor for name, tensor in batch.items() if name != "labels"} for batch in batches]


def grouped(batches: Sequence[Batch], tokens: int) -> list[list[Batch]]:
    """`parts` of a calibration sample, of at most so many real tokens each (or one example)."""
    runs: list[list[tuple[Batch, list[int]]]] = []
    for batch in batches:
        lengths: list[int] = batch["attention_mask"].sum(1).tolist()
        if not runs or sum(sum(own) for _, own in runs[-1]) + sum(lengths) > tokens:
            runs.append([])
        runs[-1].append((batch, lengths))
    return [[_joined(*zip(*run, strict=True))] if len(run) > 1 else _split(*run[0], tokens) for run in runs]


def _joined(batches: Sequence[Batch], lengths: Sequence[list[int]]) -> Batch:
    """Several batches, with the lengths of their examples, as one part."""
    longest = max(batch["attention_mask"].shape[1] for batch in batches)
    names = [name for name in batches[0] if name != "places"]
    part = {name: torch.cat([_padded(name, batch[name], longest) for batch in batches]) for name in names}
    device = part["attention_mask"].device
    tokens = torch.tensor([sum(own) for own in lengths], device=device)
    return {
        **part,
        "places": places_of(list(itertools.chain.from_iterable(lengths)), device),
        "shares": torch.cat([_shares(len(own), len(own), device) for own in lengths]),
        "owners": torch.eye(len(batches), device=device).repeat_interleave(tokens, 1),
    }


def _padded(name: str, tensor: Tensor, length: int) -> Tensor:
    return tensor if name in NOT_INPUTS else F.pad(tensor, (0, length - tensor.shape[1]))


def _shares(examples: int, of: int, device: torch.device) -> Tensor:
    return torch.full((examples,), 1 / of, dtype=torch.float64, device=device)


def _split(batch: Batch, lengths: list[int], tokens: int) -> list[Batch]:
    """One batch as micro-batches, the shortest examples first."""
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
    part = {name: tensor if name in NOT_INPUTS else tensor[:, :longest].contiguous() for name, tensor in part.items()}
    return {**part, "places": places_of(lengths, mask.device), "shares": _shares(len(rows), len(mask), mask.device)}


def draw(plan: CalibrationPlan, task: Task, examples: Examples, encoder: Encoder, seed: int, device: str) -> Calibration:
    """The calibration sample of a (task, seed): the same examples of train for every method."""
    if plan.sampler == "legacy":
        together = KINDS[task.kind].together
        count = (plan.examples or max(1, int(plan.tokens / task.length))) // together
        rows = _expanded(legacy_rows(len(examples) // together, count, seed), together)
        taken = examples.encode(rows)
    else:
        rows, taken = _token_sample(plan, examples, seed, KINDS[task.kind].together)
    labels = examples.labels(rows) if examples.split.labelled else None
    starts = range(0, len(rows), plan.batch)
    batches = [encoder.batch(taken[i : (j := i + plan.batch)], None if labels is None else labels[i:j], device) for i in starts]
    parts = grouped(batches, micro_tokens(device, encoder.hidden))
    content = hashlib.sha256(rows.astype("<i8").tobytes())
    for example in taken:
        content.update(np.asarray(example["input_ids"], "<i8").tobytes())
    tokens = sum(len(example["input_ids"]) for example in taken)
    return Calibration(batches, parts, rows, tokens, KINDS[task.kind], content.hexdigest(), np.random.default_rng(seed))


def micro_tokens(device: str, hidden: int) -> int:
    """Real tokens of a micro-batch for a model of so many hidden dimensions: few enough for a CPU's cache and, in wide models, for
    its memory; on a GPU, which waits for its processor to issue operators, as many as leave half of its memory free with models of
    base size."""
    if device != "cuda":
        return CPU_TOKENS if hidden <= WIDE else CPU_TOKENS_WIDE
    gib = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2**30
    return GPU_TOKENS * min(max(int(gib // GPU_GIB), 1), GPU_MOST)


def legacy_rows(rows: int, count: int, seed: int) -> Positions:
    """The published sample: drawn with replacement by numpy's RandomState (algorithms, section 1.5)."""
    return np.random.RandomState(seed).choice(rows, count)


def _expanded(drawn: Positions, together: int) -> Positions:
    """The rows of examples that are drawn together, of what was drawn."""
    return (drawn[:, None] * together + np.arange(together)).ravel()


def _token_sample(plan: CalibrationPlan, examples: Examples, seed: int, together: int) -> tuple[Positions, list[Encoded]]:
    """A seeded permutation of train, cut where enough real tokens (or examples) are reached and nothing is torn apart."""
    order = _expanded(np.random.default_rng(seed).permutation(len(examples) // together), together)
    taken: list[Encoded] = []
    tokens = 0
    for start in range(0, len(order), CHUNK):
        for example in examples.encode(order[start : start + CHUNK]):
            taken.append(example)
            tokens += len(example["input_ids"])
            enough = len(taken) >= plan.examples if plan.examples else tokens >= plan.tokens
            if enough and len(taken) % together == 0:
                return order[: len(taken)], taken
    return order, taken
