"""KCM: gradient-free structured pruning with unlabelled data.

Nova, Dai and Schuurmans, "Gradient-Free Structured Pruning with Unlabeled Data", ICML 2023, arXiv 2303.04185. The
authors published no code; what the paper leaves open is a field, see docs/methods.md.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from bench.budget import TOLERANCE, Budget, descending
from bench.calibration import Calibration
from bench.masks import Floats, Masks, by_array
from bench.method import Method, Skip
from bench.model import PrunableModel
from bench.nn.sublayer import SubLayer
from bench.stages import progress, stage
from methods.activations import statistics
from methods.mask_tuning import tune_masks

MOST_ITERATIONS = 1000


@dataclass
class KCM(Method):
    """Prune neurons that others represent and that fire little; heads stay.

    `representative`: R2; `data_driven`: D2; with one of them off the other ranks alone. `weights`: a neuron's vector in
    R2 (down: its column of the second projection, up: its row of the first, both). `sigma`: width of the kernel;
    `alpha`: where R2's iteration stops. `normalise`: D2 within a layer (l2, zscore, maxmin). `tuning`: mask tuning.
    """

    representative: bool = True
    data_driven: bool = True
    weights: str = "down"
    sigma: float = 1.0
    alpha: float = 0.01
    normalise: str = "l2"
    tuning: bool = True
    ffn_teacher: str = "full"

    def __post_init__(self) -> None:
        words = {"weights": ("down", "up", "both"), "normalise": ("l2", "zscore", "maxmin"), "ffn_teacher": ("full", "masked")}
        for name, choices in words.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)}: one of {', '.join(choices)}")
        if self.sigma <= 0 or self.alpha <= 0:
            raise ValueError("sigma and alpha: more than 0")
        if not (self.representative or self.data_driven):
            raise ValueError("representative and data_driven: at least one of them ranks")

    def prune(self, model: PrunableModel, calibration: Calibration, budget: Budget) -> Masks:
        """Rank the neurons of all layers together, keep the best, tune the factors of what is kept."""
        shape = model.shape
        heads_alone = shape.layers * float(budget.heads.of(shape.heads))
        if not budget.fits(heads_alone):
            share = 100 * (1 - heads_alone / budget.total)
            raise Skip(f"KCM prunes neurons only, which are {share:.0f} % of the cost here: ratio={budget.ratio:g} is out of its reach")
        with stage("measure"):
            ranks = self._ranks(model, calibration)
        with stage("search"):
            masks, teacher_masks = (self._keep(ranks, budget.at(ratio)) for ratio in (budget.ratio, 1 - sqrt(1 - budget.ratio)))
        if self.tuning and budget.ratio > 0:
            with stage("tune"):
                _, feed_forward = by_array(range(shape.sublayers))
                masks, note = tune_masks(model, calibration, masks, teacher_masks, self.ffn_teacher, feed_forward)
                self.notes += [note] if note else []
        return masks

    @staticmethod
    def _keep(ranks: Floats, budget: Budget) -> Masks:
        """All heads, and the best neurons that the rest of the budget pays for."""
        shape = budget.shape
        left = budget.limit * TOLERANCE - shape.layers * float(budget.heads.of(shape.heads))
        masks, order = Masks.ones(shape), descending(ranks)
        feed_forward = np.array(by_array(range(shape.sublayers))[1])
        fitting = np.searchsorted(budget.running(feed_forward[order // shape.neurons]), left, side="right")
        masks.neurons.ravel()[order[fitting:]] = 0.0
        return masks

    def _ranks(self, model: PrunableModel, calibration: Calibration) -> Floats:
        """R2 · D2 [L, I]."""
        _, feed_forward = by_array(model.sublayers)
        ranks = torch.ones(model.shape.layers, model.shape.neurons, dtype=torch.float64)
        if self.representative:
            found = [representative(self._vectors(one), self.sigma, self.alpha) for one in progress(feed_forward, "R2, layers")]
            ranks *= torch.stack([values.double().cpu() for values, _, _ in found])
            iterations, effective_ranks = (" ".join(f"{part[i]:.0f}" for part in found) for i in (1, 2))
            self.notes.append(f"R2 iterations per layer: {iterations}")
            self.notes.append(f"effective rank of the kernel per layer, of {model.shape.neurons}: {effective_ranks}")
        if self.data_driven:
            seen = statistics(model, calibration)
            fired = torch.stack([normalised(means, self.normalise).cpu() for means in by_array(seen.absolute)[1]])
            ranks *= fired - fired.min().clamp_max(0)  # a negative z-score would turn R2's order around
        return ranks.numpy()

    def _vectors(self, feed_forward: SubLayer) -> Tensor:
        down, up = feed_forward.outgoing(), feed_forward.incoming()
        return {"down": down, "up": up, "both": torch.cat([down, up], 1)}[self.weights]


@torch.no_grad()
def representative(vectors: Tensor, sigma: float, alpha: float) -> tuple[Tensor, int, float]:
    """R2 of the rows of `vectors` [I, n]: the coefficients C_ii with which each represents itself (section 3.2).

    Multiplicative updates C <- C ∘ sqrt(K ⊘ (K C)) of the convex kernel factorisation, from 1 / I on. Returns them [I],
    the number of updates, and the effective rank of K (exp of the entropy of its spectrum): where K is nearly the
    identity (I) or constant (1), R2 says nothing.
    """
    squares = vectors.square().sum(1)
    distances = (squares[:, None] + squares[None] - 2 * vectors @ vectors.T).clamp_min(0).fill_diagonal_(0)
    kernel = torch.exp(-distances / sigma**2)
    c = torch.full_like(kernel, 1 / len(kernel))
    iterations = 0
    while iterations < MOST_ITERATIONS:
        new = c * torch.sqrt(kernel / (kernel @ c).clamp_min(torch.finfo(c.dtype).tiny))
        moved = float((new - c).sum().abs() / c.sum())
        c, iterations = new, iterations + 1
        if moved < alpha:
            break
    spectrum = torch.linalg.eigvalsh(kernel).clamp_min(0)
    shares = spectrum / spectrum.sum()
    return c.diagonal().clone(), iterations, float(torch.special.entr(shares).sum().exp())


def normalised(means: Tensor, how: str) -> Tensor:
    """D2 within a layer [I]; a layer of equals gives equals."""
    if how == "l2":
        return means / means.norm().clamp_min(torch.finfo(means.dtype).tiny)  # type: ignore[no-any-return]
    low, spread = (means.mean(), means.std()) if how == "zscore" else (means.min(), means.max() - means.min())
    result: Tensor = (means - low) / torch.where(spread > 0, spread, torch.ones_like(spread))
    return result
