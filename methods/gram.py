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
    """The whole matrix from what `add_gram` has kept, in its place."""
    upper.triu_()
    for start in range(0, len(upper), step := max(64, -(-len(upper) // BLOCKS))):
        rows = slice(start, start + step)
        upper[rows, rows] += upper[rows, rows].triu(1).T
        upper[start + step :, rows] = upper[rows, start + step :].T
    return upper
