"""Minitron's importance: how strongly a unit is active (Muralidharan et al., NeurIPS 2024, arXiv 2407.14679), without retraining."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.budget import Scores
from bench.calibration import Calibration
from bench.masks import by_array
from bench.method import Scorer
from bench.model import PrunableModel
from bench.stages import progress


@dataclass
class Minitron(Scorer):
    """A neuron's mean absolute activation, an attention unit's mean L2 norm of its output, over the tokens of an example; over the
    examples their L2 norm (section 2.2, aggregation mean over the sequence, L2 over the batch, the paper's default). The hidden size,
    which the paper prunes too, has no mask and stays."""

    def score(self, model: PrunableModel, calibration: Calibration) -> Scores:
        """One forward pass, no labels."""
        squares = [torch.zeros(sublayer.units, dtype=torch.float64, device=model.device) for sublayer in model.sublayers]
        for part in progress(calibration.all_parts, "activations"):
            hidden, context = model.embed(part)
            lengths = part["attention_mask"].sum(1)
            for s, sublayer in enumerate(model.sublayers):
                x, _, hidden = sublayer(hidden, context)
                activity = sublayer.by_unit(x.double()).norm(dim=2)  # of a neuron, which has one column, the absolute value
                squares[s] += _means(activity, lengths).square().sum(0)
        heads, neurons = (torch.stack(list(rows)).sqrt().cpu().numpy() for rows in by_array(squares))
        return Scores(heads, neurons)


def _means(values: Tensor, lengths: Tensor) -> Tensor:
    """Of packed values [tokens, units] the mean of each example [B, units]."""
    owner = torch.arange(len(lengths), device=values.device).repeat_interleave(lengths)
    sums = values.new_zeros(len(lengths), values.shape[1]).index_add_(0, owner, values)
    return sums / lengths[:, None]
