"""K-prune: knowledge-preserving mask search and weight tuning, sub-layer by sub-layer.

Park, Choi and Kang, "Accurate Retraining-free Pruning for Pretrained Encoder-based Language Models", ICLR 2024,
arXiv 2308.03449. Where paper and authors' code disagree, docs/methods.md says what is done here and why.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.budget import TOLERANCE, Budget, descending
from bench.calibration import Calibration
from bench.masks import Floats, Masks
from bench.method import Method, Skip
from bench.model import PrunableModel
from bench.nn.packing import Context
from bench.nn.sublayer import SubLayer, widened
from bench.stages import progress, stage
from methods.gram import add_gram, symmetric
from methods.states import States


@dataclass
class KPrune(Method):
    """Measure, search, prune and tune one sub-layer after the other, bottom to top; labels are never used.

    `mu` may be the word head_dim. `head_gradient`: a head's predictive knowledge is the mean of its columns' squared
    gradients (column, as the authors' code) or the square of its own gradient (head, as the paper's formula).
    `remeasure`: measure again only every so many sub-layers (from the one after the first that lost units, where gradients
    begin), 0: never, all masks from one measurement of the dense model. `legacy_tuning` and `legacy_broadcast` reproduce the authors' code.
    """

    lambda_pred: float = 1.0
    lambda_rep: float = 2.5e-4
    mu: float | str = 64.0
    temperature: float = 2.0
    tuning: bool = True
    remeasure: int = 1
    head_gradient: str = "column"
    legacy_tuning: bool = False
    legacy_broadcast: bool = False

    gradients = True

    def __post_init__(self) -> None:
        if self.head_gradient not in ("column", "head"):
            raise ValueError(f"head_gradient={self.head_gradient}: column or head")
        if self.remeasure < 0:
            raise ValueError(f"remeasure={self.remeasure}: a number of sub-layers, or 0")
        if min(self.lambda_pred, self.lambda_rep) < 0 or self.lambda_pred == self.lambda_rep == 0:
            raise ValueError("lambda_pred and lambda_rep: 0 or more, and not both 0")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature:g}: more than 0")
        if not isinstance(self.mu, str) and self.mu <= 0:
            raise ValueError(f"mu={self.mu:g}: more than 0")
        if isinstance(self.mu, str) and self.mu != "head_dim":
            raise ValueError(f"mu={self.mu}: a number or head_dim")

    def prune(self, model: PrunableModel, calibration: Calibration, budget: Budget) -> Masks:
        """KPMS and KPWT over all sub-layers."""
        masks = Masks.ones(model.shape)
        student = States.embedded(model, calibration)
        teacher, left = student, budget.limit * TOLERANCE
        knowledge, scores = Knowledge(self, model, calibration), list[Floats]()
        changed: int | None = None  # the first sub-layer that has lost units
        for s in progress(range(model.shape.sublayers), "K-prune, sub-layers"):
            with stage("measure"):
                scores = knowledge.scores(student, s, budget) if self._measured(s, changed) else scores[1:]
            with stage("search"):
                kept = scores[0] > threshold(scores, s, budget, left)
                left -= float(budget.prices[s].of(int(kept.sum())))
                masks.of(s)[:] = kept
            with stage("tune"):
                if changed is None and kept.all():
                    student.advance(model, s)  # nothing has changed yet: the teacher is the student
                    continue
                if changed is None:
                    changed, teacher = s, student.fork()
                self._tune(model, s, kept, teacher, student)
        return masks

    def spared(self, scores: Floats, sublayer: SubLayer) -> Floats:
        """The scores of a sub-layer's units as they are compared with the threshold; for variants to change."""
        return scores

    def _measured(self, s: int, changed: int | None) -> bool:
        """Whether the knowledge is measured before sub-layer s: at first, and again only once something has changed."""
        if s == 0 or changed is None or self.remeasure == 0:
            return s == 0
        return (s - changed - 1) % self.remeasure == 0

    def _tune(self, model: PrunableModel, s: int, kept: NDArray[np.bool_], teacher: States, student: States) -> None:
        """Match the residual stream to the dense model's, put the new weight in place, and advance both."""
        sublayer = model.sublayers[s]
        left_alone = self.legacy_tuning and sublayer.kind == "feed_forward" and kept.all()
        if self.tuning and kept.any() and not left_alone:
            columns = sublayer.columns(np.flatnonzero(kept))
            gram, right = normal_equations(sublayer, columns, teacher, student)
            weight, note = solve(gram, right)
            if note:
                self.notes.append(f"sub-layer {s}: {note}")
            if weight is not None:
                sublayer.projection.weight[:, columns] = weight.T.to(sublayer.projection.weight)
        else:
            teacher.advance(model, s)
        student.advance(model, s, sublayer.factors(kept.astype(float)))


