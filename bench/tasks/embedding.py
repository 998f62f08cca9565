"""A sentence encoder as it is published: the mean of its tokens, normalised. Nothing is fine-tuned.

The texts of a task come in pairs. `options.measure` says what an embedding is judged by: *similarity*, the rank correlation of
the pairs' cosines with gold numbers; or *search*, where the first text of every pair has to find its second one among all.
`options.positive` is the gold similarity from which on two texts count as a positive pair.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.tasks import columns
from bench.tasks.kind import Kind, Logits, Score
from bench.tasks.regression import correlated

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from torch import Tensor, nn

    from bench.calibration import Calibration
    from bench.config import Arch, Task
    from bench.masks import Masks
    from bench.model import PrunableModel
    from bench.nn.packing import Batch, Context
    from bench.tasks.data import Split
    from bench.tasks.encoding import Encoded, Encoder, Examples, Positions

SCALE = 20.0  # of cosines in the contrastive loss, as sentence-transformers has it (Reimers and Gurevych 2019)
FIRST = 10  # ranks that count for MRR@10
NOBODY = -1  # in labels: no partner, or no other example
QUERIES = 1024  # compared with all documents at a time


class Embedding(Kind):
    """Logits are embeddings [B, d]; an example is one text, the two of a pair are drawn together."""

    name = "embedding"
    metrics = frozenset({"spearman", "pearson", "mrr@10", "recall@1"})
    transformers_class = "AutoModel"
    output_names = ("embedding",)
    reads_first_tokens = False
    fine_tuned = False
    together = 2

    def outputs(self, task: "Task") -> int:
        """None: an embedding has the model's width."""
        return 0

    def check(self, task: "Task") -> tuple[str, Any, bool, str] | None:
        """Pairs of texts, measured in one of the two ways."""
        measure, allowed = task.options.get("measure"), {"similarity": {"spearman", "pearson"}, "search": {"mrr@10", "recall@1"}}
        if measure not in allowed:
            return "options.measure", measure, False, "similarity or search"
        if unknown := sorted(set(task.options) - {"measure", "positive"}):
            return f"options.{unknown[0]}", task.options[unknown[0]], False, "an option of an embedding: measure or positive"
        if len(task.columns) != 2:
            return "columns", task.columns, False, "two columns, the texts of a pair"
        other = next((name for name in task.metrics if name not in allowed[measure]), None)
        return ("metrics", other, False, f"one of {', '.join(sorted(allowed[measure]))} for measure: {measure}") if other else None

    def head(self, arch: "Arch") -> list[str]:
        """None."""
        return []

    def columns(self, task: "Task", names: Sequence[str]) -> list[str]:
        """Gold similarities; a search needs no label."""
        return [task.label] if task.options["measure"] == "similarity" else []

    def labels(self, table: "pa.Table", task: "Task", texts: list[list[str]], where: str) -> Mapping[str, Any]:
        """Gold similarities, or of a search the number of each query's document."""
        if task.options["measure"] == "similarity":
            return {"labels": columns.numbers(table[task.label], where)}
        return {"labels": np.arange(len(texts[0]), dtype=np.int64)}

    def examples(self, encoder: "Encoder", split: "Split", scored: bool = False) -> "Examples":
        """Every text of every pair."""
        return Texts(encoder, split)

    def from_config(self, config: Any, **how: Any) -> "nn.Module":
        """An encoder of new weights with its pooling."""
        return _pooled(super().from_config(config, **how))

    def from_pretrained(self, folder: Any, **how: Any) -> Any:
        """The encoder of a transformers folder with its pooling; a BERT's own pooler is not used."""
        how.pop("num_labels", None)
        found = super().from_pretrained(folder, **how)
        if not how.get("output_loading_info"):
            return _pooled(found)
        encoder, info = found
        missing = {name for name in info["missing_keys"] if not str(name).startswith("pooler.")}
        return _pooled(encoder), {**info, "missing_keys": missing}

    def logits(self, module: "nn.Module", batch: "Batch") -> "Tensor":
        """Embeddings [B, d]."""
        from bench.nn.packing import inputs_of

        return module(**inputs_of(batch)).embedding  # type: ignore[no-any-return]

    def output(self, model: "PrunableModel", hidden: "Tensor", context: "Context") -> "Tensor":
        """The same from the last hidden state."""
        return pooled(context.pad(hidden), None if context.mask is None else context.mask[:, 0, 0])

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Only a supervised sample has one."""
        raise ValueError("an embedding's loss is that of pairs: kind.supervised(model, calibration) gives a sample that has it")

    def divergence(self, student: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
        """Squared distance of the embeddings."""
        return (student - teacher).square().sum(1)

    def supervised(self, model: "PrunableModel", calibration: "Calibration") -> "Calibration":
        """The sample with a contrastive loss: each text has to be nearer to its partner than to the other texts of its batch. These
        candidates are the model's embeddings before pruning and stay as they are, so that each example's loss stands alone."""
        import torch

        from bench.calibration import micro_tokens

        with torch.no_grad():
            candidates = torch.cat([model.forward(batch) for batch in calibration.batches]).float()
        starts = np.cumsum([0, *(len(batch["labels"]) for batch in calibration.batches)]).tolist()
        widest = max(len(batch["labels"]) for batch in calibration.batches)
        labels = [_rivals(batch["labels"], start, widest) for batch, start in zip(calibration.batches, starts, strict=False)]
        return calibration.labelled(Contrastive(candidates), labels, micro_tokens(model.device.type, model.shape.hidden))

    def score(self, task: "Task", logits: Logits, examples: "Examples") -> Score:
        """Cosines of the pairs beside the gold ones, or how early each query finds its document."""
        first, second = logits[0::2], logits[1::2]
        if task.options["measure"] == "similarity":
            return correlated(task, (first * second).sum(1, keepdims=True), examples.split.labels)
        ranks = found_at(first, second)
        each = {"mrr@10": np.where(ranks <= FIRST, 100.0 / ranks, 0.0), "recall@1": 100.0 * (ranks == 1)}
        values: dict[str, float | None] = {name: float(each[name].mean()) for name in task.metrics}
        return Score({name: each[name] for name in task.metrics}, values, values[task.score])

    def stored(self, task: "Task", examples: "Examples") -> dict[str, np.ndarray]:
        """Gold similarities, or what a search in random order scores."""
        if task.options["measure"] == "similarity":
            return {"gold": examples.split.labels}
        count = len(examples.split)
        by_chance = {"mrr@10": 100.0 * float((1 / np.arange(1, min(FIRST, count) + 1)).sum()) / count, "recall@1": 100.0 / count}
        return {f"{name}_trivial": np.full(count, by_chance[name]) for name in task.metrics}

    def files(self, task: "Task", folder: "Path", arch: "Arch", masks: "Masks", small: "nn.Module") -> None:
        """What makes the folder one of sentence-transformers."""
        from bench.model import PrunableModel
        from bench.saved.sentence import write_modules

        dense = self.from_config(small.config, attn_implementation=small.config._attn_implementation)  # type: ignore[union-attr]
        write_modules(folder, task.max_length, PrunableModel(dense, arch, self), masks, small)


@dataclass(frozen=True)
class Contrastive(Embedding):
    """The kind of a supervised sample. Labels [B, K] are rows of `candidates` [N, d]: the partner's first, then the others of the batch;
    NOBODY fills up."""

    candidates: "Tensor"

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Cross-entropy of the partner among the batch by scaled cosines; 0 for a text without a partner."""
        from torch.nn import functional as F

        cosines = (logits[:, None] * self.candidates[labels.clamp_min(0)].to(logits.dtype)).sum(2)
        scores = (SCALE * cosines).masked_fill(labels == NOBODY, -1e4)
        losses = F.cross_entropy(scores, labels.new_zeros(len(labels)), reduction="none")
        return losses * (labels[:, 0] != NOBODY)


