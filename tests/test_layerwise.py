"""Wanda and SparseGPT against their papers' formulas, written out in float64; Minitron, ShortGPT and LLM-Pruner too."""

import itertools

import numpy as np
import pytest
import torch

from bench.budget import Budget
from bench.made_up import calibration, tiny, windows
from bench.masks import Masks
from bench.method import Skip
from bench.nn.packing import inputs_of
from methods.layerwise import lowest_of_rows, two_of_four
from methods.llm_pruner import LLMPruner
from methods.minitron import Minitron
from methods.shortgpt import ShortGPT, block_influence
from methods.sparsegpt import SparseGPT, inverse_factor
from methods.wanda import Wanda


@pytest.fixture
def model():
    return tiny("llama")


def sample(model, count=6, length=12):
    return calibration([windows(count, length)], kind="language").of(model)


def weights_budget(model, ratio):
    return Budget.of(model, "weights", ratio, 12)


def inputs_by_name(module, one, names):
    """What each linear map reads, [tokens, in], of a plain forward pass."""
    seen = {}
    hooks = [
        module.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0].flatten(0, 1)))
        for name in names
    ]
    with torch.no_grad():
        module(**inputs_of(one))
    for hook in hooks:
        hook.remove()
    return seen


def layers_of(model):
    names = [name for own in model.matrices().values() for name in own]
    return [[name for name in names if name.startswith(f"{model.arch.layers}.{layer}.")] for layer in range(model.shape.layers)]


def test_wanda_is_its_formula_layer_by_layer(model):
    literal, one = tiny("llama"), windows(6, 12)
    masks = Wanda().prune(model, sample(model), weights_budget(model, 0.5))
    for names in layers_of(literal):
        seen = inputs_by_name(literal.module, one, names)
        for name in names:
            weight = literal.module.get_submodule(name).weight
            metric = weight.abs() * seen[name].square().mean(0).sqrt()
            gone = metric.argsort(1)[:, : weight.shape[1] // 2]
            with torch.no_grad():
                weight.scatter_(1, gone, 0.0)
    for name, mask in masks.kept.items():
        found = model.module.get_submodule(name).weight
        assert torch.allclose(found, literal.module.get_submodule(name).weight), name
        assert (mask == (found != 0).numpy()).all()


def brute_force(weight, products, ratio, block, damp, pattern):
    """Algorithm 1 by its loops: a column's error goes to the columns after it by the inverse of what is left of H."""
    weight = weight.clone()
    hessian = products.clone()
    hessian += damp * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)
    rows, columns = weight.shape
    kept = torch.ones_like(weight, dtype=torch.bool)
    removed = 0
    for c in range(columns):
        left = torch.linalg.inv(hessian[c:, c:])  # columns before are fixed
        if pattern == "free" and c % block == 0:
            stop = min(c + block, columns)
            scale = torch.stack([torch.linalg.inv(hessian[k:, k:])[0, 0] for k in range(c, stop)])
            wanted = rows * stop - int(rows * stop * (1 - ratio) * (1 + 1e-9)) - removed
            removed += wanted
            lowest = (weight[:, c:stop].square() / scale).flatten().argsort(stable=True)[:wanted]
            part = torch.ones(rows * (stop - c), dtype=torch.bool)
            part[lowest] = False
            kept[:, c:stop] = part.view(rows, -1)
        if pattern == "2:4" and c % 4 == 0:
            scale = torch.stack([torch.linalg.inv(hessian[k:, k:])[0, 0] for k in range(c, c + 4)])
            order = (weight[:, c : c + 4].square() / scale).argsort(dim=1, stable=True)[:, :2]
            kept[:, c : c + 4] = torch.ones(rows, 4, dtype=torch.bool).scatter(1, order, False)
        error = weight[:, c] * ~kept[:, c] / left[0, 0]
        weight[:, c:] -= error[:, None] * left[0]
    return weight * kept, kept


@pytest.mark.parametrize(("pattern", "ratio"), [("free", 0.5), ("free", 0.3), ("2:4", 0.5)])
def test_sparsegpt_is_column_elimination(pattern, ratio):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(10, 16, dtype=torch.float64, generator=generator)
    x = torch.randn(40, 16, dtype=torch.float64, generator=generator) @ torch.randn(16, 16, dtype=torch.float64, generator=generator)
    products = x.T @ x / 40
    method = SparseGPT(pattern=pattern, block=8)
    found, mask = method.solved(weight, products, ratio)
    wanted, kept = brute_force(weight, products, ratio, 8, 0.01, pattern)
    assert torch.equal(mask, kept)
    assert torch.allclose(found, wanted, atol=1e-8)
    plain = (weight * mask - weight) @ x.T
    assert ((found - weight) @ x.T).norm() < plain.norm(), "what is left makes up for what is gone"


def test_sparsegpt_bears_dead_inputs_and_fewer_tokens_than_columns(model):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 16, dtype=torch.float64, generator=generator)
    x[:, 3] = 0.0
    products = x.T @ x / 5
    found, _ = SparseGPT().solved(torch.randn(4, 16, dtype=torch.float64, generator=generator), products, 0.5)
    assert found.isfinite().all()
    assert (found[:, 3] == 0).all()
    upper = inverse_factor(products, 0.01)
    assert torch.equal(upper, upper.triu())


