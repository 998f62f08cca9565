"""KCM and the baselines against slow, literal transcriptions that share no code with methods/, in fp64."""

import copy
from math import exp, log, sqrt

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bench.budget import Budget
from bench.made_up import batch, calibration, tiny
from methods import kcm
from methods.activations import Statistics
from methods.first_order import Fisher, Taylor
from methods.flap import Flap
from methods.gram import add_gram, symmetric
from methods.kcm import KCM, normalised, representative
from methods.torch_pruning import GradientImportance, WeightImportance
from methods.wanda_sp import WandaSP

LENGTHS = [[9, 4, 1, 7], [6, 6, 6, 6], [12, 3, 5]]
D_H, HEADS, NEURONS, LAYERS = 6, 4, 40, 3


def batches(regression=False):
    return [batch(lengths, seed, regression) for seed, lengths in enumerate(LENGTHS)]


def places(model, s):
    layer = model.module.bert.encoder.layer[s // 2]
    if s % 2:
        return layer.output.dense, [layer.intermediate.dense]
    return layer.attention.output.dense, [layer.attention.self.query, layer.attention.self.key, layer.attention.self.value]


def features(model, data):
    """The real tokens' inputs of every output projection, [tokens, columns]."""
    seen = [[] for _ in range(2 * LAYERS)]
    for inputs in data:
        real, hooks = inputs["attention_mask"].bool(), []
        for s in range(2 * LAYERS):

            def keep(_, args, s=s, real=real):
                seen[s] += [args[0][row, token] for row, token in real.nonzero().tolist()]

            hooks.append(places(model, s)[0].register_forward_pre_hook(keep))
        with torch.no_grad():
            model.module(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        for hook in hooks:
            hook.remove()
    return [torch.stack(rows) for rows in seen]


def units_of(values, s):
    width = 1 if s % 2 else D_H
    return [sum(float(value) for value in values[u * width : (u + 1) * width]) for u in range(len(values) // width)]


def flat(scores, s):
    return (scores.neurons if s % 2 else scores.heads)[s // 2]


def literal_r2(vectors, sigma, alpha):
    n = len(vectors)
    kernel = [[exp(-float(((vectors[i] - vectors[j]) ** 2).sum()) / sigma**2) for j in range(n)] for i in range(n)]
    k, c, count = np.array(kernel), np.full((n, n), 1 / n), 0
    while True:
        product = np.array([[sum(k[i, m] * c[m, j] for m in range(n)) for j in range(n)] for i in range(n)])
        new = np.array([[c[i, j] * sqrt(k[i, j] / product[i, j]) for j in range(n)] for i in range(n)])
        moved, c, count = abs((new - c).sum()) / c.sum(), new, count + 1
        if moved < alpha:
            break
    shares = [value / np.linalg.eigvalsh(k).sum() for value in np.linalg.eigvalsh(k)]
    return np.diag(c), count, exp(-sum(share * log(share) for share in shares if share > 0))


@pytest.mark.parametrize(("sigma", "alpha"), [(1.0, 0.01), (2.0, 1e-4), (0.3, 0.01)])
def test_r2_is_the_literal_one(sigma, alpha):
    vectors = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.6
    found, iterations, rank = representative(vectors, sigma, alpha)
    wanted, count, effective = literal_r2(vectors.numpy(), sigma, alpha)
    assert iterations == count
    assert np.allclose(found.numpy(), wanted, rtol=1e-8)
    assert rank == pytest.approx(effective, rel=1e-8)


def test_the_kernel_says_when_r2_says_nothing():
    far, near = torch.eye(8, dtype=torch.float64) * 100, torch.zeros(8, 8, dtype=torch.float64)
    assert representative(far, 1.0, 0.01)[2] == pytest.approx(8)
    assert representative(near, 1.0, 0.01)[2] == pytest.approx(1)


def test_d2_is_normalised_within_a_layer():
    means = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    assert torch.allclose(normalised(means, "l2"), means / 3)
    assert torch.allclose(normalised(means, "maxmin"), torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64))
    assert normalised(means, "zscore").mean().abs() < 1e-12
    for how in ("l2", "zscore", "maxmin"):
        assert torch.isfinite(normalised(torch.zeros(3), how)).all()


@pytest.mark.parametrize("how", ["l2", "zscore", "maxmin"])
def test_of_two_neurons_that_fire_alike_the_more_representative_one_ranks_higher(how, monkeypatch):
    """However D2 is normalised: a product with a negative z-score would turn R2's order around."""
    model, data = tiny(), calibration(batches())
    alike = torch.tensor([0.2, 0.2, *np.linspace(0.1, 3, NEURONS - 2)], dtype=torch.float64)
    values = torch.linspace(0.9, 0.1, NEURONS, dtype=torch.float64)
    monkeypatch.setattr(kcm, "representative", lambda *_: (values, 1, 1.0))
    monkeypatch.setattr(kcm, "statistics", lambda *_: Statistics([], [], [alike] * 2 * LAYERS, 1))
    ranks = KCM(normalise=how)._ranks(model, data)
    assert ranks.min() >= 0
    assert (ranks[:, 0] > ranks[:, 1]).all()


def literal_kcm(model, data, budget, weights="down", sigma=1.0, alpha=0.01):
    """Masks and factors: rank, keep, tune feed-forwards against the model at share sqrt(1 - ratio), unmasked there."""
    seen, rank = features(model, data), {}
    for layer in range(LAYERS):
        down, (up,) = places(model, 2 * layer + 1)
        rows = {"down": down.weight.T, "up": up.weight, "both": torch.cat([down.weight.T, up.weight], 1)}[weights]
        r2 = literal_r2(rows.detach().numpy(), sigma, alpha)[0]
        means = [sum(abs(float(x)) for x in seen[2 * layer + 1][:, n]) / len(seen[0]) for n in range(NEURONS)]
        norm = sqrt(sum(mean**2 for mean in means))
        for n in range(NEURONS):
            rank[layer, n] = r2[n] * means[n] / norm

    def keep(share):
        left = budget.total * share * (1 + 1e-9) - LAYERS * HEADS * budget.head
        best = sorted(rank, key=lambda unit: -rank[unit])[: int(left / budget.neuron)]
        mask = np.zeros((LAYERS, NEURONS))
        for unit in best:
            mask[unit] = 1
        return mask

    final, between = keep(1 - budget.ratio), keep(sqrt(1 - budget.ratio))
    for layer in range(LAYERS):
        s, kept = 2 * layer + 1, np.flatnonzero(final[layer])
        projection = places(model, s)[0]

        def sides(masks, layer=layer, s=s):
            """(x, residual) of real tokens at s under neuron factors below it."""
            got = {}
            copied = copy.deepcopy(model)
            for below in range(layer):
                with torch.no_grad():
                    places(copied, 2 * below + 1)[0].weight *= torch.tensor(masks[below])
            hooks = [
                places(copied, s)[0].register_forward_pre_hook(lambda _, args: got.update(x=args[0])),
                places(copied, s)[1][0].register_forward_pre_hook(lambda _, args: got.update(r=args[0])),
            ]
            rows = []
            for inputs in data:
                with torch.no_grad():
                    copied.module(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
                real = inputs["attention_mask"].bool()
                if layer == LAYERS - 1:
                    real = torch.zeros_like(real)
                    real[:, 0] = True
                rows.append((got["x"][real], got["r"][real]))
            for hook in hooks:
                hook.remove()
            return (torch.cat(part) for part in zip(*rows, strict=True))

        teacher_x, teacher_r = sides(between)
        x, r = sides(final)
        weight, bias = projection.weight.detach(), projection.bias.detach()
        target = (teacher_r + teacher_x @ weight.T + bias - bias - r).flatten().numpy()
        design = np.stack([torch.outer(x[:, n], weight[:, n]).flatten().numpy() for n in kept], 1)
        a, b = design.T @ design, design.T @ target
        y = np.linalg.solve(a.T @ a + np.eye(len(a)), a.T @ (b - a.sum(1)))
        if np.abs(1 + y).max() > 10:
            break
        final[layer, kept] = 1 + y
    return final


@pytest.mark.parametrize("weights", ["down", "up", "both"])
def test_kcm_is_the_literal_one(weights):
    model, data = tiny(), batches()
    budget = Budget.of(model, "flops", 0.3, 6.0)
    wanted = literal_kcm(model, data, budget, weights)
    method = KCM(weights=weights)
    with torch.no_grad():
        masks = method.prune(tiny(), calibration(data).without_labels(), budget)
    assert np.array_equal(masks.neurons != 0, wanted != 0)
    assert np.allclose(masks.neurons, wanted, atol=1e-6)
    assert masks.heads.all()
    assert 0 < (wanted != 0).sum() < wanted.size
    assert any("iterations" in note for note in method.notes)
    assert any("effective rank" in note for note in method.notes)


def test_wanda_sp_is_the_literal_one():
    model, data = tiny(), batches()
    with torch.no_grad():
        found = WandaSP().score(model, calibration(data))
    for s, x in enumerate(features(model, data)):
        weight = places(model, s)[0].weight.detach()
        wanted = units_of([weight[:, c].norm() * x[:, c].norm() for c in range(x.shape[1])], s)
        assert np.allclose(flat(found, s), wanted, rtol=1e-8)


def test_flap_is_the_literal_one_and_puts_the_means_into_the_bias():
    model, data = tiny(), batches()
    seen, before = features(model, data), tiny()
    budget = Budget.of(model, "flops", 0.5, 6.0)
    with torch.no_grad():
        masks = Flap().prune(model, calibration(data).without_labels(), budget)
    scores = {}
    for s, x in enumerate(seen):
        weight = places(before, s)[0].weight.detach()
        values = np.array(units_of([x[:, c].var(correction=0) * weight[:, c].square().sum() for c in range(x.shape[1])], s))
        for unit, value in enumerate((values - values.mean()) / values.std(ddof=1)):
            scores[s, unit] = value
    kept, cost = set(), 0.0
    for s, unit in sorted(scores, key=lambda key: -scores[key]):
        price = budget.neuron if s % 2 else budget.head
        if cost + price > budget.limit * (1 + 1e-9):
            break
        kept.add((s, unit))
        cost += price
    ours = {(s, unit) for s in range(2 * LAYERS) for unit in np.flatnonzero(masks.of(s))}
    assert kept <= ours, "all that ranks above the cut is kept; what still fits is put back"
    for s, x in enumerate(seen):
        gone = model.sublayers[s].factors(masks.of(s)) == 0
        projection = places(before, s)[0]
        wanted = projection.bias + projection.weight[:, gone] @ x.mean(0)[gone]
        assert torch.allclose(places(model, s)[0].bias, wanted, atol=1e-9)


def mask_gradients(model, data, regression):
    """Per batch and sub-layer the gradient of the mean loss by one mask value per unit."""
    result = []
    for inputs in data:
        masks = [torch.ones(NEURONS if s % 2 else HEADS, dtype=torch.float64, requires_grad=True) for s in range(2 * LAYERS)]
        hooks = [
            places(model, s)[0].register_forward_pre_hook(lambda _, a, m=mask, s=s: (a[0] * m.repeat_interleave(1 if s % 2 else D_H),))
            for s, mask in enumerate(masks)
        ]
        logits = model.module(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        loss = F.mse_loss(logits[:, 0], inputs["labels"].double()) if regression else F.cross_entropy(logits, inputs["labels"])
        result.append([gradient.numpy() for gradient in torch.autograd.grad(loss, masks)])
        for hook in hooks:
            hook.remove()
    return result


@pytest.mark.parametrize("regression", [False, True])
def test_taylor_and_fisher_are_the_literal_ones(regression):
    model, data = tiny(outputs=1 if regression else 2), batches(regression)
    gradients = mask_gradients(model, data, regression)
    for method, formula in ((Taylor(), lambda g: np.abs(g).mean(0)), (Fisher(), lambda g: (g**2).sum(0))):
        found = method.score(model, calibration(data, regression))
        for s in range(2 * LAYERS):
            assert np.allclose(flat(found, s), formula(np.stack([one[s] for one in gradients])), rtol=1e-8)


def weight_columns(model, s, value):
    """Mean over the parts of a sub-layer's group of value(weights of a column, part)."""
    projection, producers = places(model, s)
    parts = [[value(linear, linear.weight[c], "row", c) for c in range(len(linear.weight))] for linear in producers]
    parts.append([value(projection, projection.weight[:, c], "column", c) for c in range(projection.in_features)])
    return [sum(float(part[c]) for part in parts) / len(parts) for c in range(projection.in_features)]


@pytest.mark.parametrize("p", [1, 2])
def test_torch_prunings_magnitude_is_the_group_norm(p):
    model = tiny()
    found = WeightImportance("uniform", "magnitude", p).score(model, calibration(batches()))
    for s in range(2 * LAYERS):
        wanted = units_of(weight_columns(model, s, lambda _, w, *__: w.abs().pow(p).sum()), s)
        assert np.allclose(flat(found, s), wanted, rtol=1e-5)  # the library sums in float32


@pytest.mark.parametrize("regression", [False, True])
def test_torch_prunings_taylor_and_hessian(regression):
    model, data = tiny(outputs=1 if regression else 2), batches(regression)
    parameters = {linear: linear.weight for s in range(2 * LAYERS) for linear in [places(model, s)[0], *places(model, s)[1]]}
    reference = copy.deepcopy(model)
    for weight in parameters.values():
        weight.requires_grad_(True)

    def gradients(inputs):
        logits = model.module(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        each = (
            F.mse_loss(logits[:, 0], inputs["labels"].double(), reduction="none")
            if regression
            else F.cross_entropy(logits, inputs["labels"], reduction="none")
        )
        return each

    losses = [loss for inputs in data for loss in gradients(inputs)]
    single = [torch.autograd.grad(loss, list(parameters.values()), retain_graph=True) for loss in losses]
    mean = [sum(part) / len(losses) for part in zip(*single, strict=True)]
    square = [sum(g**2 for g in part) / len(losses) for part in zip(*single, strict=True)]
    place = {linear: i for i, linear in enumerate(parameters)}
    for weight in parameters.values():
        weight.requires_grad_(False)

    def pick(tensors, linear, kind, c):
        tensor = tensors[place[linear]]
        return tensor[c] if kind == "row" else tensor[:, c]

    taylor = GradientImportance("uniform", "taylor").score(reference, calibration(data, regression))
    hessian = GradientImportance("uniform", "hessian").score(reference, calibration(data, regression))
    for s in range(2 * LAYERS):
        wanted = weight_columns(model, s, lambda linear, w, kind, c: (w * pick(mean, linear, kind, c)).abs().sum())
        assert np.allclose(flat(taylor, s), units_of(wanted, s), rtol=1e-5)
        wanted = weight_columns(model, s, lambda linear, w, kind, c: (w**2 * pick(square, linear, kind, c)).sum())
        assert np.allclose(flat(hessian, s), units_of(wanted, s), rtol=1e-5)


def test_torch_prunings_random_uses_the_runs_seed_alone():
    model, method = tiny(), WeightImportance("uniform", "random")
    first, second = (method.score(model, calibration(batches(), seed=3)) for _ in range(2))
    assert np.array_equal(first.neurons, second.neurons)
    assert not np.array_equal(first.neurons, method.score(model, calibration(batches(), seed=4)).neurons)


@pytest.mark.parametrize(("importance", "wanted"), [("lamp", 1.0), ("fpgm", None)])
def test_torch_prunings_other_importances_give_a_score_for_every_unit(importance, wanted):
    found = WeightImportance("uniform", importance).score(tiny(), calibration(batches()))
    assert (found.neurons > 0).all()
    if wanted:  # the largest of a layer is divided by itself
        assert np.allclose(found.neurons.max(1), wanted)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: WeightImportance(importance="taylor"), "importance=taylor: one of magnitude"),
        (lambda: GradientImportance(importance="lamp"), "importance=lamp: one of taylor"),
        (lambda: WeightImportance(p=0), "p=0"),
        (lambda: KCM(weights="left"), "weights=left: one of down"),
        (lambda: KCM(normalise="l1"), "normalise=l1"),
        (lambda: KCM(sigma=0.0), "sigma"),
        (lambda: KCM(representative=False, data_driven=False), "at least one"),
    ],
)
def test_wrong_words_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 500])
def test_a_gram_matrix_by_blocks_is_the_product(columns):
    x = torch.randn(30, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    upper = torch.zeros(columns, columns, dtype=torch.float64)
    for part in x.split(10):
        add_gram(upper, part)
    assert torch.allclose(symmetric(upper), x.T @ x)
