"""Kwon et al. against a slow, literal transcription of its formulas that shares no code with methods/."""

import copy
from math import sqrt

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bench.budget import Budget
from bench.made_up import batch, calibration, tiny
from methods.fisher import batch_gradients
from methods.kwon import Kwon, rearrange
from methods.mask_tuning import solve_damped

LENGTHS = [[9, 4, 1, 7], [6, 6, 6, 6], [12, 3, 5]]
EPS = 1 + 1e-9


def batches(regression=False):
    return [batch(lengths, seed, regression) for seed, lengths in enumerate(LENGTHS)]


def places(model, s):
    layer = model.bert.encoder.layer[s // 2]
    return (layer.output.dense, layer.intermediate.dense) if s % 2 else (layer.attention.output.dense, layer.attention.self.query)


def run(model, inputs, masks):
    """Logits under unit masks, and by sub-layer the projection's input before the mask, and the sub-layer's input."""
    seen, hooks = {s: {} for s in range(len(masks))}, []
    for s, mask in enumerate(masks):
        projection, first = places(model, s)
        columns = mask.repeat_interleave(projection.in_features // len(mask))

        def before(_, args, s=s, columns=columns):
            seen[s]["x"] = args[0]
            return (args[0] * columns,)

        hooks.append(projection.register_forward_pre_hook(before))
        hooks.append(first.register_forward_pre_hook(lambda _, args, s=s: seen[s].update(residual=args[0])))
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    for hook in hooks:
        hook.remove()
    return logits, seen


def literal_search(importance, heads, neurons, budget):
    """Every number of heads from 0, the neurons that fill the rest, the largest sum; flat indices kept."""
    by_head = sorted(heads, key=lambda unit: -importance[unit])
    by_neuron = sorted(neurons, key=lambda unit: -importance[unit])
    best, kept = -1.0, None
    for h in range(len(heads) + 1):
        rest = budget.limit * EPS - h * budget.head
        if rest < 0:
            break
        n = min(len(neurons), int(rest / budget.neuron))
        gain = sum(importance[u] for u in by_head[:h] + by_neuron[:n])
        if gain > best:
            best, kept = gain, set(by_head[:h] + by_neuron[:n])
    return kept


def literal_rearrange(pruned, units, gradient):
    """Greedy exchange with full vectors; `gradient[unit]` [batches]."""
    if not pruned or len(pruned) == len(units):
        return set(pruned)
    order = sorted(units, key=lambda u: float((gradient[u] ** 2).sum()))
    members = order[: len(pruned)]
    for unit in order[len(pruned) :]:
        members = [*members, unit]
        total = sum(gradient[u] for u in members)
        lengths = [float(((total - gradient[u]) ** 2).sum()) for u in members]
        members.pop(lengths.index(min(lengths)))
    return set(members)


def literal_kwon(model, data, budget, regression=False, ffn_teacher="full"):
    layers, shape = len(model.bert.encoder.layer), budget.shape
    sizes = [shape.neurons if s % 2 else shape.heads for s in range(2 * layers)]
    gradient = {}
    for b, inputs in enumerate(data):
        masks = [torch.ones(size, dtype=torch.float64, requires_grad=True) for size in sizes]
        logits, _ = run(model, inputs, masks)
        loss = F.mse_loss(logits[:, 0], inputs["labels"].double()) if regression else F.cross_entropy(logits, inputs["labels"])
        for s, grad in enumerate(torch.autograd.grad(loss, masks)):
            for unit in range(sizes[s]):
                gradient.setdefault((s, unit), np.zeros(len(data)))[b] = float(grad[unit])
    importance = {unit: float((g**2).sum()) for unit, g in gradient.items()}
    heads, neurons = [u for u in gradient if u[0] % 2 == 0], [u for u in gradient if u[0] % 2]
    searched = literal_search(importance, heads, neurons, budget)
    teacher_kept = literal_search(importance, heads, neurons, budget.at(1 - sqrt(1 - budget.ratio)))
    kept = set(searched)
    for s in range(2 * layers):
        units = [u for u in gradient if u[0] == s]
        kept = (kept - set(units)) | (set(units) - literal_rearrange([u for u in units if u not in searched], units, gradient))

    def as_masks(of):
        return [torch.tensor([float((s, u) in of) for u in range(sizes[s])], dtype=torch.float64) for s in range(2 * layers)]

    teacher_masks, factors = as_masks(teacher_kept), as_masks(kept)
    for s in range(1, 2 * layers):
        units = [u for u in range(sizes[s]) if factors[s][u]]
        if not units:
            continue
        projection, width = places(model, s)[0], shape.head_dim if s % 2 == 0 else 1
        blocks, targets = [], []
        for inputs in data:
            with torch.no_grad():
                _, t = run(model, inputs, teacher_masks)
                _, mine = run(model, inputs, factors)
            mask = teacher_masks[s].repeat_interleave(width)
            if s % 2 and ffn_teacher == "full":
                mask = torch.ones_like(mask)
            goal = t[s]["residual"] + projection(t[s]["x"] * mask) - projection.bias - mine[s]["residual"]
            for example, count in enumerate(inputs["attention_mask"].sum(1).tolist()):
                for token in range(1 if s == 2 * layers - 1 else count):
                    x = mine[s]["x"][example, token]
                    spans = [slice(u * width, (u + 1) * width) for u in units]
                    parts = [projection.weight[:, span] @ x[span] for span in spans]
                    if s % 2 == 0:
                        parts.append(torch.ones(shape.hidden, dtype=torch.float64))
                    blocks.append(torch.stack(parts, 1))
                    targets.append(goal[example, token])
        design, target = torch.cat(blocks).numpy(), torch.cat(targets).detach().numpy()
        a, b = design.T @ design, design.T @ target
        damped = np.concatenate([a, np.eye(len(a))])
        y = np.linalg.lstsq(damped, np.concatenate([b - a @ np.ones(len(a)), np.zeros(len(a))]), rcond=None)[0]
        found = 1 + (y[:-1] if s % 2 == 0 else y)
        if np.abs(found).max() > 10:
            break
        factors[s][units] = torch.tensor(found)
    return gradient, factors


@pytest.mark.parametrize("micro", [12, 1000])  # a batch in several micro-batches; several batches in one
@pytest.mark.parametrize(
    ("ratio", "regression", "ffn_teacher"), [(0.5, False, "full"), (0.75, False, "full"), (0.4, True, "full"), (0.5, False, "masked")]
)
def test_the_fast_implementation_is_the_literal_one(ratio, regression, ffn_teacher, micro):
    model = tiny("bert", outputs=1 if regression else 2)
    data = batches(regression)
    budget = Budget.of(model, "flops", ratio, 6.0)
    gradient, wanted = literal_kwon(copy.deepcopy(model.module), data, budget, regression, ffn_teacher)
    sample = calibration(data, regression, micro=micro)
    with torch.enable_grad():
        fast = batch_gradients(model, sample)
        masks = Kwon(ffn_teacher=ffn_teacher).prune(model, sample, budget)
    for (s, unit), values in gradient.items():
        assert np.allclose((fast.neurons if s % 2 else fast.heads)[:, s // 2, unit], values, rtol=1e-8, atol=1e-14)
    for s, factors in enumerate(wanted):
        assert np.array_equal(masks.of(s) != 0, factors.numpy() != 0), f"mask of sub-layer {s}"
        assert np.allclose(masks.of(s), factors.numpy(), atol=1e-6), f"factors of sub-layer {s}"
    assert not np.isin(masks.neurons, [0, 1]).all(), "nothing was tuned"


def test_the_first_attention_keeps_its_ones():
    model = tiny("bert")
    with torch.enable_grad():
        masks = Kwon().prune(model, calibration(batches()), Budget.of(model, "flops", 0.4, 6.0))
    assert np.isin(masks.heads[0], [0, 1]).all()


def test_without_tuning_the_masks_are_binary_and_without_rearrangement_the_search():
    model, sample = tiny("bert"), calibration(batches())
    budget = Budget.of(model, "flops", 0.6, 6.0)
    with torch.enable_grad():
        plain = Kwon(rearrangement=False, tuning=False).prune(model, sample, budget)
        moved = Kwon(tuning=False).prune(model, sample, budget)
    assert np.isin(plain.neurons, [0, 1]).all()
    assert np.array_equal(plain.neurons.sum(1), moved.neurons.sum(1))
    assert not np.array_equal(plain.neurons, moved.neurons)


def test_rearrangement_by_hand():
    # one batch; importance 1, 4, 9, 16. Start with {1}: add 2 (sum -1), taking 1 out leaves 4, taking 2 out leaves 1
    gradients = np.array([[1.0, -2.0, 3.0, -4.0]])
    assert rearrange(np.array([0.0, 1, 1, 1]), gradients).tolist() == [0, 1, 1, 1]
    # two pruned: start {1, -2}; +3: out goes 3 -> 1, -2 leaves 1; or 1 leaves 1; first of equals ...
    mask = rearrange(np.array([0.0, 0, 1, 1]), gradients)
    pruned = gradients[0][mask == 0]
    assert len(pruned) == 2
    assert abs(pruned.sum()) == 1


@pytest.mark.parametrize("mask", [[0.0, 0, 0], [1.0, 1, 1]])
def test_nothing_to_rearrange(mask):
    assert rearrange(np.array(mask), np.ones((2, 3))).tolist() == mask


def test_the_damped_problem_is_solved_exactly():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(5, 5)), random.normal(size=5)
    a = a @ a.T
    y = solve_damped(torch.tensor(a), torch.tensor(b)).numpy() - 1
    gradient = a.T @ (a @ y - (b - a @ np.ones(5))) + y
    assert np.abs(gradient).max() < 1e-10


def test_a_single_unknown_works():
    found = solve_damped(torch.tensor([[4.0]], dtype=torch.float64), torch.tensor([6.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([1 + 8 / 17])


def test_ffn_teacher_is_checked():
    with pytest.raises(ValueError, match="ffn_teacher"):
        Kwon(ffn_teacher="half")


def test_the_damped_problem_of_equal_units_with_large_entries_has_a_finite_solution():
    """A^T A + I would be singular in fp64: A is not squared."""
    found = solve_damped(torch.full((2, 2), 1e8, dtype=torch.float64), torch.tensor([3e8, 3e8], dtype=torch.float64))
    assert found.tolist() == pytest.approx([1.5, 1.5])
