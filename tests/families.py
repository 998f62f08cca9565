"""Small random models of every family, and batches for them."""

import torch
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForSequenceClassification

from bench.config import Arch, typed
from bench.files import CONF
from bench.model import Batch, PrunableModel

SIZES = {
    "bert": {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40},
    "roberta": {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40, "pad_token_id": 1},
    "mpnet": {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40, "pad_token_id": 1},
    "distilbert": {"dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 40},
}
FAMILIES = sorted(SIZES)
VOCABULARY, PAD = 60, 1


def arch_of(family: str) -> Arch:
    return typed(Arch, OmegaConf.load(CONF / "arch" / f"{family}.yaml"), "arch")


def tiny(family: str, seed: int = 0, dtype: torch.dtype = torch.float64, outputs: int = 2) -> PrunableModel:
    """Random weights large enough that every unit matters; biases too, so that a forgotten one shows."""
    torch.manual_seed(seed)
    attention = "eager" if family == "mpnet" else "sdpa"
    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, max_position_embeddings=40, num_labels=outputs, **SIZES[family])
    module = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "LayerNorm.weight" not in name and "layer_norm.weight" not in name:
                parameter.normal_(0, 0.3)
    return PrunableModel(module.to(dtype), arch_of(family))


def batch(lengths: list[int], seed: int = 0, regression: bool = False, classes: int = 2) -> Batch:
    """A padded batch with labels; equal lengths give one without padding."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(3, VOCABULARY, (len(lengths), longest), generator=generator)
    mask = (torch.arange(longest)[None] < torch.tensor(lengths)[:, None]).long()
    labels = torch.rand(len(lengths), generator=generator) * 5
    if not regression:
        labels = torch.randint(0, classes, (len(lengths),), generator=generator)
    return {"input_ids": torch.where(mask.bool(), ids, PAD), "attention_mask": mask, "labels": labels}


def calibration(batches: list[Batch], regression: bool = False, seed: int = 0):
    """Batches as the calibration sample of a run."""
    import numpy as np

    from bench.calibration import Calibration

    examples = sum(len(b["labels"]) for b in batches)
    tokens = sum(int(b["attention_mask"].sum()) for b in batches)
    return Calibration(list(batches), np.arange(examples), tokens, regression, "", np.random.default_rng(seed))
