"""Made-up things to try methods on without any data: small random models, batches, a calibration sample, a train split."""

import string
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from bench.calibration import Calibration, grouped
from bench.config import Arch, ModelTuning, Task, typed
from bench.files import CONF
from bench.masks import Masks, by_array, place
from bench.model import PrunableModel
from bench.nn.packing import Batch
from bench.tasks import KINDS
from bench.tasks.encoding import Encoded, Encoder, Positions

if TYPE_CHECKING:
    from bench.training import Training

SIZES = {
    "bert": {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40},
    "roberta": {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40, "pad_token_id": 1},
    "mpnet": {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40, "pad_token_id": 1},
    "distilbert": {"dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 40},
}
FAMILIES = tuple(sorted(SIZES))
_GROUPED = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 40,
}
SIZES |= {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _GROUPED),
    "opt": {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 40, "word_embed_proj_dim": 24},
}
DECODERS = tuple(sorted(SIZES.keys() - set(FAMILIES)))
VOCABULARY, PAD, LENGTH = 60, 1, 6.0


@cache
def arch_of(family: str) -> Arch:
    """The architecture of a family, from conf/arch."""
    fields: Any = OmegaConf.load(CONF / "arch" / f"{family}.yaml")
    for parent in fields.pop("defaults", []):
        if parent != "_self_":
            fields = OmegaConf.merge(OmegaConf.load(CONF / "arch" / f"{parent}.yaml"), fields)
    return typed(Arch, fields, "arch")


def tiny(
    family: str = "bert", seed: int = 0, dtype: torch.dtype = torch.float64, outputs: int = 2, kind: str = "", **own: Any
) -> PrunableModel:
    """Random weights large enough that every unit matters; biases too, so that a forgotten one shows. `own`: fields of the config."""
    from transformers import AutoConfig

    kind = kind or ("language" if family in DECODERS else "classification")
    fields = {"vocab_size": VOCABULARY, "max_position_embeddings": 40, "num_labels": outputs, **SIZES[family], **own}
    config = AutoConfig.for_model(family, **fields)
    attention = "eager" if family == "mpnet" else "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = KINDS[kind].from_config(config, attn_implementation=attention)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if not name.lower().replace("_", "").endswith("norm.weight"):
                    parameter.normal_(0, 0.3)
    return PrunableModel(module.to(dtype), arch_of(family), KINDS[kind])


def batch(lengths: list[int], seed: int = 0, regression: bool = False, classes: int = 2) -> dict[str, Tensor]:
    """A padded batch with labels; equal lengths give one without padding."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(3, VOCABULARY, (len(lengths), longest), generator=generator)
    mask = (torch.arange(longest)[None] < torch.tensor(lengths)[:, None]).long()
    labels = torch.rand(len(lengths), generator=generator) * 5
    if not regression:
        labels = torch.randint(0, classes, (len(lengths),), generator=generator)
    return {"input_ids": torch.where(mask.bool(), ids, PAD), "attention_mask": mask, "labels": labels}


def span_batch(lengths: list[int], seed: int = 0) -> dict[str, Tensor]:
    """A padded batch of questions: labels are the tokens of start and end."""
    return batch(lengths, seed) | {"labels": torch.tensor([[min(seed, n - 1), n - 1] for n in lengths])}


def windows(count: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """A batch of windows of a text: labels are the tokens themselves."""
    one = batch([length] * count, seed)
    return one | {"labels": one["input_ids"]}


def calibration(
    batches: list[dict[str, Tensor]], regression: bool = False, seed: int = 0, micro: int = 12, kind: str | None = None
) -> Calibration:
    """Batches as the calibration sample of a run, in micro-batches of at most so many tokens; without `kind` the labels tell it."""
    examples = sum(len(one["labels"]) for one in batches)
    tokens = sum(int(one["attention_mask"].sum()) for one in batches)
    kind = kind or ("regression" if regression else "classification" if batches[0]["labels"].ndim == 1 else "span")
    return Calibration(
        list[Batch](batches), grouped(batches, micro), np.arange(examples), tokens, KINDS[kind], "", np.random.default_rng(seed)
    )


def training(model: PrunableModel, folder: Path, regression: bool = False) -> "Training":
    """A small train split for a method that trains: 16 texts of characters, batches of 4, label words a and b."""
    from transformers import BertTokenizer

    from bench.train.resuming import Workplace
    from bench.training import Training  # seconds of imports, which a method that does not train is spared

    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation][: VOCABULARY - 5]
    (folder / "vocab.txt").write_text("\n".join(["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *letters]) + "\n", encoding="utf-8")
    encoder = Encoder.__new__(Encoder)
    encoder.tokenizer = BertTokenizer(str(folder / "vocab.txt"), model_input_names=["input_ids", "attention_mask"])
    encoder.inputs, encoder.padding = ["input_ids", "attention_mask"], PAD
    labels, words = (None, ["a"]) if regression else (["no", "yes"], ["a", "b"])
    metrics = ["pearson" if regression else "accuracy"]
    encoder.task = task = Task(["text"], labels, metrics, metrics[0], LENGTH, 16, label_words=words)
    model.module.save_pretrained(folder / "base")  # type: ignore[operator]
    return Training(
        task=task,
        recipe=ModelTuning(batch=4),
        encoder=encoder,
        base=folder / "base",
        train=_Made(regression),
        teacher=model.copy(),
        work=Workplace(folder),
        seed=0,
        device=str(model.device),
        embeddings=model.arch.embeddings,
    )


class _Made:
    """Examples for `training`: random tokens and labels, the same every time."""

    split: Any = None

    def __init__(self, regression: bool, count: int = 16) -> None:
        self.cut: set[int] = set()
        one = batch([3 + i % 7 for i in range(count)], regression=regression)
        lengths = one["attention_mask"].sum(1).tolist()
        self.coded = [{name: one[name][i, :n].tolist() for name in ("input_ids", "attention_mask")} for i, n in enumerate(lengths)]
        self.given = one["labels"].double().numpy() if regression else one["labels"].numpy()

    def __len__(self) -> int:
        return len(self.coded)

    def encode(self, rows: Sequence[int] | Positions) -> list[Encoded]:
        return [self.coded[row] for row in rows]

    def labels(self, rows: Sequence[int] | Positions) -> np.ndarray:
        found: np.ndarray = self.given[np.asarray(rows)]
        return found


@torch.no_grad()
def plant_dead(model: PrunableModel, heads: int, neurons: int, seed: int = 0) -> Masks:
    """Kill so many random heads and neurons in every sub-layer (all their weights zero). Returns the masks without them."""
    random, alive = np.random.default_rng(seed), Masks.ones(model.shape)
    for s, sublayer in enumerate(model.sublayers):
        dead = random.choice(sublayer.units, (heads, neurons)[place(s)[0]], replace=False)
        alive.of(s)[dead] = 0.0
        sublayer.projection.weight[:, sublayer.columns(dead)] = 0.0
        for producer in sublayer.producers:
            for parameter in producer.linear.parameters():
                parameter[producer.rows(dead)] = 0.0
    return alive


@torch.no_grad()
def plant_duplicates(model: PrunableModel) -> None:
    """Make the second half of every feed-forward's neurons a copy of the first; each carries half of the output."""
    half = model.shape.neurons // 2
    for sublayer in by_array(model.sublayers)[1]:
        for producer in sublayer.producers:
            for parameter in producer.linear.parameters():
                parameter[half : 2 * half] = parameter[:half]
        weight = sublayer.projection.weight
        weight[:, :half] *= 0.5
        weight[:, half : 2 * half] = weight[:, :half]
