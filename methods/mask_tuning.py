"""Mask tuning: one factor per kept unit, so that each sub-layer's output comes back to a teacher's.

Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", NeurIPS 2022, section 4.3.
"""

from collections.abc import Container

import numpy as np
import torch
from torch import Tensor

from bench.calibration import Calibration
from bench.masks import Masks
from bench.model import PrunableModel
from bench.nn.sublayer import SubLayer
from bench.stages import progress
from methods.gram import add_gram, symmetric
from methods.states import States

LIMIT = 10.0  # a factor beyond it ends all further tuning


def tune_masks(
    model: PrunableModel,
    calibration: Calibration,
    masks: Masks,
    teacher_masks: Masks,
    ffn_teacher: str,
    sublayers: Container[int],
) -> tuple[Masks, str | None]:
    """Factors for the kept units of the named sub-layers of binary masks, bottom to top.

    The teacher is the model under `teacher_masks`; with ffn_teacher "full" the target of a feed-forward is its
    unmasked output on the masked teacher's inputs, as in the authors' code. Returns the masks and, where a factor beyond
    the limit stopped the tuning, a note.
    """
    tuned = Masks(masks.heads.copy(), masks.neurons.copy())
    student = States.embedded(model, calibration)
    teacher = student.fork()
    for s in progress(range(model.shape.sublayers), "mask tuning, sub-layers"):
        sublayer = model.sublayers[s]
        if model.reads_first_tokens(s):
            teacher.narrow()
            student.narrow()
        teacher_factors = sublayer.factors(teacher_masks.of(s))
        kept = np.flatnonzero(masks.of(s))
        if s in sublayers and kept.size:
            unmasked = sublayer.kind == "feed_forward" and ffn_teacher == "full"
            a, b = normal_equations(sublayer, kept, teacher_factors, unmasked, teacher, student)
            if not bool(torch.isfinite(a).all() & torch.isfinite(b).all()):
                return tuned, f"mask tuning stopped at sub-layer {s}: its equations are not finite"
            factors = solve_damped(a, b).cpu().numpy()[: len(kept)]  # without that of the column of ones
            if np.abs(factors).max() > LIMIT or not np.isfinite(factors).all():
                return tuned, f"mask tuning stopped at sub-layer {s}: a factor of {factors[np.abs(factors).argmax()]:.3g}"
            tuned.of(s)[kept] = factors
        else:
            teacher.advance(model, s, teacher_factors)
        student.advance(model, s, sublayer.factors(tuned.of(s)))
    return tuned, None


@torch.no_grad()
def normal_equations(
    sublayer: SubLayer, kept: np.ndarray, teacher_factors: Tensor, unmasked: bool, teacher: States, student: States
) -> tuple[Tensor, Tensor]:
    """A [n, n] and B [n] of the least squares over real tokens and hidden dimensions, in fp64; the teacher is advanced on
    the way. `unmasked`: the target is the teacher's output without its masks in this sub-layer.

    Unknowns: the kept units, for an attention also a column of ones. A unit's column is its contribution to the output
    projection; the target is the teacher's residual stream less the bias and the student's residual. In the last
    feed-forward of a classifier only the first token counts.
    """
    columns, projection = sublayer.columns(kept), sublayer.projection
    weight = projection.weight[:, columns].double()  # [d, k]
    gram = weight.new_zeros(len(columns), len(columns))
    cross = torch.zeros_like(weight)  # Tᵀ X
    sum_x, sum_target, tokens = torch.zeros_like(gram[0]), weight.new_zeros(()), 0
    for i, context in enumerate(student.contexts):
        x, residual = sublayer.features(teacher.hidden[i], context)
        masked = residual + projection(x * teacher_factors)
        wanted = (residual + projection(x) if unmasked else masked) - sublayer.bias
        teacher.hidden[i].copy_(sublayer.close(masked))
        x, residual = sublayer.features(student.hidden[i], context)
        features, wanted = x.index_select(1, columns).double(), (wanted - residual).double()
        add_gram(gram, features)
        cross.addmm_(wanted.T, features)
        sum_x += features.sum(0)
        sum_target += wanted.sum()
        tokens += len(features)
    groups = (len(kept), sublayer.width)
    a = ((weight.T @ weight) * symmetric(gram)).view(*groups, *groups).sum((1, 3))
    b = (weight * cross).sum(0).view(groups).sum(1)
    if sublayer.kind == "attention":
        ones = (sum_x * weight.sum(0)).view(groups).sum(1)
        corner = a.new_tensor(float(tokens * len(weight)))
        a = torch.cat([torch.cat([a, ones[:, None]], 1), torch.cat([ones, corner[None]])[None]])
        b = torch.cat([b, sum_target[None]])
    return a, b


def solve_damped(a: Tensor, b: Tensor) -> Tensor:
    """x = 1 + y, y the exact solution of min ‖A y - (B - A 1)‖² + ‖y‖², which the authors' code seeks by LSMR.

    A [n, n] is the normal matrix itself, so the damping is not scaled by the number of tokens (algorithms, section 2.5).
    y = (A² + I)⁻¹ A r is the real part of (A + i I)⁻¹ r: A is not squared, which would lose the damping beside large entries.
    """
    shifted = torch.complex(a, torch.eye(len(a), dtype=a.dtype, device=a.device))
    y: Tensor = torch.linalg.solve(shifted, (b - a.sum(1)).to(shifted.dtype)).real
    return 1.0 + y
