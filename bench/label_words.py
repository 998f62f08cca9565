"""A frozen classifier made of words: an output's logit is how much the encoder's state looks like its word.

As in SMP (Jiang et al., ACL 2023, arXiv 2210.06210, section 4.2): logit_c = h · e_c with h the state of the first token (of
questions every token's) and e_c the embedding of the word of class c; nothing of it is trained. Where the base model has a
masked-language-model head, h passes its transform first and its bias for the word is added, as in the authors' code.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.config import Arch
from bench.method import Skip
from bench.model import PrunableModel


class First(nn.Module):
    """The first token's state."""

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        """[B, T, d] to [B, d]."""
        return hidden[:, 0]


class BothSigns(nn.Module):
    """Lets a state through a ReLU unharmed: x and -x side by side."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, d] to [B, 2 d]."""
        return torch.cat([x, -x], -1)


def structure(module: nn.Module, arch: Arch, transform: bool) -> nn.Linear:
    """Put such a classifier, without weights, in the place of a model's head, and no dropout before it. Returns its last layer
    [outputs, d] ([outputs, 2 d] behind a ReLU, whose second half is the first's negative)."""
    config: Any = module.config
    size, outputs = getattr(config, arch.hidden), config.num_labels
    steps: list[nn.Module] = []
    if transform:
        steps = [nn.Linear(size, size), nn.GELU(), nn.LayerNorm(size, eps=getattr(config, "layer_norm_eps", 1e-12))]
    spans = hasattr(module, arch.span_head)
    signs = "relu" in arch.head and not spans
    words = nn.Linear(size * (1 + signs), outputs)
    if spans:
        module.set_submodule(arch.span_head, nn.Sequential(*steps, words))
    elif len(arch.head) == 1:
        module.set_submodule(arch.head[0], nn.Sequential(First(), *steps, words))
    else:
        name = arch.head[-3] if signs else arch.head[-2]
        module.set_submodule(name, nn.Sequential(*([] if signs else [First()]), *steps, *([BothSigns()] if signs else [])))
        module.set_submodule(arch.head[-1], words)
    for child in module.children():
        if isinstance(child, nn.Dropout):
            child.p = 0.0
    return words


def found(module: nn.Module, arch: Arch) -> bool | None:
    """Whether a model's classifier is one of words and has a language model's transform before it; None: it is not."""
    steps = _steps(module, arch)
    return any(isinstance(layer, nn.LayerNorm) for layer in steps) if steps else None


def _steps(module: nn.Module, arch: Arch) -> list[nn.Module]:
    """The layers that `structure` has put in the head's place, without the last where that stands alone."""
    named = dict(module.named_modules())
    places = [named[name] for name in (*arch.head, arch.span_head) if name in named]
    return [layer for place in places if isinstance(place, nn.Sequential) for layer in place]


@torch.no_grad()
def install(model: PrunableModel, base: Path, tokenizer: Any, words: Sequence[str] | None) -> bool:
    """Give a model that comes from the folder `base` the classifier of some words, one for each output. Returns whether the base
    has a masked-language-model head that it uses.

    Raises:
        Skip: there are no words, too few or equal ones, or one is no single token here; or as `_language_head`.
    """
    config: Any = model.module.config
    ids = tokens(tokenizer, words, config.num_labels)
    head = _language_head(base, model.arch)
    embeddings: Any = model.module.get_submodule(model.arch.embeddings)
    last = structure(model.module, model.arch, head is not None)
    rows = embeddings.word_embeddings.weight[ids]
    last.weight.copy_(torch.cat([rows, -rows], 1) if last.in_features > rows.shape[1] else rows)
    last.bias.zero_()
    if head is not None:
        dense, norm, bias = head
        steps = [layer for layer in _steps(model.module, model.arch) if isinstance(layer, nn.Linear | nn.LayerNorm)]
        steps[0].load_state_dict(dense.state_dict())
        steps[1].load_state_dict(norm.state_dict())
        last.bias.copy_(bias[ids])
    model.module.to(rows.device, rows.dtype).requires_grad_(False)
    return head is not None


def tokens(tokenizer: Any, words: Sequence[str] | None, outputs: int) -> list[int]:
    """The token of each word, as it stands inside a sentence.

    Raises:
        Skip: as `install`.
    """
    if not words:
        raise Skip("the task's YAML has no label_words, one word of the vocabulary for each output")
    if len(words) != outputs or len(set(words)) != outputs:
        raise Skip(f"label_words {', '.join(words)}: {outputs} different words are needed, one for each output")
    found = {word: tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words}
    for word, ids in found.items():
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            pieces = " ".join(tokenizer.convert_ids_to_tokens(ids))
            raise Skip(f"label word {word!r} is no single token of this model's vocabulary but {pieces}: choose task.label_words anew")
    ids = [ids[0] for ids in found.values()]
    if len(set(ids)) != outputs:
        raise Skip(f"label_words {', '.join(words)}: this model's vocabulary does not tell them apart")
    return ids


def _language_head(base: Path, arch: Arch) -> tuple[nn.Module, nn.Module, Tensor] | None:
    """Dense layer, norm and bias [vocabulary] of the base's masked-language-model head, if its file has one.

    Raises:
        Skip: its activation is none that `structure` builds.
    """
    from transformers import AutoModelForMaskedLM

    if not arch.language_head:
        return None
    dense, norm, decoder = arch.language_head
    model, info = AutoModelForMaskedLM.from_pretrained(base, dtype=torch.float32, output_loading_info=True, local_files_only=True)
    if any(str(key).startswith(f"{dense}.") for key in info["missing_keys"]):
        return None
    activation = getattr(model.config, "hidden_act", getattr(model.config, "activation", None))  # DistilBERT's name
    if activation != "gelu":
        raise Skip(f"the base's masked-language-model head has the activation {activation}, only gelu is known here")
    return model.get_submodule(dense), model.get_submodule(norm), model.get_submodule(decoder).bias.detach()
