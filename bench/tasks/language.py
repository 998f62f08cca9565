"""Language models: how well the next token of a text is told. The score is the perplexity, where lower is better.

The rows of a split are joined to one stream of tokens, which is cut into windows of `options.context` tokens without overlap; what is
left at the end is dropped. Perplexity is exp(sum of the negative log-likelihoods / number of predicted tokens), and the first token
of each window is not predicted: the protocol of GPTQ, SparseGPT, Wanda and FLAP on WikiText-2 (docs/decoders.md). Calibration takes
windows of `options.calibration_context` tokens of train.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import UserError
from bench.tasks.kind import Kind, Logits, Score

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor, nn

    from bench.config import Arch, Task
    from bench.model import PrunableModel
    from bench.nn.packing import Batch, Context
    from bench.tasks.data import Split
    from bench.tasks.encoding import Encoded, Encoder, Examples, Positions

OPTIONS = ("context", "calibration_context")
SCORED_TOKENS = 4096  # of windows that are scored together
UNKNOWN = "a language model's loss needs its map to the vocabulary: calibration.of(model) gives a sample that knows it"
CHUNK = 1024  # tokens whose logits are held at a time


class Language(Kind):
    """Logits are those of every token [B, T, V]; an example is a window of a stream. `output` stops before the map to the vocabulary: it
    gives the states [B, T, d] that are mapped, and the kind that knows a model's map (`of`) tells losses and divergences from those,
    so that no more than a chunk of logits is held at a time."""

    name = "language"
    metrics = frozenset({"perplexity"})
    transformers_class = "AutoModelForCausalLM"
    reads_first_tokens = False
    fine_tuned = False
    padded = False

    def outputs(self, task: "Task") -> int:
        """None: a language model has its vocabulary."""
        return 0

    def check(self, task: "Task") -> tuple[str, Any, bool, str] | None:
        """Windows of two tokens or more of one column of text."""
        for name in OPTIONS:
            given = task.options.get(name)
            if not isinstance(given, int) or given < 2:
                return f"options.{name}", given, False, "a whole number of tokens, at least 2"
        if unknown := sorted(set(task.options) - set(OPTIONS)):
            return f"options.{unknown[0]}", task.options[unknown[0]], False, f"an option of a language task: {' or '.join(OPTIONS)}"
        if len(task.columns) != 1:
            return "columns", task.columns, False, "one column of text"
        return ("labels", task.labels, False, "null, the next token is told") if task.labels is not None else None

    def fits(self, arch: "Arch") -> str | None:
        """A language model is causal."""
        return None if arch.causal else "tells no next token: a language task wants a decoder"

    def head(self, arch: "Arch") -> list[str]:
        """None that a checkpoint is asked for: the map to the vocabulary may be the embeddings."""
        return []

    def columns(self, task: "Task", names: Sequence[str]) -> list[str]:
        """None beside the text."""
        return []

    def labels(self, table: "pa.Table", task: "Task", texts: list[list[str]], where: str) -> Mapping[str, Any]:
        """Whatever is read has its next tokens: the labels of rows are never looked at."""
        return {"labels": np.arange(len(texts[0]), dtype=np.int64)}

    def examples(self, encoder: "Encoder", split: "Split", scored: bool = False) -> "Examples":
        """The windows of a split's stream."""
        return Stream(encoder, split, int(encoder.task.options[OPTIONS[0] if scored else OPTIONS[1]]))

    def scored_together(self, task: "Task") -> int:
        """Windows of some 4 000 tokens together."""
        return max(1, SCORED_TOKENS // int(task.options["context"]))

    def from_pretrained(self, folder: Any, **how: Any) -> Any:
        """A causal language model of a transformers folder."""
        return super().from_pretrained(folder, **{name: value for name, value in how.items() if name != "num_labels"})

    def answers(self, module: "nn.Module", batch: "Batch") -> "Tensor":
        """The sum of the negative log-likelihoods of each window [B], in float64."""
        from bench.nn.packing import inputs_of

        inner: Any = module.get_submodule(module.base_model_prefix)  # type: ignore[arg-type]
        states = inner(**inputs_of(batch), use_cache=False).last_hidden_state
        head = module.get_output_embeddings()  # type: ignore[operator]
        return Told(head).losses(states, batch["input_ids"]).double().sum(1)

    def output(self, model: "PrunableModel", hidden: "Tensor", context: "Context") -> "Tensor":
        """The states [B, T, d] that are mapped to the vocabulary."""
        named = dict(model.module.named_modules())
        for step in model.arch.output[:-1]:
            hidden = named[step](hidden) if step in named else hidden
        return context.pad(hidden)

    def of(self, model: "PrunableModel") -> "Told":
        """The kind that knows the model's map to the vocabulary."""
        head: Any = model.module.get_submodule(model.arch.output[-1])
        return Told(head)

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Only a kind that knows the map to the vocabulary has one."""
        raise ValueError(UNKNOWN)

    def divergence(self, student: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
        """As `loss`."""
        raise ValueError(UNKNOWN)

    def score(self, task: "Task", logits: Logits, examples: "Examples") -> Score:
        """The perplexity over all windows."""
        assert isinstance(examples, Stream)
        value = perplexity(logits, examples.predicted)
        return Score({"nll": logits}, {"perplexity": value}, value)

    def stored(self, task: "Task", examples: "Examples") -> dict[str, np.ndarray]:
        """How many tokens each window predicts, and what an answer by the tokens' frequencies alone scores."""
        assert isinstance(examples, Stream)
        return {"nll_trivial": examples.by_frequency(), "predicted": np.full(len(examples), examples.predicted)}

    def stream(self, examples: "Examples") -> dict[str, Any]:
        """Windows, tokens, the first tokens (a special one may begin the stream), and the hash of the text."""
        assert isinstance(examples, Stream)
        return examples.facts


@dataclass(frozen=True)
class Told(Language):
    """The kind of a model whose map to the vocabulary is `vocabulary`."""

    vocabulary: "nn.Linear"

    def losses(self, states: "Tensor", tokens: "Tensor") -> "Tensor":
        """The negative log-likelihood of every token but the first [B, T - 1], from the states of the tokens before."""
        from torch.nn import functional as F

        def part(states: "Tensor", wanted: "Tensor") -> "Tensor":
            return F.cross_entropy(self.vocabulary(states).float(), wanted, reduction="none")

        flat = _by_chunks(part, states[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        return flat.view(len(states), -1)

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """The mean negative log-likelihood [B] of windows, from their states and their tokens."""
        return self.losses(logits, labels).mean(1)

    def divergence(self, student: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
        """T² KL(teacher || student) [B], the mean over the predicted tokens, from the states of both."""
        from torch.nn import functional as F

        def part(student: "Tensor", teacher: "Tensor") -> "Tensor":
            mine, theirs = (F.log_softmax(self.vocabulary(states).float() / temperature, -1) for states in (student, teacher))
            return temperature**2 * (theirs.exp() * (theirs - mine)).sum(-1)

        flat = _by_chunks(part, student[:, :-1].flatten(0, 1), teacher[:, :-1].flatten(0, 1))
        return flat.view(len(student), -1).mean(1)


def _by_chunks(part: Any, states: "Tensor", others: "Tensor") -> "Tensor":
    """`part` of some rows at a time [n]; with gradients the logits are computed again instead of kept."""
    import torch
    from torch.utils.checkpoint import checkpoint

    pieces = zip(torch.split(states, CHUNK), torch.split(others, CHUNK), strict=True)
    if not torch.is_grad_enabled() or len(states) <= CHUNK:
        return torch.cat([part(*piece) for piece in pieces])
    return torch.cat([checkpoint(part, *piece, use_reentrant=False) for piece in pieces])


class Stream:
    """The windows of a split's text, tokenised once, all of `length` tokens."""

    def __init__(self, encoder: "Encoder", split: "Split", length: int) -> None:
        self.split, self.cut, self.length = split, set[int](), length
        text = "\n\n".join(split.texts[0])
        if length > encoder.positions:
            raise UserError(f"windows of {length} tokens: the model has {encoder.positions} positions, set task.options.context lower")
        self.stream = np.asarray(encoder.tokenizer(text, verbose=False)["input_ids"], np.int64)
        count = len(self.stream) // length
        if not count:
            raise UserError(f"the text has {len(self.stream)} tokens, not one window of {length}: set task.options.context lower")
        self.windows = self.stream[: count * length].reshape(count, length)
        self.text_sha256 = hashlib.sha256(text.encode()).hexdigest()

    @property
    def predicted(self) -> int:
        """Predicted tokens of a window."""
        return self.length - 1

    @property
    def facts(self) -> dict[str, Any]:
        """What says which text was read, and how."""
        first = self.stream[:4].tolist()
        return {"context": self.length, "windows": len(self), "tokens": len(self.stream), "first": first, "text": self.text_sha256}

    def __len__(self) -> int:
        return len(self.windows)

    def encode(self, rows: "Sequence[int] | Positions") -> "list[Encoded]":
        """The token ids of some windows."""
        return [{"input_ids": self.windows[row].tolist(), "attention_mask": [1] * self.length} for row in rows]

    def labels(self, rows: "Sequence[int] | Positions") -> np.ndarray:
        """The windows' tokens [n, length]: each is what the one before has to tell."""
        found: np.ndarray = self.windows[np.asarray(rows, dtype=np.intp)]
        return found

    def by_frequency(self) -> NDArray[np.float64]:
        """The negative log-likelihood of each window's predicted tokens by their frequencies in all windows."""
        wanted = self.windows[:, 1:]
        _, places, counts = np.unique(wanted, return_inverse=True, return_counts=True)
        surprise = np.log(wanted.size / counts)
        return surprise[places.reshape(wanted.shape)].sum(1)  # type: ignore[no-any-return]


def perplexity(nll: NDArray[Any], predicted: int) -> float:
    """From the sum of negative log-likelihoods of each window [n] and its number of predicted tokens."""
    return float(np.exp(np.sum(nll, dtype=np.float64) / (len(nll) * predicted)))
