"""Costs and allocations: worked out by hand, and inequalities that always hold."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from bench.budget import ALLOCATIONS, Budget, Price, Scores, by_cost, joint, uniform, uniform_share
from bench.made_up import arch_of, batch, calibration, tiny
from bench.masks import Masks, Shape
from bench.method import Skip
from bench.model import PrunableModel
from bench.tasks import KINDS
from methods.random import Random

BERT_BASE = Shape(layers=12, heads=12, neurons=3072, hidden=768, head_dim=64)


@cache
def of(shape):
    """A BERT of these sizes, without weights."""
    sizes = {"num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "intermediate_size": shape.neurons}
    with torch.device("meta"):
        model = PrunableModel(
            BertForSequenceClassification(BertConfig(hidden_size=shape.hidden, **sizes)), arch_of("bert"), KINDS["classification"]
        )
    assert model.shape == shape
    return model


def test_costs_are_the_formulas():
    flops = Budget.of(of(BERT_BASE), "flops", 0.5, 128.0)
    assert flops.head == 8 * 128 * 768 * 64 + 4 * 128**2 * 64
    assert flops.neuron == 4 * 128 * 768
    params = Budget.of(of(BERT_BASE), "params", 0.5, 128.0)
    assert params.head == 4 * 768 * 64 + 3 * 64
    assert params.neuron == 2 * 768 + 1
    assert params.total == 12 * (12 * params.head + 3072 * params.neuron)
    assert params.limit == params.total / 2


def random_scores(shape, seed, ties=False):
    random = np.random.default_rng(seed)
    heads, neurons = random.random((shape.layers, shape.heads)), random.random((shape.layers, shape.neurons))
    return Scores(np.round(heads, 1), np.round(neurons, 1)) if ties else Scores(heads, neurons)


@given(
    seed=st.integers(0, 1000),
    ratio=st.one_of(st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.95, 0.99]), st.floats(1e-6, 0.999)),  # less than the tolerance is rounding
    length=st.floats(3, 400),
    unit=st.sampled_from(["flops", "params"]),
    name=st.sampled_from(sorted(ALLOCATIONS)),
    ties=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_no_allocation_exceeds_the_budget_or_wastes_a_neuron(seed, ratio, length, unit, name, ties):
    shape = Shape(3, 4, 20, 24, 6)
    budget = Budget.of(of(shape), unit, ratio, length)
    masks = ALLOCATIONS[name](random_scores(shape, seed, ties), budget)
    assert budget.fits(budget.cost(masks))
    if masks.neurons.sum() < masks.neurons.size:
        assert not budget.fits(budget.cost(masks) + budget.neuron)


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
@pytest.mark.parametrize("length", [25.16, 31.47, 39.05, 53.24, 170.0])
def test_ratio_zero_prunes_nothing(name, length):
    budget = Budget.of(of(BERT_BASE), "flops", 0.0, length)
    masks = ALLOCATIONS[name](random_scores(BERT_BASE, 0), budget)
    assert masks.heads.all()
    assert masks.neurons.all()


def test_uniform_by_hand():
    shape = Shape(2, 2, 4, 1, 1)
    budget = Budget.of_kinds(shape, Price(4.0), Price(1.0), ratio=0.5)  # total 24, limit 12: one head and two neurons a layer
    scores = Scores(np.array([[1.0, 2.0], [5.0, 5.0]]), np.array([[1.0, 2, 3, 4], [9, 9, 9, 9]]))
    masks = uniform(scores, budget)
    assert masks.heads.tolist() == [[0, 1], [1, 0]]
    assert masks.neurons.tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]


def test_uniform_spends_what_is_left_on_the_best_heads_then_neurons():
    shape = Shape(2, 2, 4, 1, 1)
    budget = Budget.of_kinds(shape, Price(4.0), Price(1.0), ratio=0.6)  # limit 9.6: no head a layer, one neuron; 7.6 left
    scores = Scores(np.array([[1.0, 2.0], [5.0, 4.0]]), np.array([[1.0, 2, 3, 4], [9, 9, 9, 10]]))
    masks = uniform(scores, budget)
    assert masks.heads.tolist() == [[0, 0], [1, 0]]  # one head fits, the best of the model
    assert masks.neurons.tolist() == [[0, 0, 0, 1], [1, 1, 1, 1]]  # then three neurons, equals bottom up


@pytest.mark.parametrize("name", ["uniform", "global"])
@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.97])
def test_what_costs_nothing_more_is_kept(name, ratio):
    """Up to `free` units a sub-layer costs its base, here nothing: whatever else is bought, those are there."""
    shape = Shape(4, 6, 50, 8, 2)
    budget = Budget.of_kinds(shape, Price(2.0, 0.0, 1), Price(1.0, 0.0, 10), ratio)
    masks = ALLOCATIONS[name](random_scores(shape, 0), budget)
    assert budget.fits(budget.cost(masks))
    assert masks.heads.sum(1).min() >= 1
    assert masks.neurons.sum(1).min() >= 10


def test_a_share_of_every_layer_that_cannot_be_paid_is_a_reason_to_skip():
    shape = Shape(4, 6, 50, 8, 2)
    price = Price(0.1, 10.0, 1), Price(0.1, 10.0, 1)
    assert uniform_share(Budget.of_kinds(shape, *price, 0.3)) > 0
    budget = Budget.of_kinds(shape, *price, 0.7)
    assert uniform_share(budget) == 0
    with pytest.raises(Skip, match=r"not one neuron of each can be paid here; method.allocation=global"):
        Random().prune(tiny(), calibration([batch([5, 3])]), budget)
    assert budget.cost(by_cost(random_scores(shape, 0), budget)) > 0


def test_global_by_hand():
    shape = Shape(1, 2, 3, 1, 1)
    budget = Budget.of_kinds(shape, Price(4.0), Price(1.0), ratio=0.4)  # total 11, limit 6.6
    scores = Scores(np.array([[8.0, 3.0]]), np.array([[1.0, 0.5, 0.9]]))  # per cost: 2, 0.75 | 1, 0.5, 0.9
    masks = by_cost(scores, budget)
    assert masks.heads.tolist() == [[1, 0]]
    assert masks.neurons.tolist() == [[1, 0, 1]]  # head 1 does not fit, and 0.6 is left
    ranked = by_cost(Scores(scores.heads, scores.neurons, ranked=True), budget)
    assert ranked.heads.tolist() == [[1, 0]]  # 8, 3, 1, ...: the second head does not fit, what fits is put back
    assert ranked.neurons.tolist() == [[1, 0, 1]]


def test_a_price_with_a_base():
    price = Price(each=2.0, base=10.0, free=3)
    assert price.of(np.arange(6)).tolist() == [0, 10, 10, 10, 12, 14]
    assert np.cumsum(price.step(np.arange(1, 6))).tolist() == price.of(np.arange(1, 6)).tolist()


def latency_budget(shape, seed, ratio):
    random = np.random.default_rng(seed)
    heads = Price(random.uniform(1, 3), random.uniform(0, 5), int(random.integers(1, shape.heads + 1)))
    neurons = Price(random.uniform(0.1, 1), random.uniform(0, 5), int(random.integers(1, shape.neurons + 1)))
    return Budget.of_kinds(shape, heads, neurons, ratio)


@given(seed=st.integers(0, 10_000), ratio=st.floats(0, 0.999), name=st.sampled_from(sorted(ALLOCATIONS)))
@settings(max_examples=200, deadline=None)
def test_no_allocation_exceeds_a_budget_of_latency(seed, ratio, name):
    shape = Shape(3, 4, 20, 24, 6)
    budget = latency_budget(shape, seed, ratio)
    masks = ALLOCATIONS[name](random_scores(shape, seed), budget)
    assert budget.fits(budget.cost(masks))


@given(seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_a_running_cost_is_the_cost_of_the_first_units(seed):
    random, shape = np.random.default_rng(seed), Shape(2, 3, 5, 6, 2)
    budget, order = latency_budget(shape, seed, 0.5), random.permutation(16)
    sublayers = np.array([0, 0, 0, 2, 2, 2, *[1] * 5, *[3] * 5])[order]
    masks = Masks(np.zeros((2, 3)), np.zeros((2, 5)))
    for n, unit in enumerate(order):
        (masks.heads if unit < 6 else masks.neurons).ravel()[unit if unit < 6 else unit - 6] = 1.0
        assert budget.running(sublayers)[n] == pytest.approx(budget.cost(masks))


@given(seed=st.integers(0, 300), ratio=st.sampled_from([0.0, 0.3, 0.6, 0.9]))
@settings(max_examples=40, deadline=None)
def test_joint_under_latency_is_the_best_of_all_dropped_layers_and_numbers_of_heads(seed, ratio):
    """Algorithms 2.3, spelt out: the base units of the sub-layers that stay, and the best others that can be paid."""
    shape = Shape(3, 3, 4, 4, 2)
    budget, scores = latency_budget(shape, seed, ratio), random_scores(shape, seed)
    masks = joint(scores, budget)
    sides = []
    for values, price in ((scores.heads, budget.heads), (scores.neurons, budget.neurons)):
        base = [np.sort(row)[::-1][: price.free].sum() for row in values]
        dropping = sorted(range(3), key=lambda layer: base[layer])
        options = []
        for dropped in range(4):
            stay = [layer for layer in range(3) if layer not in dropping[:dropped]]
            others = sorted((v for layer in stay for v in np.sort(values[layer])[::-1][price.free :]), reverse=True)
            for bought in range(len(others) + 1):
                gain = sum(base[layer] for layer in stay) + sum(others[:bought])
                options.append((len(stay) * price.base + bought * price.each, gain))
        sides.append(options)
    best = max(g + h for (c, g), (e, h) in itertools.product(*sides) if budget.fits(c + e))
    assert (scores.heads * masks.heads).sum() + (scores.neurons * masks.neurons).sum() == pytest.approx(best)


@given(seed=st.integers(0, 300), ratio=st.sampled_from([0.0, 0.2, 0.5, 0.8, 0.97]))
@settings(max_examples=60, deadline=None)
def test_joint_is_the_best_of_all_numbers_of_heads(seed, ratio):
    shape = Shape(2, 3, 5, 6, 2)
    budget, scores = Budget.of(of(shape), "flops", ratio, 10.0), random_scores(shape, seed)
    masks = joint(scores, budget)
    best = -1.0
    for heads, neurons in itertools.product(range(7), range(11)):
        if budget.fits(heads * budget.head + neurons * budget.neuron):
            gain = np.sort(scores.heads.ravel())[::-1][:heads].sum() + np.sort(scores.neurons.ravel())[::-1][:neurons].sum()
            best = max(best, gain)
    assert (scores.heads * masks.heads).sum() + (scores.neurons * masks.neurons).sum() == pytest.approx(best)


def test_joint_takes_negative_scores_and_prunes_nothing_at_ratio_zero():
    shape = Shape(2, 3, 5, 6, 2)
    scores = random_scores(shape, 0)
    low = Scores(scores.heads - 5, scores.neurons - 5)
    masks = joint(low, Budget.of(of(shape), "flops", 0.4, 10.0))
    assert masks.neurons.any()
    assert Budget.of(of(shape), "flops", 0.4, 10.0).fits(Budget.of(of(shape), "flops", 0.4, 10.0).cost(masks))
    nothing = Scores(scores.heads * 0, scores.neurons * 0)
    assert joint(nothing, Budget.of(of(shape), "flops", 0.0, 10.0)).heads.all()


def test_joint_may_keep_no_head():
    budget = Budget.of_kinds(Shape(1, 1, 4, 1, 1), Price(10.0), Price(1.0), ratio=0.5)
    masks = joint(Scores(np.array([[9.0]]), np.ones((1, 4))), budget)
    assert masks.heads.sum() == 0
    assert budget.fits(budget.cost(masks))


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_a_score_that_is_no_number_is_refused(name):
    shape = Shape(2, 4, 6, 8, 2)
    scores = Scores(np.full((2, 4), np.nan), np.ones((2, 6)))
    with pytest.raises(ValueError, match="no numbers"):
        ALLOCATIONS[name](scores, Budget.of(of(shape), "flops", 0.5, 8.0))


def test_the_cheapest_masks_are_one_unit():
    shape = Shape(2, 4, 6, 8, 2)
    budget = Budget.of_kinds(shape, Price(1.0, 2.0, 1), Price(0.5, 0.7, 3), 0.9)
    masks = Masks(np.zeros((2, 4)), np.zeros((2, 6)))
    masks.neurons[1, 3] = 1.0
    assert budget.least == budget.cost(masks) == 0.7


@pytest.mark.parametrize(
    "take",
    [
        list,
        tuple,
        torch.tensor,
        lambda rows: torch.tensor(rows, dtype=torch.bfloat16, requires_grad=True),
        lambda rows: [torch.tensor(row) for row in rows],
        lambda rows: np.array(rows, dtype=np.float16),
    ],
)
def test_scores_are_taken_as_lists_tensors_and_arrays(take):
    scores = Scores(take([[1.0, 2.0]]), take([[3.0, 4.0, 5.0]]))
    scores.check(Shape(1, 2, 3, 4, 2))
    assert scores.heads.dtype == scores.neurons.dtype == np.float64
    assert scores.neurons.tolist() == [[3.0, 4.0, 5.0]]


@pytest.mark.parametrize("wrong", [None, "a", [[1.0], [1.0, 2.0]], [["a"]], {0: [1.0]}, [None], [[1j]]], ids=str)
def test_scores_that_are_no_table_of_numbers_are_told(wrong):
    with pytest.raises(TypeError, match=r"scores: heads is no table of numbers but \w+: Scores\(heads, neurons\) takes"):
        Scores(wrong, [[1.0]])
