"""Sub-layers: which rows and columns belong to a unit, its weights, its bias and its price."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.made_up import FAMILIES, batch, tiny
from bench.masks import Masks
from bench.nn.shrink import grow, mask_error, shrink
from bench.nn.sublayer import Producer


def test_units_own_consecutive_columns_and_rows():
    attention, feed_forward = tiny().sublayers[:2]
    assert attention.columns([1, 3]).tolist() == [*range(6, 12), *range(18, 24)]
    assert feed_forward.columns([1, 3]).tolist() == [1, 3]
    assert attention.factors(np.array([1.0, 0.0, 2.0, 0.5])).tolist() == [1.0] * 6 + [0.0] * 6 + [2.0] * 6 + [0.5] * 6
    assert Producer("key", "k", nn.Linear(8, 6), 2).rows([0, 2]).tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize("family", FAMILIES)
def test_incoming_and_outgoing_weights_are_all_that_a_unit_has(family):
    for sublayer in tiny(family).sublayers:
        weights = torch.cat([sublayer.incoming(), sublayer.outgoing()], 1)
        assert weights.shape == (sublayer.units, sublayer.cost("weights", 1.0))
        own = [producer.linear.weight[producer.rows([2])] for producer in sublayer.producers]
        own.append(sublayer.projection.weight[:, sublayer.columns([2])])
        assert torch.equal(weights[2].sort().values, torch.cat([part.flatten() for part in own]).sort().values)


def test_a_projection_without_bias_gets_one_when_it_needs_one():
    sublayer = tiny().sublayers[0]
    sublayer.projection.bias = None
    assert sublayer.bias.tolist() == [0.0] * 24
    sublayer.add_bias(torch.arange(24.0))
    assert sublayer.bias.tolist() == sublayer.projection.bias.tolist() == list(range(24))
    assert not sublayer.projection.bias.requires_grad


def test_linear_maps_without_biases_cost_less_and_are_shrunk_and_grown():
    model = tiny()
    with_biases = [sublayer.cost("params", 1.0) for sublayer in model.sublayers[:2]]
    for sublayer in model.sublayers:
        for _, _, linear in sublayer.matrices():
            linear.bias = None
    assert [sublayer.cost("params", 1.0) for sublayer in model.sublayers[:2]] == [with_biases[0] - 18, with_biases[1] - 1]
    masks = Masks.ones(model.shape)
    masks.heads[0, 1:] = masks.heads[1] = masks.neurons[0, ::2] = masks.neurons[2] = 0.0
    small = shrink(model, masks)
    assert mask_error(model, masks, small, [batch([5, 3])]) < 1e-12
    grown = model.copy()
    assert mask_error(grown, grow(grown, masks, small), small, [batch([5, 3])]) < 1e-12


def test_an_unknown_unit_has_no_price():
    with pytest.raises(ValueError, match="unit=seconds: flops, params or weights"):
        tiny().sublayers[0].cost("seconds", 1.0)