@pytest.mark.parametrize("method", [Wanda(pattern="2:4"), SparseGPT(pattern="2:4")])
def test_two_of_every_four(model, method):
    masks = method.prune(model, sample(model), weights_budget(model, 0.5))
    for name, mask in masks.kept.items():
        assert (mask.reshape(len(mask), -1, 4).sum(2) == 2).all(), name
    with pytest.raises(Skip, match=r"pattern 2:4 removes two weights of every four: ratio=0\.5, not 0\.3"):
        method.prune(model, sample(model), weights_budget(model, 0.3))


def test_equal_values_are_not_all_removed():
    """Weights of a grid, as of a model in four bits."""
    values = torch.tensor([[1.0, 2.0] * 8] * 3)
    budget = weights_budget(tiny("llama"), 0.5)
    assert (lowest_of_rows(values, budget).sum(1) == 8).all()
    assert (two_of_four(torch.ones(2, 8)).view(2, 2, 4).sum(2) == 2).all()


def test_minitron_is_its_formula(model):
    one = windows(6, 12)
    found = Minitron().score(model, sample(model))
    seen = inputs_by_name(model.module, one, [f"{model.arch.layers}.1.{path}" for path in ("self_attn.o_proj", "mlp.down_proj")])
    heads, neurons = (x.view(6, 12, -1) for x in seen.values())
    assert np.allclose(found.neurons[1], neurons.abs().mean(1).norm(dim=0))
    assert np.allclose(found.heads[1], heads.view(6, 12, 2, 12).norm(dim=3).mean(1).norm(dim=0))


def test_padding_changes_no_statistic(model):
    """The same windows in one batch, and beside a shorter one that is padded."""
    one = windows(3, 8)
    short = {name: tensor[:, :5] for name, tensor in windows(1, 8, seed=4).items()}
    padded = {
        "input_ids": torch.cat([one["input_ids"], torch.nn.functional.pad(short["input_ids"], (0, 3))]),
        "attention_mask": torch.cat([one["attention_mask"], torch.nn.functional.pad(short["attention_mask"], (0, 3))]),
        "labels": torch.zeros(4, 8, dtype=torch.long),
    }
    together = calibration([padded], kind="language", micro=10**6).of(model)
    apart = calibration([one, short], kind="language", micro=1).of(model)
    assert np.allclose(block_influence(model, together), block_influence(model, apart))
    for name in ("heads", "neurons"):
        first, second = (getattr(Minitron().score(model, given), name) for given in (together, apart))
        assert np.allclose(first, second)


def test_shortgpt_removes_the_layer_that_changes_least(model):
    for linear in (model.module.model.layers[1].self_attn.o_proj, model.module.model.layers[1].mlp.down_proj):
        with torch.no_grad():
            linear.weight.mul_(0.01)
    one = windows(6, 12)
    with torch.no_grad():
        states = model.module(**inputs_of(one), output_hidden_states=True).hidden_states
    wanted = [
        float((1 - torch.nn.functional.cosine_similarity(below.flatten(0, 1), above.flatten(0, 1), dim=1)).mean())
        for below, above in itertools.pairwise(states[:3])
    ]
    assert np.allclose(block_influence(model, sample(model))[:2], wanted)
    masks = ShortGPT().prune(model, sample(model), Budget.of(model, "params", 0.3, 12))
    assert masks.heads.any(1).tolist() == masks.neurons.any(1).tolist() == [True, False, True]


def test_shortgpt_leaves_no_bias_of_a_layer_that_is_gone():
    model = tiny("opt")
    masks = ShortGPT().prune(model, sample(model), Budget.of(model, "params", 0.3, 12))
    (gone,) = np.flatnonzero(~masks.heads.any(1))
    assert not model.sublayers[2 * gone].bias.any()
    assert not model.sublayers[2 * gone + 1].bias.any()


@pytest.mark.parametrize("importance", ["element", "vector"])
def test_llm_pruner_is_its_formula(model, importance):
    one = windows(6, 12)
    heads, neurons = LLMPruner(importance=importance).scores(model, sample(model))
    layer = model.module.model.layers[1]
    model.module.requires_grad_(True)
    model.module(**inputs_of(one), labels=one["input_ids"]).loss.backward()
    products = {name: parameter * parameter.grad for name, parameter in layer.named_parameters()}

    def summed(part):
        return float((part.abs().sum() if importance == "element" else part.sum().abs()).detach())

    for group in range(2):
        of_queries, of_keys = slice(12 * group, 12 * group + 12), slice(4 * group, 4 * group + 4)
        parts = [products["self_attn.q_proj.weight"][of_queries], products["self_attn.o_proj.weight"][:, of_queries]]
        parts += [products[f"self_attn.{name}_proj.weight"][of_keys] for name in "kv"]
        assert heads[1, group] == pytest.approx(sum(map(summed, parts)), rel=1e-6)
    parts = [products["mlp.gate_proj.weight"][5], products["mlp.up_proj.weight"][5], products["mlp.down_proj.weight"][:, 5]]
    assert neurons[1, 5] == pytest.approx(sum(map(summed, parts)), rel=1e-6)


def test_llm_pruner_leaves_protected_layers_alone(model):
    deep = tiny("llama", num_hidden_layers=8)
    method = LLMPruner(protect_first=1, protect_last=1)
    masks = method.prune(deep, sample(deep), Budget.of(deep, "params", 0.3, 12))
    assert masks.heads[[0, -1]].all()
    assert masks.neurons[[0, -1]].all()
    counts = (masks.neurons[1:-1] != 0).sum(1)
    assert counts.max() - counts.min() <= 40 - counts.min()
    with pytest.raises(Skip, match="protected layers alone cost more"):
        method.prune(deep, sample(deep), Budget.of(deep, "params", 0.9, 12))
    assert Masks.ones(model.shape).heads.all()
