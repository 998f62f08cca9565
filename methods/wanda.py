"""Wanda: single weights by weights times activations (Sun, Liu, Bair and Kolter, ICLR 2024, arXiv 2306.11695)."""

from dataclasses import dataclass

from torch import Tensor, nn

from bench.budget import Budget
from bench.calibration import Calibration
from bench.masks import WeightMasks
from bench.method import Method
from bench.model import PrunableModel
from methods.layerwise import PATTERNS, check_pattern, lowest_of_rows, prune_layers, two_of_four


@dataclass
class Wanda(Method):
    """Of every output row the weights with the lowest |w_ij| · sqrt(mean x_j²) go (section 3); nothing is updated.

    `pattern`: free, or 2:4. Layers are pruned bottom to top, each on inputs from the pruned ones below. The authors remove the
    ⌊ratio · inputs⌋ lowest of a row; here it is rounded up, so that the budget is kept to.
    """

    pattern: str = "free"

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise ValueError(f"method.pattern={self.pattern}: one of {', '.join(PATTERNS)}")

    def prune(self, model: PrunableModel, calibration: Calibration, budget: Budget) -> WeightMasks:
        """One forward pass over dense layers and one over pruned ones, no labels."""
        check_pattern(self.pattern, budget.ratio)

        def choose(linear: nn.Linear, squares: Tensor) -> Tensor:
            values = linear.weight.double().abs() * squares.sqrt()
            return two_of_four(values) if self.pattern == "2:4" and budget.ratio else lowest_of_rows(values, budget)

        return prune_layers(model, calibration, False, choose)