@dataclass
class KPruneSpare(KPrune):
    """K-prune, but the `spare_heads` best heads of every attention stay whatever the others score; not in the paper, see
    docs/results.md."""

    spare_heads: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spare_heads < 0:
            raise ValueError(f"spare_heads={self.spare_heads}: a number of heads, or 0")

    def prune(self, model: PrunableModel, calibration: Calibration, budget: Budget) -> Masks:
        """As K-prune.

        Raises:
            Skip: the budget does not pay for the spared heads.
        """
        spared = min(self.spare_heads, model.shape.heads)
        if not budget.fits(model.shape.layers * float(budget.heads.of(spared))):
            raise Skip(f"spare_heads={self.spare_heads} in every attention cost more than ratio={budget.ratio:g} leaves")
        return super().prune(model, calibration, budget)

    def spared(self, scores: Floats, sublayer: SubLayer) -> Floats:
        """The spared heads above all others."""
        if self.spare_heads and sublayer.kind == "attention":
            scores[np.argsort(-scores, kind="stable")[: self.spare_heads]] = np.inf
        return scores


class Knowledge:
    """Predictive and representational knowledge of the units of all sub-layers from s up (paper, section 3.2)."""

    def __init__(self, method: KPrune, model: PrunableModel, calibration: Calibration) -> None:
        self.method, self.model, self.calibration = method, model, calibration
        self.teacher_logits: list[Tensor] = []
        counts = np.cumsum([0, *(len(parts) for parts in calibration.parts)]).tolist()
        self.groups = [range(start, end) for start, end in itertools.pairwise(counts)]
        self.parts = calibration.all_parts
        self.weight_squares = [
            sublayer.projection.weight.double().square().mean(0) for sublayer in model.sublayers
        ]  # above the current sub-layer every weight is still the dense one
        # whether the loss has a gradient while student and teacher are the same network
        self.compares_all = method.legacy_broadcast and calibration.kind.name == "regression"

    def scores(self, student: States, s: int, budget: Budget) -> list[Floats]:
        """One array [units] per sub-layer from s up, higher is better, ready to be compared with the threshold.

        At s = 0, and as long as nothing is pruned, student and teacher are the same network: gradients would be rounding noise,
        no backward pass is run, and representational knowledge ranks alone, also in the limit lambda_rep -> 0. Not so under
        legacy_broadcast, whose loss compares every example with every other and is not zero there.
        """
        model, method = self.model, self.method
        above = range(s, model.shape.sublayers)
        predictive = [torch.zeros_like(self.weight_squares[t]) for t in above]
        squares = [torch.zeros_like(self.weight_squares[t]) for t in above]
        backward = (s > 0 or self.compares_all) and method.lambda_pred > 0
        for indices in self.groups:
            if s == 0 and backward:  # the loss of a part needs the targets of its whole group
                with torch.no_grad():
                    self.teacher_logits += [model.run(student.hidden[i], student.contexts[i]) for i in indices]
            ones = model.ones(self.parts[indices[0]], s) if backward else {}
            gradients = [torch.zeros_like(one, dtype=torch.float64) for one in ones.values()]
            for i in indices:
                logits = self._forward(student.hidden[i], student.contexts[i], s, ones, squares)
                if not backward:
                    if s == 0:
                        self.teacher_logits.append(logits)
                    continue
                losses = self._losses(logits, self.teacher_logits[i], student.contexts[i], [self.teacher_logits[j] for j in indices])
                loss = losses @ self.parts[i]["shares"].to(losses)
                for total, gradient in zip(gradients, torch.autograd.grad(loss, list(ones.values())), strict=True):
                    total += gradient
            for total, gradient, t in zip(predictive, gradients, above, strict=False):  # none without a backward pass
                total += self._squared(gradient, model.sublayers[t])
        n, tokens = self.calibration.examples, self.calibration.tokens
        lambda_rep = method.lambda_rep if backward or method.lambda_rep > 0 else 1.0
        result = []
        for j, t in enumerate(above):
            columns = lambda_rep * squares[j] * self.weight_squares[t] / tokens
            columns += method.lambda_pred * predictive[j] / (2 * n)
            sublayer = model.sublayers[t]
            units = sublayer.by_unit(columns).mean(1) / budget.prices[t].each
            result.append(method.spared((self._mu(sublayer) * units).cpu().numpy(), sublayer))
        return result

    def _mu(self, sublayer: SubLayer) -> float:
        """What the scores of a sub-layer are multiplied by: those of heads count more."""
        if isinstance(self.method.mu, str):
            return sublayer.width
        return self.method.mu if sublayer.kind == "attention" else 1.0

    def _forward(self, hidden: Tensor, context: Context, s: int, ones: dict[int, Tensor], squares: list[Tensor]) -> Tensor:
        """Logits from the hidden state below sub-layer s; sums of x² are added to `squares`."""
        model = self.model
        with model.probed(ones, context):
            for t, total in enumerate(squares, s):
                if model.reads_first_tokens(t):
                    with torch.no_grad():  # representational knowledge counts all tokens, the loss depends on the first
                        total += widened(model.sublayers[t].features(hidden, context)[0]).square().sum(0)
                    hidden, context = hidden[context.first], context.narrowed()
                    hidden = model.sublayers[t](hidden, context)[2]
                else:
                    x, _, hidden = model.sublayers[t](hidden, context)
                    total += widened(x.detach()).square().sum(0)
            return model.output(hidden, context)

    def _squared(self, gradient: Tensor, sublayer: SubLayer) -> Tensor:
        """Squares of gradients [batches, columns], summed over the batches; with head_gradient=head every column gets its
        head's."""
        if self.method.head_gradient == "column":
            return gradient.square().sum(0)
        return sublayer.by_unit(gradient).sum(2).square().sum(0).repeat_interleave(sublayer.width)

    def _losses(self, logits: Tensor, target: Tensor, context: Context, targets: Sequence[Tensor]) -> Tensor:
        """How far every example's logits are from the teacher's [B]: T^2 KL(teacher || student), of numbers and embeddings the
        squared difference. `targets`: the teacher's logits of all parts of the group."""
        if self.compares_all:  # [B, 1] - [B]: every example with every other of its batch
            return _mean_square_of_pairs(logits, torch.cat(list(targets)), context.narrowed().owners)
        return self.calibration.kind.divergence(logits, target, self.method.temperature)


