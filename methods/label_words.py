"""SMP's frozen classifier: the embeddings of the task's label words.

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
from bench.nn import word_head


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
    last = word_head.structure(model.module, model.arch, model.kind, head is not None)
    rows = embeddings.word_embeddings.weight[ids]
    last.weight.copy_(torch.cat([rows, -rows], 1) if last.in_features > rows.shape[1] else rows)
    last.bias.zero_()
    if head is not None:
        dense, norm, bias = head
        steps = [layer for layer in word_head.steps(model.module, model.arch) if isinstance(layer, nn.Linear | nn.LayerNorm)]
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
        Skip: its activation is none that bench.nn.word_head builds.
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
