"""A sentence encoder as a torch module, and as a folder that sentence-transformers opens."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers.utils import ModelOutput

from bench.dense.finding import EXTRA_FILES, TOKENIZER_FILES
from bench.masks import Masks
from bench.model import PrunableModel
from bench.nn.shrink import grow, shrink
from bench.tasks.embedding import pooled


@dataclass
class Embedded(ModelOutput):  # type: ignore[misc]
    """`embedding` [B, d], normalised."""

    embedding: Tensor | None = None


class SentenceEncoder(nn.Module):
    """A transformers encoder and the normalised mean of its last hidden states. The encoder keeps the name that it has in a
    classifier (bert, mpnet, ...), so that the paths of conf/arch hold."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.prefix = str(encoder.base_model_prefix)
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # reads the first token alone
        setattr(self, self.prefix, encoder)
        self.config = encoder.config

    def forward(self, **inputs: Tensor) -> Embedded:
        """Token ids and masks [B, T] to `embedding` [B, d]."""
        hidden = getattr(self, self.prefix)(**inputs).last_hidden_state
        return Embedded(embedding=pooled(hidden, inputs["attention_mask"]))

    def save_pretrained(self, folder: Path) -> None:
        """As the encoder's own transformers folder."""
        getattr(self, self.prefix).save_pretrained(folder)


def fast(folder: str) -> Any:
    """A saved model as a SentenceTransformer that runs the small model itself.

    Plain `SentenceTransformer(DIR)` gives the same vectors, but runs a model whose layers all have the size of the largest one, and all
    heads: transformers knows no other.
    """
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(modules=[Small(folder)])


class Small(nn.Module):
    """A saved model as a module of sentence-transformers."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        from transformers import AutoTokenizer

        from bench.saved.checkpoint import load, read

        self.model = load(folder)
        self.max_seq_length = read(folder).facts.task.max_length
        self.tokenizer = AutoTokenizer.from_pretrained(folder, config=self.model.config, local_files_only=True)

    def tokenize(self, texts: Any, **_: Any) -> Any:
        """A padded batch of token ids and masks."""
        return self.tokenizer(list(texts), padding=True, truncation=True, max_length=self.max_seq_length, return_tensors="pt")

    preprocess = tokenize  # its name since version 5

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """The same with `sentence_embedding` [B, d]."""
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in features]
        return {**features, "sentence_embedding": self.model(**{name: features[name] for name in names}).embedding}


def write_modules(folder: Path, max_length: int, model: PrunableModel, masks: Masks, small: nn.Module) -> None:
    """Make a saved model's folder one that sentence-transformers opens: an even model of the same vectors, mean pooling, normalised.

    `model`: dense, of the same config; its weights are written over.
    """
    even, width = evened(model, masks, small)
    even.config.update({model.arch.neurons: width})
    even.save_pretrained(folder / "transformer")
    for file in folder.iterdir():
        if file.name in (*TOKENIZER_FILES, *EXTRA_FILES):
            shutil.copyfile(file, folder / "transformer" / file.name)
    _write(folder / "transformer" / "sentence_bert_config.json", {"max_seq_length": max_length})
    (folder / "pooling").mkdir()
    _write(folder / "pooling" / "config.json", {"word_embedding_dimension": model.shape.hidden, "pooling_mode_mean_tokens": True})
    (folder / "normalize").mkdir()
    kinds = ("transformer", "pooling", "normalize")
    types = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(kinds, types, strict=True))
    ]
    _write(folder / "modules.json", modules)


def evened(model: PrunableModel, masks: Masks, small: nn.Module) -> tuple[SentenceEncoder, int]:
    """A model of all heads and of as many neurons in every layer as the fullest has, equal to the small one, and that number; what
    was pruned has zeros. `model` is dense and is written over."""
    kept = grow(model, masks, small).neurons
    width = max(1, int(kept.sum(1).max()))
    first = np.argsort(-kept, axis=1, kind="stable")[:, :width]  # the kept ones, then pruned ones
    wanted = Masks.ones(model.shape)
    wanted.neurons[:] = 0.0
    np.put_along_axis(wanted.neurons, first, 1.0, axis=1)
    module = shrink(model, wanted)
    assert isinstance(module, SentenceEncoder)
    return module, width


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
