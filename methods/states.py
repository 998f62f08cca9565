"""Hidden states of a whole calibration set, advanced sub-layer by sub-layer instead of from the embeddings."""

from dataclasses import replace

import torch
from torch import Tensor

from bench.calibration import Calibration
from bench.model import PrunableModel
from bench.nn.packing import Context


class States:
    """The hidden state of every micro-batch [tokens, d] below one sub-layer; it grows with the tokens, not with the layers.

    States are written over where they lie: new ones beside the graph of a measurement would leave the heap full of holes.
    """

    def __init__(self, hidden: list[Tensor], contexts: list[Context]) -> None:
        self.hidden = hidden
        self.contexts = contexts

    @classmethod
    @torch.no_grad()
    def embedded(cls, model: PrunableModel, calibration: Calibration) -> "States":
        """Below the first sub-layer."""
        hidden, contexts, bias = list[Tensor](), list[Context](), None
        for part in calibration.all_parts:
            below, context = model.embed(part)
            if context.bias is not None:  # a corner of a longer part's: one is kept for all
                length = context.size[1]
                bias = context.bias if bias is None or len(bias[0, 0]) < length else bias
                context = replace(context, bias=bias[:, :, :length, :length])
            hidden.append(below)
            contexts.append(context)
        return cls(hidden, contexts)

    def fork(self) -> "States":
        """A copy of the states, to be advanced on its own."""
        return States([hidden.clone() for hidden in self.hidden], self.contexts)

    def narrow(self) -> None:
        """To the first tokens of the examples."""
        self.hidden = [hidden[context.first] for hidden, context in zip(self.hidden, self.contexts, strict=True)]
        self.contexts = [context.narrowed() for context in self.contexts]

    @torch.no_grad()
    def advance(self, model: PrunableModel, sublayer: int, factors: Tensor | None = None) -> None:
        """By one sub-layer, its columns multiplied by the factors [columns] where there are any."""
        with model.masked({} if factors is None else {sublayer: factors}):
            for i, context in enumerate(self.contexts):
                self.hidden[i].copy_(model.sublayers[sublayer](self.hidden[i], context)[2])
