"""A sentence encoder as a torch module, and as a folder that sentence-transformers opens."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.utils import ModelOutput

from bench.tasks.embedding import Embedding, pooled

MODULES = "modules.json"
SETTINGS = "sentence_bert_config.json"


@dataclass
class Embedded(ModelOutput):  # type: ignore[misc]
    """`embedding` [B, d], normalised."""

    embedding: Tensor | None = None


class SentenceEncoder(nn.Module):
    """A transformers encoder and the normalised mean of its last hidden states. The encoder keeps the name that it has in a
    classifier (bert, mpnet, ...), so that the paths of conf/arch hold."""

    output_names = Embedding.output_names

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


class Transformer(nn.Module):
    """A saved model as a module of sentence-transformers: `SentenceTransformer(DIR)` finds it by the folder's modules.json."""

    def __init__(self, folder: str, max_length: int) -> None:
        super().__init__()
        from transformers import AutoTokenizer

        from bench.checkpoint import load

        self.folder, self.max_seq_length = folder, max_length
        self.model = load(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, config=self.model.config, local_files_only=True)

    @staticmethod
    def load(folder: str, **_: Any) -> "Transformer":
        """From the folder of a saved model."""
        settings = json.loads((Path(folder) / SETTINGS).read_text(encoding="utf-8"))
        return Transformer(folder, int(settings["max_seq_length"]))

    def tokenize(self, texts: Any, **_: Any) -> Any:
        """A padded batch of token ids and masks."""
        return self.tokenizer(list(texts), padding=True, truncation=True, max_length=self.max_seq_length, return_tensors="pt")

    preprocess = tokenize  # its name in newer versions

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """The same with `sentence_embedding` [B, d]."""
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in features]
        return {**features, "sentence_embedding": self.model(**{name: features[name] for name in names}).embedding}

    def get_sentence_embedding_dimension(self) -> int:
        """d."""
        return int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def save(self, folder: str, **_: Any) -> None:
        """The folder's files as they are."""
        import shutil

        shutil.copytree(self.folder, folder, dirs_exist_ok=True)


def write_modules(folder: Path, max_length: int) -> None:
    """Write what sentence-transformers reads."""
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{Transformer.__module__}.{Transformer.__qualname__}"}]
    (folder / MODULES).write_text(json.dumps(modules, indent=1) + "\n", encoding="utf-8")
    (folder / SETTINGS).write_text(json.dumps({"max_seq_length": max_length}) + "\n", encoding="utf-8")
