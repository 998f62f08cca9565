"""bfloat16 for a model's layers: their linear maps, and all that lies between them, forward and backward.

torch.autocast would do the same, but it casts a weight anew in every call unless the weight asks for gradients, which
few methods want; on small micro-batches that costs as much as bfloat16 saves.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.model import PrunableModel


class HalfLinear(nn.Linear):
    """A linear layer that computes in bfloat16 from float32 weights, which are cast again only when they have changed."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out] in bfloat16."""
        weight, bias = self._cast() if self.weight.requires_grad else self._kept()
        return F.linear(x.to(torch.bfloat16), weight, bias)

    def _cast(self) -> tuple[Tensor, Tensor | None]:
        return self.weight.to(torch.bfloat16), None if self.bias is None else self.bias.to(torch.bfloat16)

    @torch.no_grad()
    def _kept(self) -> tuple[Tensor, Tensor | None]:
        of = (self.weight.data_ptr(), self.weight._version, None if self.bias is None else self.bias._version)
        kept: tuple[object, Tensor, Tensor | None] | None = self.__dict__.get("_half")
        if kept is None or kept[0] != of:
            kept = of, *self._cast()
            self.__dict__["_half"] = kept
        return kept[1], kept[2]


@contextmanager
def bf16_layers(model: PrunableModel, enabled: bool = True) -> Iterator[None]:
    """Within it, where enabled, the linear layers of a model's layers compute in bfloat16. Embeddings and head do not."""
    linears = [module for module in model.layers.modules() if type(module) is nn.Linear] if enabled else []
    for linear in linears:
        linear.__class__ = HalfLinear
    try:
        yield
    finally:
        for linear in linears:
            linear.__class__ = nn.Linear
            linear.__dict__.pop("_half", None)
