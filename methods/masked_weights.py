"""Single weights under masks: what SMP, movement pruning and magnitude pruning share."""

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bench.budget import TOLERANCE
from bench.masks import WeightMasks
from bench.model import PrunableModel

BETA, LEFT, RIGHT, OPEN = 2 / 3, -0.1, 1.1, 2.197  # of hard-concrete gates: temperature, stretch, first scores (Sanh et al. 2020)
EVERY = 16  # of so many values one is in a sample
KEYS = 2**31  # of float32 as whole numbers in the same order: -KEYS .. KEYS - 1


class Masked(nn.Module):
    """Multiplies the weight W [out, in] of a linear layer by a mask of zeros and ones.

    With `scores` S the gradient goes straight through the mask: dL/dS = G * W for kept and removed entries alike, with
    G = dL/d(mask * W); a weight that is trained gets G * mask (Sanh et al. 2020, section 3).
    """

    mask: Tensor

    def __init__(self, weight: Tensor, scored: bool) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros_like(weight)) if scored else None
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight."""
        if self.scores is None:
            return weight * self.mask
        return _StraightThrough.apply(weight, self.scores, self.mask)  # type: ignore[no-untyped-call, no-any-return]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, scores, mask):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        weight, mask = ctx.saved_tensors
        of_weight = gradient * mask if ctx.needs_input_grad[0] else None
        return of_weight, gradient * weight if ctx.needs_input_grad[1] else None, None


class MaskedWeights:
    """All matrices of a model's layers under masks, which `keep_*` choose anew; `types` as PrunableModel.matrices.

    While masks are chosen in the course of a training, equal values at the edge are all kept; `finish` keeps no more than the
    budget allows.
    """

    def __init__(self, model: PrunableModel, scored: bool) -> None:
        self.types = model.matrices()
        self._wanted = dict[nn.Linear, int | Tensor]()  # how many weights each matrix is to keep, where each has a number of its own
        for linear in self.linears():
            parametrize.register_parametrization(linear, "weight", self._mask_of(linear.weight, scored))

    def _mask_of(self, weight: Tensor, scored: bool) -> nn.Module:
        return Masked(weight, scored)

    def linears(self) -> Iterator[nn.Linear]:
        """Every matrix's module."""
        for own in self.types.values():
            yield from own.values()

    def masked(self, linear: nn.Linear) -> Any:
        """A matrix's mask and scores: its Masked, or HardConcrete."""
        return linear.parametrizations.weight[0]  # type: ignore[union-attr, index]

    def scores(self) -> list[nn.Parameter]:
        """The scores of every matrix that has them."""
        found = [self.masked(linear).scores for linear in self.linears()]
        return [scores for scores in found if scores is not None]

    def values(self, linear: nn.Linear) -> Tensor:
        """What a matrix's weights are ranked by, higher is better: scores, else magnitudes of the weights as they are now."""
        scores = self.masked(linear).scores
        original: Tensor = linear.parametrizations.weight.original  # type: ignore[union-attr, assignment]
        return original.abs() if scores is None else scores

    @torch.no_grad()
    def keep_share(self, share: float) -> None:
        """The same share of every matrix."""
        self._keep((linear, share) for linear in self.linears())

    @torch.no_grad()
    def keep_shares(self, shares: Tensor) -> None:
        """Every matrix its own share [types, L]."""
        self._keep(zip(self.linears(), shares.flatten(), strict=True))

    def _keep(self, wanted: Iterable[tuple[nn.Linear, float | Tensor]]) -> None:
        """Of some matrices the share of highest values."""

        def choose(one: tuple[nn.Linear, float | Tensor]) -> None:
            values = self.values(one[0])
            count = one[1] * values.numel() * TOLERANCE
            self._wanted[one[0]] = count = count.long() if isinstance(count, Tensor) else int(count)
            self.masked(one[0]).mask = values >= kth_largest(values, count)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # a CPU looks for one k-th value on one core
            list(pool.map(torch.no_grad()(choose), wanted))

    @torch.no_grad()
    def keep_globally(self, share: float, least: float = 0.0) -> None:
        """The best of all matrices together, but at least the share `least` of each."""
        values = [self._with_least(linear, min(least, share)) for linear in self.linears()]
        everything = torch.cat([one.flatten() for one in values])
        edge = kth_largest(everything, int(share * everything.numel() * TOLERANCE))
        self._wanted.clear()
        for linear, one in zip(self.linears(), values, strict=True):
            self.masked(linear).mask = one >= edge

    def _with_least(self, linear: nn.Linear, least: float) -> Tensor:
        values = self.values(linear)
        count = int(least * values.numel())
        return values.masked_fill(values >= kth_largest(values, count), torch.inf) if count else values

    @torch.no_grad()
    def finish(self, limit: float) -> WeightMasks:
        """Leave the model's linear layers as they were made, pruned weights zero. Returns the masks: those chosen last, less, where
        equal values were all kept, each matrix's surplus, then what is left of that over `limit` weights (the last ones first)."""
        for linear, wanted in self._wanted.items():
            self._drop_ties(linear, int(self.masked(linear).mask.sum()) - int(wanted))
        surplus = sum(int(self.masked(linear).mask.sum()) for linear in self.linears()) - int(limit * TOLERANCE)
        kept = {}
        for own in self.types.values():
            for name, linear in own.items():
                surplus -= self._drop_ties(linear, surplus)
                kept[name] = self.masked(linear).mask.cpu().numpy()
                parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)
        return WeightMasks(kept)

    def _drop_ties(self, linear: nn.Linear, surplus: int) -> int:
        """Take so many kept weights out of a matrix's mask, of those that share its lowest value, but one. Returns how many went."""
        mask, values = self.masked(linear).mask, self.values(linear)
        if surplus <= 0 or not mask.any():
            return 0
        ties = (mask & (values == values[mask].min())).flatten().nonzero().flatten()
        gone = ties[max(1, len(ties) - surplus) :]
        mask.view(-1)[gone] = False
        return len(gone)