class Texts:
    """The texts of a split's pairs: text 2 i is the first of pair i, text 2 i + 1 its second."""

    def __init__(self, encoder: "Encoder", split: "Split") -> None:
        self.encoder, self.split = encoder, split
        self.cut: set[int] = set()

    def __len__(self) -> int:
        return 2 * len(self.split)

    def encode(self, rows: "Sequence[int] | Positions") -> "list[Encoded]":
        """The token ids (and masks) of some texts."""
        texts = [self.split.texts[int(row) % 2][int(row) // 2] for row in rows]
        coded = self.encoder.tokenizer(texts, truncation=True, padding=False, max_length=self.encoder.max_length)
        self.cut |= {int(row) for row, one in zip(rows, coded.encodings or (), strict=False) if one.overflowing}
        return [{name: coded[name][i] for name in self.encoder.inputs} for i in range(len(rows))]

    def labels(self, rows: "Sequence[int] | Positions") -> np.ndarray:
        """1 for the texts of a positive pair, 0 for others."""
        task, gold = self.encoder.task, self.split.labels[np.asarray(rows, dtype=np.intp) // 2]
        if task.options["measure"] == "search":
            return np.ones(len(gold), np.int64)
        return (gold >= float(task.options.get("positive", np.inf))).astype(np.int64)


def _rivals(positive: "Tensor", start: int, widest: int) -> "Tensor":
    """Labels [B, widest] of a batch whose first text is candidate `start`; partners stand beside each other."""
    import torch

    count = len(positive)
    own = torch.arange(count, device=positive.device)
    partner = own ^ 1
    others = own.expand(count, count)
    others = others.masked_fill((others == own[:, None]) | (others == partner[:, None]), NOBODY - start) + start
    labels = torch.full((count, widest + 1), NOBODY, device=positive.device)
    labels[:, 0] = torch.where(positive > 0, partner + start, NOBODY)
    labels[:, 1 : count + 1] = others
    return labels


def found_at(queries: Logits, documents: Logits) -> NDArray[np.int64]:
    """The rank [queries] of each query's own document among all by cosine, 1 the nearest; equals stand before it."""
    ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), QUERIES):
        part = slice(start, start + QUERIES)
        cosines = queries[part] @ documents.T
        own = np.take_along_axis(cosines, np.arange(start, start + len(cosines))[:, None], 1)
        ranks[part] = (cosines >= own).sum(1)
    return ranks


def pooled(hidden: "Tensor", mask: "Tensor | None") -> "Tensor":
    """The normalised mean [B, d] of the real tokens of hidden states [B, T, d]; `mask` [B, T]."""
    from torch.nn import functional as F

    if mask is None:
        return F.normalize(hidden.mean(1), dim=1)
    real = mask[..., None].to(hidden.dtype)
    return F.normalize((hidden * real).sum(1) / real.sum(1), dim=1)


def _pooled(encoder: Any) -> "nn.Module":
    from bench.saved.sentence import SentenceEncoder

    return SentenceEncoder(encoder)
