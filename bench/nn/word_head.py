"""A frozen classifier made of words in the place of a model's head: an output's logit is how much the state looks like its word.

The state is that of the first token, or of every token where the kind of task has outputs for each. It may pass the transform of a
masked-language-model head first. A saved model's head is built again from what stands here; a method gives it its weights.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bench.config import Arch
from bench.tasks.kind import Kind


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


def structure(module: nn.Module, arch: Arch, kind: Kind, transform: bool) -> nn.Linear:
    """Put such a classifier, without weights, in the place of a model's head, and no dropout before it. `transform`: with a language
    model's transform before it. Returns its last layer [outputs, d] ([outputs, 2 d] behind a ReLU, whose second half is the first's
    negative)."""
    config: Any = module.config
    size, outputs = getattr(config, arch.hidden), config.num_labels
    before: list[nn.Module] = []
    if transform:
        before = [nn.Linear(size, size), nn.GELU(), nn.LayerNorm(size, eps=getattr(config, "layer_norm_eps", 1e-12))]
    signs = "relu" in arch.head and not kind.per_token
    words = nn.Linear(size * (1 + signs), outputs)
    if kind.per_token:
        module.set_submodule(arch.span_head, nn.Sequential(*before, words))
    elif len(arch.head) == 1:
        module.set_submodule(arch.head[0], nn.Sequential(First(), *before, words))
    else:
        name = arch.head[-3] if signs else arch.head[-2]
        module.set_submodule(name, nn.Sequential(*([] if signs else [First()]), *before, *([BothSigns()] if signs else [])))
        module.set_submodule(arch.head[-1], words)
    for child in module.children():
        if isinstance(child, nn.Dropout):
            child.p = 0.0
    return words


def found(module: nn.Module, arch: Arch) -> bool | None:
    """Whether a model's classifier is one of words and has a language model's transform before it; None: it is not."""
    layers = steps(module, arch)
    return any(isinstance(layer, nn.LayerNorm) for layer in layers) if layers else None


def steps(module: nn.Module, arch: Arch) -> list[nn.Module]:
    """The layers that `structure` has put in the head's place, without the last where that stands alone."""
    named = dict(module.named_modules())
    places = [named[name] for name in (*arch.head, arch.span_head) if name in named]
    return [layer for place in places if isinstance(place, nn.Sequential) for layer in place]