class HardConcrete(nn.Module):
    """Multiplies the weight W [out, in] by gates: in training clip(s (r - l) + l, 0, 1), s = sigma((log u - log(1 - u) + S) / b)
    with u drawn anew each time (Louizos et al. 2018, equation 11), else clip(sigma(S) (r - l) + l, 0, 1)."""

    mask: Tensor

    def __init__(self, weight: Tensor, start: float) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.full_like(weight, start))
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The gated weight."""
        return weight * self.gates() * self.mask

    def gates(self) -> Tensor:
        """[out, in], in [0, 1]."""
        soft: Tensor = self.scores
        if self.training:
            drawn = torch.rand_like(soft).clamp(1e-4, 1 - 1e-4)
            soft = (torch.logit(drawn) + soft) / BETA
        return (soft.sigmoid() * (RIGHT - LEFT) + LEFT).clamp(0.0, 1.0)


class Gates(MaskedWeights):
    """All matrices of a model's layers behind hard-concrete gates, nine of ten open at the start."""

    def __init__(self, model: PrunableModel) -> None:
        super().__init__(model, scored=True)

    def _mask_of(self, weight: Tensor, scored: bool) -> nn.Module:
        return HardConcrete(weight, OPEN)

    def penalty(self) -> Tensor:
        """The mean over the matrices of the expected share of open gates, sigma(S - b log(-l / r))."""
        return mean_sigmoid(self.scores(), BETA * math.log(-LEFT / RIGHT))

    @torch.no_grad()
    def close(self, share: float) -> float:
        """Close all gates but the `share` of highest scores, and those that are closed already. Returns the share that was open."""
        self.keep_globally(share)
        opened = [self.masked(linear).gates() > 0 for linear in self.linears()]
        for linear, one in zip(self.linears(), opened, strict=True):
            self.masked(linear).mask &= one
        return float(sum(int(one.sum()) for one in opened) / sum(one.numel() for one in opened))


def kth_largest(values: Tensor, k: int | Tensor) -> Tensor:
    """The k-th largest of float32 values, as a tensor of no dimensions; infinite for k = 0, where nothing is kept.

    On a GPU, where `k` may lie there too, nothing is waited for: values are compared as whole numbers of the same order, and
    the answer's 32 bits are found one after another.
    """
    flat = values.detach().flatten()
    if flat.device.type == "cpu":
        return flat.new_tensor(torch.inf) if int(k) == 0 else _by_sample(flat, int(k))
    return _by_bits(flat, k if isinstance(k, Tensor) else torch.full((), k, device=flat.device))  # which does not wait


def _by_sample(values: Tensor, k: int) -> Tensor:
    """Looked for among the few values that lie between two of a sample's; among all where they do not hold it."""
    sample = values[::EVERY]
    place, slack = k * len(sample) / len(values), 4 * math.sqrt(len(sample))
    if len(sample) > 1000:
        ranks = (min(len(sample), math.ceil(place + slack)), max(1, math.floor(place - slack)))
        low, high = (sample.kthvalue(len(sample) - rank + 1).values for rank in ranks)
        above = int((values > high).count_nonzero())
        between = values[(values >= low) & (values <= high)]
        if above < k <= above + len(between):
            return between.kthvalue(len(between) - (k - above) + 1).values
    return values.kthvalue(len(values) - k + 1).values


def _by_bits(values: Tensor, k: Tensor) -> Tensor:
    keys = values.float().view(torch.int32)
    keys = torch.where(keys < 0, keys ^ (KEYS - 1), keys)
    found = torch.full((), -KEYS, dtype=torch.int64, device=values.device)
    for bit in range(31, -1, -1):
        tried = found + (1 << bit)
        found = torch.where((keys >= tried.to(torch.int32)).sum() >= k, tried, found)
    bits = found.to(torch.int32)
    edge = torch.where(bits < 0, bits ^ (KEYS - 1), bits).view(torch.float32)
    return torch.where(k == 0, torch.inf, edge)


def mean_sigmoid(scores: list[nn.Parameter], shift: float = 0.0) -> Tensor:
    """The regulariser of SMP and soft movement pruning: the mean over the matrices of each one's mean of sigma(S - shift)."""
    return torch.stack([(one - shift if shift else one).sigmoid().mean() for one in scores]).mean()
