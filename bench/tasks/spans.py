"""Questions that a span of their context answers (SQuAD): a start and an end for every token."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.tasks import columns
from bench.tasks.classification import softened_divergence
from bench.tasks.kind import Kind, Logits, Score

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor, nn

    from bench.config import Arch, Task
    from bench.model import PrunableModel
    from bench.nn.packing import Batch, Context
    from bench.tasks.data import Split
    from bench.tasks.encoding import Encoder, Examples

TITLE = "title"  # column of a question's article
NEVER = -1e4  # logit of a padded token as the start or end of an answer


class Spans(Kind):
    """Labels are the tokens of start and end [B, 2], logits [B, T, 2]. Examples are windows of the contexts; questions of one article
    are no independent draws."""

    name = "span"
    metrics = frozenset({"exact_match", "f1"})
    transformers_class = "AutoModelForQuestionAnswering"
    output_names = ("start_logits", "end_logits")
    per_token = True
    reads_first_tokens = False

    def outputs(self, task: "Task") -> int:
        """Start and end."""
        return 2

    def check(self, task: "Task") -> tuple[str, Any, bool, str] | None:
        """Windows need a question, a context and room."""
        assert task.windows is not None
        if task.labels is not None:
            return "labels", task.labels, False, "answers have no classes, it is null"
        if task.max_length < 32:
            return "max_length", task.max_length, False, "at least 32 where contexts are cut into windows"
        if len(task.columns) != 2:
            return "columns", task.columns, False, "the question's column and the context's"
        few = next((name for name in ("stride", "best", "longest_answer") if getattr(task.windows, name) < 1), None)
        return (f"windows.{few}", getattr(task.windows, few), False, "at least 1") if few else None

    def head(self, arch: "Arch") -> list[str]:
        """The layer of starts and ends."""
        return [arch.span_head]

    def columns(self, task: "Task", names: Sequence[str]) -> list[str]:
        """Answers and, where there are any, titles of articles."""
        return [task.label, *([TITLE] if TITLE in names and TITLE not in task.columns else [])]

    def labels(self, table: "pa.Table", task: "Task", texts: list[list[str]], where: str) -> Mapping[str, Any]:
        """Answers and the numbers of articles; without titles the contexts' numbers."""
        assert task.windows is not None
        answers = columns.answers(table[task.label], texts[1], task.windows.unanswerable, where)
        names = table[TITLE].to_pylist() if TITLE in table.column_names else texts[1]
        return {"answers": answers, "cluster": columns.numbered(names)}

    def examples(self, encoder: "Encoder", split: "Split", scored: bool = False) -> "Examples":
        """Windows of the contexts."""
        from bench.tasks.windows import Windows

        assert encoder.task.windows is not None
        return Windows(encoder.tokenizer, encoder.inputs, encoder.max_length, encoder.task.windows, split)

    def logits(self, module: "nn.Module", batch: "Batch") -> "Tensor":
        """Padding is never a start or an end."""
        import torch

        from bench.nn.packing import inputs_of

        out = module(**inputs_of(batch))
        logits = torch.stack([out.start_logits, out.end_logits], -1)
        return logits.masked_fill(~batch["attention_mask"].bool()[..., None], NEVER)

    def output(self, model: "PrunableModel", hidden: "Tensor", context: "Context") -> "Tensor":
        """The same from the last hidden state."""
        logits = context.pad(model.module.get_submodule(model.arch.span_head)(hidden))
        return logits if context.mask is None else logits.masked_fill(~context.mask[:, 0, 0, :, None], NEVER)

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """The mean cross-entropy of start and end."""
        from torch.nn import functional as F

        return F.cross_entropy(logits.transpose(1, 2).flatten(0, 1), labels.flatten(), reduction="none").view(-1, 2).mean(1)

    def divergence(self, student: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
        """T² KL(teacher || student), the mean of start's and end's."""
        return softened_divergence(student, teacher, temperature)

    def for_trainer(self, batch: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
        """Starts and ends by their names there."""
        start, end = batch.pop("labels").unbind(1)
        return {**batch, "start_positions": start, "end_positions": end}

    def cut(self, logits: "Tensor", length: int) -> "Tensor":
        """The first tokens of every example."""
        return logits[:, :length]

    def score(self, task: "Task", logits: Logits, examples: "Examples") -> Score:
        """One answer for each question, by all its windows."""
        from bench.tasks.windows import Windows, read_answers

        assert isinstance(examples, Windows)
        answers = read_answers(examples, logits)
        every: dict[str, float | None] = {"exact_match": float(answers.em.mean()), "f1": float(answers.f1.mean())}
        values = {name: every[name] for name in task.metrics}
        notes = ["the model gives every question the same answer"] * (len(set(answers.texts)) == 1)
        return Score({"answers": np.array(answers.texts), "em": answers.em, "f1": answers.f1}, values, values[task.score], notes)

    def stored(self, task: "Task", examples: "Examples") -> dict[str, np.ndarray]:
        """The articles, and what a trivial answer scores on each question."""
        from bench.tasks.windows import trivial

        assert task.windows is not None
        split = examples.split
        assert split.cluster is not None
        found = trivial(split, task.windows.unanswerable)
        return {"cluster": split.cluster, "em_trivial": found.em, "f1_trivial": found.f1}