def _mean_square_of_pairs(logits: Tensor, targets: Tensor, owners: Tensor | None) -> Tensor:
    """Mean of (logit - target)² over the targets of an example's batch [B]; logits [B, 1], targets [N, 1]."""
    pairs = (logits - targets.flatten()).square()
    if owners is None:
        return pairs.mean(1)
    of_one_batch = (owners.T @ owners).to(pairs)
    return (pairs * of_one_batch).sum(1) / of_one_batch.sum(1)


def threshold(scores: Sequence[Floats], first: int, budget: Budget, left: float) -> float:
    """The smallest tau, out of the scores and minus infinity, for which {units with score > tau} fits (KPMS).

    `scores` holds one array per sub-layer from `first` on, `left` is the remaining budget. Ties at tau go together.
    """
    values = np.concatenate(scores)
    sublayers = np.repeat(first + np.arange(len(scores)), [len(part) for part in scores])
    order = descending(values)
    fitting = int(np.searchsorted(budget.running(sublayers[order]), left, side="right"))
    return -np.inf if fitting == len(values) else float(values[order[fitting]])


@torch.no_grad()
def normal_equations(sublayer: SubLayer, columns: Tensor, teacher: States, student: States) -> tuple[Tensor, Tensor]:
    """G = XᵀX [k, k] and R = XᵀY [k, d] in fp64 over real tokens; the teacher is advanced on the way.

    X: the student's kept columns of the output projection's input. Y = o* - r - b: the dense model's residual stream
    after the sub-layer, less the student's residual and the bias. The projection's weight is still the dense one.
    """
    projection, k = sublayer.projection, len(columns)
    gram = torch.zeros(k, k, dtype=torch.float64, device=columns.device)
    right = torch.zeros(k, projection.out_features, dtype=torch.float64, device=columns.device)
    for i, context in enumerate(student.contexts):
        x, residual = sublayer.features(teacher.hidden[i], context)
        stream = residual + projection(x)
        teacher.hidden[i].copy_(sublayer.close(stream))
        x, residual = sublayer.features(student.hidden[i], context)
        kept = x.index_select(1, columns).double()
        wanted = (stream - residual - sublayer.bias).double()
        add_gram(gram, kept)
        right.addmm_(kept.T, wanted)
    return symmetric(gram), right


def solve(gram: Tensor, right: Tensor) -> tuple[Tensor | None, str | None]:
    """Solve G W = R by Cholesky; with a growing ridge, then minimum-norm least squares, where G is not positive definite.

    Returns W [k, d], or None where nothing finite comes out, and a note where plain Cholesky did not do.
    """
    diagonal = gram.diagonal()
    least = len(gram) * torch.finfo(gram.dtype).eps
    for ridge in (0.0, *(10.0**-p for p in range(10, 3, -1))):
        damped = gram.clone() if ridge else gram
        damped.diagonal().add_(ridge * diagonal.mean())
        factor, info = torch.linalg.cholesky_ex(damped)
        # the share of a column that those before it do not explain: at rounding level the matrix is singular
        independent = (factor.diagonal().square() > least * diagonal).all()
        if int(info) == 0 and bool(independent):
            weight = torch.cholesky_solve(right, factor)
            if bool(torch.isfinite(weight).all()):
                return weight, f"ridge {ridge:g}" if ridge else None
    try:
        weight = torch.linalg.lstsq(gram.cpu(), right.cpu(), driver="gelsd").solution.to(gram)
        if bool(torch.isfinite(weight).all()):
            return weight, "minimum-norm least squares"
    except RuntimeError:
        pass
    return None, "no finite solution, the weight stays"
