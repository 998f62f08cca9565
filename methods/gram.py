"""Gram matrices accumulated over batches."""

from torch import Tensor

BLOCKS = 6  # (BLOCKS + 1) / (2 * BLOCKS) of the work of a full product


def add_gram(upper: Tensor, x: Tensor) -> None:
    """Add XᵀX to `upper` [k, k], of which only the blocks on and above the diagonal are kept; x [tokens, k]."""
    step = max(64, -(-x.shape[1] // BLOCKS))
    for start in range(0, x.shape[1], step):
        rows = slice(start, start + step)
        upper[rows, start:].addmm_(x[:, rows].T, x[:, start:])


def symmetric(upper: Tensor) -> Tensor:
    """The whole matrix from what `add_gram` has kept."""
    return upper.triu() + upper.triu(1).T
