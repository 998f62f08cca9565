"""K-prune against a slow, literal transcription of its formulas that shares no code with methods/."""

import copy
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bench.budget import Budget, Price
from bench.made_up import batch, calibration, tiny
from bench.masks import Shape
from bench.method import Skip
from methods import kprune
from methods.kprune import KPrune, KPruneSpare, solve, threshold

LENGTHS = [[9, 4, 1, 7], [6, 6, 6, 6], [12, 3]]


def batches(regression=False):
    return [batch(lengths, seed, regression) for seed, lengths in enumerate(LENGTHS)]


def literal(module, data, budget, regression=False, lam_rep=2.5e-4, mu=64.0, t=2.0, legacy=False, broadcast=False):
    """algorithms.md 1 read line by line: full forwards, loops, a dense teacher, fp64 least squares on all tokens."""
    teacher, student = copy.deepcopy(module), module
    layers = len(student.bert.encoder.layer)
    d_h = student.config.hidden_size // student.config.num_attention_heads

    def places(model, s):
        layer = model.bert.encoder.layer[s // 2]
        return (layer.output.dense, layer.intermediate.dense) if s % 2 else (layer.attention.output.dense, layer.attention.self.query)

    def run(model, inputs, masks):
        """Logits, and for every sub-layer: input of the projection before the mask, its output, the sub-layer's input."""
        seen, hooks = defaultdict(dict), []
        for s in range(2 * layers):
            projection, first = places(model, s)

            def before(_, args, s=s):
                seen[s]["x"] = args[0]
                return (args[0] * masks[s],)

            hooks.append(projection.register_forward_pre_hook(before))
            hooks.append(projection.register_forward_hook(lambda _, args, out, s=s: seen[s].update(out=out)))
            hooks.append(first.register_forward_pre_hook(lambda _, args, s=s: seen[s].update(residual=args[0])))
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        for hook in hooks:
            hook.remove()
        return logits, seen

    width = [places(student, s)[0].in_features for s in range(2 * layers)]
    ones = [torch.ones(w, dtype=torch.float64) for w in width]
    applied = [one.clone() for one in ones]
    left, total = budget.limit * (1 + 1e-9), sum(len(b["labels"]) for b in data)
    tokens = sum(int(b["attention_mask"].sum()) for b in data)
    all_scores, pruned_below = [], False
    for s in range(2 * layers):
        predictive, representational = [w * 0 for w in ones], [w * 0 for w in ones]
        for inputs in data:
            masks = [a.clone() for a in applied[:s]] + [one.clone().requires_grad_() for one in ones[s:]]
            logits, seen = run(student, inputs, masks)
            with torch.no_grad():
                wanted, _ = run(teacher, inputs, ones)
            if regression:
                loss = (logits - wanted.flatten()).pow(2).mean() if broadcast else (logits - wanted).pow(2).mean()
            else:
                loss = t**2 * (F.softmax(wanted / t, 1) * (F.log_softmax(wanted / t, 1) - F.log_softmax(logits / t, 1))).sum(1).mean()
            gradients = torch.autograd.grad(loss, masks[s:])
            for r in range(s, 2 * layers):
                predictive[r] += gradients[r - s] ** 2 / (2 * total)
                for example, row in enumerate(seen[r]["x"].detach()):
                    for token in range(int(inputs["attention_mask"][example].sum())):
                        representational[r] += row[token] ** 2
        scores = {}
        for r in range(s, 2 * layers):
            weight = places(student, r)[0].weight
            for unit in range(budget.shape.units(r)):
                columns = range(unit * d_h, (unit + 1) * d_h) if r % 2 == 0 else [unit]
                silent = s == 0 and not (regression and broadcast)  # the first step has no gradient, so nothing else to rank by
                lam = lam_rep or float(silent)
                values = [
                    lam * representational[r][c] * (weight[:, c] ** 2).mean() / tokens + (0 if silent else predictive[r][c])
                    for c in columns
                ]
                scores[r, unit] = float(sum(values) / len(values)) * (mu / budget.head if r % 2 == 0 else 1 / budget.neuron)
        all_scores.append(scores)
        cost = {key: budget.neuron if key[0] % 2 else budget.head for key in scores}
        tau = next(tau for tau in [-np.inf, *sorted(scores.values())] if sum(cost[k] for k, value in scores.items() if value > tau) <= left)
        kept = [scores[s, unit] > tau for unit in range(budget.shape.units(s))]
        left -= sum(kept) * (budget.neuron if s % 2 else budget.head)
        applied[s] = torch.tensor(kept, dtype=torch.float64).repeat_interleave(1 if s % 2 else d_h)
        pruned_below = pruned_below or not all(kept)
        tune = any(kept) and ((s % 2 == 0 or not all(kept)) if legacy else pruned_below)
        if tune:
            rows, targets = [], []
            for inputs in data:
                with torch.no_grad():
                    _, mine = run(student, inputs, [*applied[: s + 1], *ones[s + 1 :]])
                    _, dense = run(teacher, inputs, ones)
                real = inputs["attention_mask"].bool()
                star = dense[s]["residual"] + dense[s]["out"]
                rows.append(mine[s]["x"][real][:, applied[s].bool()])
                targets.append((star - mine[s]["residual"] - places(student, s)[0].bias)[real])
            solution = torch.linalg.lstsq(torch.cat(rows), torch.cat(targets), driver="gelsd").solution
            with torch.no_grad():
                places(student, s)[0].weight[:, applied[s].bool()] = solution.T
    return all_scores, applied, [places(student, s)[0].weight for s in range(2 * layers)]


CASES = [
    {"ratio": 0.5},
    {"ratio": 0.8},
    {"ratio": 0.5, "legacy_tuning": True},
    {"ratio": 0.4, "regression": True},
    {"ratio": 0.4, "regression": True, "legacy_broadcast": True},
    {"ratio": 0.4, "regression": True, "legacy_broadcast": True, "lambda_rep": 0.0},
    {"ratio": 0.4, "legacy_broadcast": True},
    {"ratio": 0.3, "lambda_rep": 0.0, "mu": "head_dim", "temperature": 1.0},
]


@pytest.mark.parametrize("micro", [12, 1000])  # a batch in several micro-batches; several batches in one
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_fast_implementation_is_the_literal_one(case, micro, monkeypatch):
    options = dict(case)
    ratio, regression = options.pop("ratio"), options.pop("regression", False)
    model = tiny("bert", outputs=1 if regression else 2)
    data = batches(regression)
    budget = Budget.of(model, "flops", ratio, 6.0)
    wanted_scores, wanted_masks, wanted_weights = literal(
        copy.deepcopy(model.module), data, budget, regression,
        lam_rep=options.get("lambda_rep", 2.5e-4), mu=6.0 if "mu" in options else 64.0, t=options.get("temperature", 2.0),
        legacy=options.get("legacy_tuning", False), broadcast=options.get("legacy_broadcast", False),
    )  # fmt: skip
    steps = []
    original = kprune.Knowledge.scores
    monkeypatch.setattr(kprune.Knowledge, "scores", lambda self, *args: steps.append(original(self, *args)) or steps[-1])
    masks = KPrune(**options).prune(model, calibration(data, regression, micro=micro).without_labels(), budget)
    for got in steps:  # no step is measured between the first and the one after the first lost unit
        s = model.shape.sublayers - len(got)
        assert np.allclose(np.concatenate(got), list(wanted_scores[s].values()), rtol=1e-8, atol=0), f"scores of step {s}"
    for s in range(model.shape.sublayers):
        assert np.array_equal(model.sublayers[s].factors(masks.of(s)), wanted_masks[s].numpy())
        kept = wanted_masks[s].bool()
        assert torch.allclose(model.sublayers[s].projection.weight[:, kept], wanted_weights[s][:, kept], atol=1e-6)
    assert 0 < masks.neurons.sum() < masks.neurons.size


def test_ratio_zero_changes_nothing():
    model = tiny("bert")
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    masks = KPrune().prune(model, calibration(batches()), Budget.of(model, "flops", 0.0, 6.0))
    assert masks.heads.all()
    assert masks.neurons.all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())


def test_a_head_is_measured_by_its_columns_or_as_a_whole():
    budget = Budget.of(tiny("bert"), "flops", 0.6, 6.0)
    kept = {}
    for choice in ("column", "head"):
        kept[choice] = KPrune(head_gradient=choice, lambda_rep=0.0).prune(tiny("bert"), calibration(batches()), budget)
    assert not np.array_equal(kept["column"].neurons, kept["head"].neurons)


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("remeasure", [1, 2])
def test_until_something_is_pruned_the_dense_models_measurement_stands(regression, remeasure, monkeypatch):
    """At this ratio the first attention stays whole: gradients before the first feed-forward would be zero or rounding noise."""
    model, data = tiny("bert", outputs=1 if regression else 2), calibration(batches(regression), regression)
    budget = Budget.of(model, "flops", 0.05, 6.0)
    measured, real = [], kprune.Knowledge.scores
    monkeypatch.setattr(kprune.Knowledge, "scores", lambda self, student, s, budget: measured.append(s) or real(self, student, s, budget))
    masks = KPrune(lambda_rep=0.0, remeasure=remeasure).prune(model, data, budget)
    assert masks.heads[0].all()
    assert budget.cost(masks) > 0.9 * budget.total
    first = min(s for s in range(model.shape.sublayers) if not masks.of(s).all())
    assert first > 0
    assert measured == [0, *range(first + 1, model.shape.sublayers, remeasure)]


@pytest.mark.parametrize("spare", [0, 1])
def test_heads_can_be_spared(spare):
    model = tiny("bert")
    budget = Budget.of(model, "flops", 0.8, 6.0)
    masks = KPruneSpare(spare_heads=spare).prune(model, calibration(batches()), budget)
    assert budget.fits(budget.cost(masks))
    assert int(masks.heads.sum(1).min()) >= spare


def test_spared_heads_that_cannot_be_paid_are_a_reason_to_skip():
    model = tiny("bert")
    with pytest.raises(Skip, match=r"spare_heads=3 in every attention cost more than ratio=0.8 leaves"):
        KPruneSpare(spare_heads=3).prune(model, calibration(batches()), Budget.of(model, "flops", 0.8, 6.0))


def test_threshold_drops_ties_together():
    scores = [np.array([3.0, 1.0]), np.array([1.0, 2.0, 1.0])]
    budget = Budget.of_kinds(Shape(1, 2, 3, 1, 1), Price(2.0), Price(1.0), 0.0)
    assert threshold(scores, 0, budget, left=7.0) == -np.inf
    assert threshold(scores, 0, budget, left=6.9) == 1.0  # one of the three ties has to go, so all go
    assert threshold(scores, 0, budget, left=2.0) == 2.0
    assert threshold(scores, 0, budget, left=0.5) == 3.0


def test_solve_falls_back_and_says_so():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, dtype=torch.float64, generator=random)
    weight = torch.randn(4, 3, dtype=torch.float64, generator=random)
    found, note = solve(x.T @ x, x.T @ x @ weight)
    assert note is None
    assert torch.allclose(found, weight)
    x = torch.cat([x, x[:, :1]], 1)  # a duplicate column: singular
    found, note = solve(x.T @ x, x.T @ x @ torch.cat([weight, weight[:1]]))
    assert note is not None
    assert torch.isfinite(found).all()
    assert torch.allclose(x @ found, x @ torch.cat([weight, weight[:1]]), atol=1e-4)
    assert solve(torch.full((2, 2), torch.nan, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)) == (
        None,
        "no finite solution, the weight stays",
    )


@pytest.mark.parametrize("wrong", [{"head_gradient": "row"}, {"mu": "heads"}])
def test_wrong_words_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        KPrune(**wrong)
