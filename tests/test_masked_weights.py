"""Masks of single weights: k-th values, gradients, allocations, budgets, files."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import made_up
from bench.budget import Budget
from bench.masks import WeightMasks
from bench.nn.shrink import zeroed
from bench.training import cubic
from methods.masked_weights import Gates, Masked, MaskedWeights, _by_bits, kth_largest
from methods.smp import Strength, shares


@pytest.mark.parametrize("count", [1, 10, 5000, 40_000])
@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "sorted"])
def test_the_kth_value_is_that_of_a_sort(count, kind):
    torch.manual_seed(count)
    values = {
        "normal": torch.randn(count),
        "ties": torch.randint(-3, 3, (count,)).float(),
        "equal": torch.zeros(count),
        "sorted": torch.arange(count).float(),
    }[kind]
    ranked = values.sort(descending=True).values
    for k in {1, 2, count // 10, count // 2, count} - {0}:
        k = min(k, count)
        assert kth_largest(values, k) == ranked[k - 1] == _by_bits(values, torch.tensor(k))
    assert kth_largest(values, 0) == torch.inf == _by_bits(values, torch.tensor(0))


def test_gradients_go_straight_through_the_mask():
    """dL/dS = G * W for kept and removed entries alike, dL/dW = G * mask."""
    torch.manual_seed(0)
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    masked = Masked(weight, scored=True)
    masked.mask = torch.rand(3, 4) > 0.5
    out = masked(weight)
    assert torch.equal(out, weight * masked.mask)
    gradient = torch.randn(3, 4, dtype=torch.float64)
    of_weight, of_scores = torch.autograd.grad(out, [weight, masked.scores], gradient)
    assert torch.equal(of_weight, gradient * masked.mask)
    assert torch.equal(of_scores, gradient * weight)


def test_schedules_start_and_end_where_the_papers_say():
    assert [cubic(t, 10, 0.1) for t in (0, 10, 15)] == [1.0, 0.1, 0.1]
    assert cubic(5, 10, 0.1) == pytest.approx(0.1 + 0.9 * 0.5**3)
    strength = Strength(400.0, 20)
    assert strength.at(0) == 0
    assert strength.at(20) == 400
    assert strength.at(5) == pytest.approx(400 * (1 - 0.75**3))


def test_matrices_of_a_type_share_their_budget_by_their_means():
    """Equation 4: v_m = v L R_m / sum of R over the type's layers."""
    means = torch.tensor([[0.5, 0.5], [0.3, 0.6]])
    found = shares(means, 0.4, redistribute=True)
    assert torch.allclose(found, torch.tensor([[0.4, 0.4], [0.8 / 3, 1.6 / 3]], dtype=torch.float64))


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=12), st.floats(0.0, 1.0))
def test_what_is_too_much_for_a_matrix_goes_to_the_others(row, density):
    means = torch.tensor([row])
    found, lost = shares(means, density, True)[0], shares(means, density, False)[0]
    assert float(found.max()) <= 1
    assert float(found.sum()) == pytest.approx(density * len(row), abs=1e-9)
    assert float(lost.sum()) <= float(found.sum()) + 1e-9
    order = np.argsort(row)
    assert np.all(np.diff(found.numpy()[order]) >= -1e-12), "a higher mean never keeps less"


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("how", ["keep_share", "keep_globally"])
def test_the_final_masks_fit_the_budget_and_leave_plain_layers(share, how):
    model = made_up.tiny()
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    masked = MaskedWeights(model, scored=False)
    getattr(masked, how)(share)
    budget = Budget.of(model, "weights", 1 - share, 1.0)
    masks = masked.finish(budget.limit)
    assert masks.count <= budget.limit + 1e-6
    assert masks.share == pytest.approx(share, abs=0.003)
    after = model.module.state_dict()
    assert after.keys() == before.keys()
    for name, mask in masks.kept.items():
        assert torch.equal(after[f"{name}.weight"], before[f"{name}.weight"] * torch.as_tensor(mask))


def test_equal_scores_are_cut_to_the_budget():
    """All scores are zero before any step: all are kept while training, no more than allowed at the end."""
    model = made_up.tiny()
    masked = MaskedWeights(model, scored=True)
    masked.keep_share(0.3)
    budget = Budget.of(model, "weights", 0.7, 1.0)
    masks = masked.finish(budget.limit)
    assert budget.limit - len(masks.kept) <= masks.count <= budget.limit


def test_equal_weights_go_where_they_are_too_many():
    """Every matrix ends with its own share, however many of its weights are alike."""
    model = made_up.tiny()
    masked = MaskedWeights(model, scored=False)
    last = list(masked.linears())[-1]
    with torch.no_grad():
        last.parametrizations.weight.original.fill_(1.0)
    masked.keep_share(0.3)
    masks = masked.finish(Budget.of(model, "weights", 0.7, 1.0).limit)
    assert all(mask.sum() == int(0.3 * mask.size) for mask in masks.kept.values())


def test_every_matrix_keeps_a_little_under_a_global_threshold():
    model = made_up.tiny()
    masked = MaskedWeights(model, scored=False)
    first = next(masked.linears())
    with torch.no_grad():
        first.parametrizations.weight.original.mul_(1e-6)
    masked.keep_globally(0.1, least=0.005)
    assert 0.003 < masked.masked(first).mask.double().mean() < 0.007


def test_the_budget_in_weights_counts_the_matrices():
    model = made_up.tiny()
    total = sum(linear.weight.numel() for own in model.matrices().values() for linear in own.values())
    assert Budget.of(model, "weights", 0.0, 1.0).total == total


def test_packed_masks_are_eight_to_a_byte_first_in_the_highest_bit():
    masks = WeightMasks({"a": np.array([[True, False, True], [False, False, False], [True, True, True]]), "b": np.ones((2, 2), bool)})
    assert {name: bits.tolist() for name, bits in masks.packed().items()} == {"a": [0b10100011, 0b10000000], "b": [0b11110000]}
    assert masks.packed_bytes == 3
    assert masks.share == 9 / 13
    assert masks.sha256() == WeightMasks(dict(reversed(masks.kept.items()))).sha256()


def test_zeroed_says_when_masks_are_of_another_model():
    model = made_up.tiny()
    with pytest.raises(ValueError, match="weight masks are of 1 matrices, the model has 18"):
        zeroed(model, WeightMasks({"x": np.ones((2, 2), bool)}))


def test_gates_are_hard_concrete():
    """Louizos et al. 2018: what is open in evaluation is clip(1.2 sigma(S) - 0.1, 0, 1)."""
    model = made_up.tiny(dtype=torch.float32)
    gates = Gates(model)
    scores = gates.scores()[0]
    with torch.no_grad():
        scores.copy_(torch.linspace(-6, 6, scores.numel()).view_as(scores))
    own = next(gates.linears()).parametrizations.weight[0].eval()
    assert torch.allclose(own.gates(), (1.2 * scores.sigmoid() - 0.1).clamp(0, 1))
    torch.manual_seed(0)
    drawn = torch.stack([own.train().gates().detach() > 0 for _ in range(400)]).double().mean(0)
    expected = (scores - 2 / 3 * np.log(0.1 / 1.1)).sigmoid().detach()
    assert float((drawn - expected).abs().max()) < 0.1, "the penalty is the chance of an open gate"
    assert gates.close(0.5) > 0.9
    assert gates.finish(Budget.of(model, "weights", 0.5, 1.0).limit).share == pytest.approx(0.5, abs=0.001)
