"""SparseGPT: single weights removed by second-order information, what is left makes up for them.

Frantar and Alistarh, ICML 2023, arXiv 2301.00774.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.budget import TOLERANCE, Budget
from bench.calibration import Calibration
from bench.masks import WeightMasks
from bench.method import Method
from bench.model import PrunableModel
from methods.layerwise import PATTERNS, check_pattern, prune_layers, two_of_four


@dataclass
class SparseGPT(Method):
    """Column by column of every matrix, by the inverse of H = X Xᵀ + damp · mean(diag H) · I (algorithm 1).

    `pattern`: free (in every `block` of columns the lowest w² / U_cc² of all rows together), or 2:4. U is the upper Cholesky factor of
    H⁻¹. An input that is always zero has its weights set to zero. Computed in float64.
    """

    pattern: str = "free"
    block: int = 128
    damp: float = 0.01

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise ValueError(f"method.pattern={self.pattern}: one of {', '.join(PATTERNS)}")
        if self.block < 4 or self.block % 4 or not self.damp > 0:
            raise ValueError(f"method.block={self.block}: a multiple of four; method.damp={self.damp:g}: more than 0")

    def prune(self, model: PrunableModel, calibration: Calibration, budget: Budget) -> WeightMasks:
        """One forward pass over dense layers and one over pruned ones, no labels."""
        check_pattern(self.pattern, budget.ratio)

        def choose(linear: nn.Linear, products: Tensor) -> Tensor:
            weight, mask = self.solved(linear.weight.double(), products, budget.ratio)
            linear.weight.copy_(weight)
            return mask

        return prune_layers(model, calibration, True, choose)

    def solved(self, weight: Tensor, products: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
        """The new weights [out, in] and their mask, from the old ones and the mean of x xᵀ [in, in]."""
        weight, mask = weight.clone(), torch.ones_like(weight, dtype=torch.bool)
        if not ratio:
            return weight, mask
        weight[:, products.diagonal() == 0] = 0.0
        upper = inverse_factor(products, self.damp)
        columns, removed = weight.shape[1], 0
        for start in range(0, columns, self.block):
            stop = min(start + self.block, columns)
            part, of_part = weight[:, start:stop], upper[start:stop, start:stop]
            wanted = _removed(weight.shape[0], stop, ratio) - removed
            removed += wanted
            kept, errors = self._block(part, of_part, wanted)
            mask[:, start:stop] = kept
            weight[:, stop:] -= errors @ upper[start:stop, stop:]
        return weight * mask, mask

    def _block(self, weight: Tensor, upper: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
        """Prune the columns of a block in place, `wanted` weights of it; which are kept, and the errors [out, block] that are handed on."""
        scale = upper.diagonal().square()
        mask = torch.ones_like(weight, dtype=torch.bool)
        if self.pattern == "free":
            lowest = (weight.square() / scale).flatten().argsort(stable=True)[:wanted]
            mask.view(-1)[lowest] = False
        errors = torch.zeros_like(weight)
        for c in range(weight.shape[1]):
            if self.pattern == "2:4" and c % 4 == 0:
                mask[:, c : c + 4] = two_of_four(weight[:, c : c + 4].square() / scale[c : c + 4])
            errors[:, c] = weight[:, c] * ~mask[:, c] / upper[c, c]
            weight[:, c:] -= errors[:, c, None] * upper[c, c:]
        return mask, errors


def _removed(rows: int, columns: int, ratio: float) -> int:
    """How many of the first columns' weights are gone at the least, so that the budget is kept to."""
    size = rows * columns
    return size - int(size * (1 - ratio) * TOLERANCE)


def inverse_factor(products: Tensor, damp: float) -> Tensor:
    """U with H⁻¹ = Uᵀ U, upper triangular, of the damped products; a dead input's diagonal counts as 1."""
    matrix = products.clone()
    diagonal = matrix.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += damp * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper
