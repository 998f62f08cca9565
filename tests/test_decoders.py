"""Decoders: what people met trouble with (unit: a group of query heads with its key and value head), each with a tiny model."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bench.budget import Budget
from bench.made_up import DECODERS, arch_of, batch, calibration, tiny, windows
from bench.masks import Masks
from bench.model import PrunableModel
from bench.nn.packing import inputs_of
from bench.nn.shrink import shrink
from bench.saved.checkpoint import tied
from bench.tasks import KINDS
from methods.flap import Flap
from methods.kprune import KPrune
from methods.magnitude import Magnitude
from methods.states import States

ORDER_OF_350M = {"do_layer_norm_before": False, "word_embed_proj_dim": 16}
MODELS = {name: (name, {}) for name in DECODERS} | {"opt-350m": ("opt", ORDER_OF_350M)}
LENGTHS = [9, 4, 7]


def made(name, attention="sdpa", **own):
    family, fields = MODELS[name]
    model = tiny(family, **fields, **own)
    model.module.set_attn_implementation(attention)
    return model


def some_masks(model, seed=0):
    """Other groups in every layer, no group in the first, no neuron in the second."""
    random, ones = np.random.default_rng(seed), Masks.ones(model.shape)
    heads, neurons = ((random.random(of.shape) > 0.4) * random.random(of.shape) for of in (ones.heads, ones.neurons))
    heads[0], neurons[1], heads[2, 0] = 0.0, 0.0, 0.5
    return Masks(heads, neurons)


def states_as_logits(model, states):
    return model.module.get_output_embeddings()(states)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_the_pieces_are_the_model(name, attention):
    model, one = made(name, attention), batch(LENGTHS)
    real = one["attention_mask"].bool()
    with torch.no_grad():
        whole, pieces = model(one), states_as_logits(model, model.forward(one))
    assert torch.allclose(whole[real], pieces[real], atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_no_token_sees_a_later_one(name, attention):
    model, one = made(name, attention), windows(2, 8)
    changed = one | {"input_ids": one["input_ids"].clone()}
    changed["input_ids"][:, 5:] = 3 + (changed["input_ids"][:, 5:] - 2) % 50
    with torch.no_grad():
        for give in (model, model.forward):
            before, after = give(one), give(changed)
            assert torch.allclose(before[:, :5], after[:, :5], atol=1e-9)
            assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_the_masked_model_is_the_shrunk_one(name):
    model, one = made(name), batch(LENGTHS)
    masks, real = some_masks(model), one["attention_mask"].bool()
    small = shrink(model, masks)
    with torch.no_grad(), model.masked(model.columns(masks)):
        wanted, pieces = model(one), states_as_logits(model, model.forward(one))
    with torch.no_grad():
        found = model.kind.logits(small, one)
    assert torch.allclose(found[real], wanted[real], atol=1e-6)
    assert torch.allclose(found[real], pieces[real], atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_generation_is_the_same_with_a_cache_without_and_padded_on_the_left(name):
    """The first layer has no attention, and the length of a cache is read from it."""
    model = made(name)
    small = shrink(model, some_masks(model))
    short, long = batch([4], seed=1), batch([7], seed=2)
    how = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    alone = [small.generate(**inputs_of(dict(one, labels=None)), use_cache=True, **how)[0, -6:] for one in (short, long)]
    uncached = small.generate(**inputs_of(dict(long, labels=None)), use_cache=False, **how)[0, -6:]
    assert torch.equal(uncached, alone[1])
    ids, mask = (torch.cat([F.pad(short[key], (3, 0), value=fill), long[key]]) for key, fill in (("input_ids", 1), ("attention_mask", 0)))
    together = small.generate(input_ids=ids, attention_mask=mask, use_cache=True, **how)[:, -6:]
    assert torch.equal(together, torch.stack(alone))


def test_padding_on_the_left_changes_no_logit():
    for name in MODELS:
        model, one = made(name), batch([5])
        small = shrink(model, some_masks(model))
        ids, mask = F.pad(one["input_ids"], (3, 0), value=1), F.pad(one["attention_mask"], (3, 0))
        places = (mask.cumsum(1) - 1).clamp_min(0)
        with torch.no_grad():
            padded = small(input_ids=ids, attention_mask=mask, position_ids=places).logits[:, 3:]
            plain = small(input_ids=one["input_ids"], attention_mask=one["attention_mask"]).logits
        assert torch.allclose(padded, plain, atol=1e-6), name


def test_a_groups_score_comes_from_its_own_query_heads():
    model = made("llama")
    assert (model.shape.heads, model.sublayers[0].group, model.sublayers[0].width) == (2, 3, 12)
    before = Magnitude().score(model, None).heads
    attention = model.module.model.layers[1].self_attn
    for name, rows in (("q_proj", slice(12, 24)), ("k_proj", slice(4, 8)), ("v_proj", slice(4, 8))):
        getattr(attention, name).weight[rows] *= 3
    attention.o_proj.weight[:, 12:24] *= 3
    after = Magnitude().score(model, None).heads
    assert np.argwhere(before != after).tolist() == [[1, 1]]


def test_what_a_group_and_a_neuron_cost():
    """(2G + 2) d d_h and 3 d parameters; FLOPs at l tokens 2 l times as many, and 4 l² G d_h for attention."""
    model = made("llama")
    attention, feed_forward = model.sublayers[:2]
    d, width, group, length = 24, 4, 3, 10
    assert attention.cost("params", 0) == (2 * group + 2) * d * width
    assert attention.cost("flops", length) == 2 * length * (2 * group + 2) * d * width + 4 * length**2 * group * width
    assert feed_forward.cost("params", 0) == 3 * d
    assert feed_forward.cost("flops", length) == 6 * length * d
    opt = made("opt").sublayers
    assert (opt[0].cost("params", 0), opt[1].cost("params", 0)) == (4 * d * 6 + 3 * 6, 2 * d + 1)


def test_the_share_removed_is_counted_from_the_shrunk_model():
    model = made("llama")
    budget = Budget.of(model, "params", 0.5, 8)
    masks = Magnitude().prune(model, None, budget)
    small = shrink(model, masks)
    kept, whole = (sum(p.numel() for p in module.model.layers.parameters() if p.ndim > 1) for module in (small, model.module))
    assert kept / whole == pytest.approx(budget.cost(masks) / budget.total)
    assert kept / whole <= 0.5


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_divergences_are_those_of_the_logits(name):
    model, one = made(name), windows(2, 9)
    told = model.kind.of(model)
    other = copy.deepcopy(model.module)
    with torch.no_grad():
        for parameter in other.get_submodule(model.arch.layers).parameters():
            parameter.mul_(0.8)
        teacher = PrunableModel(other, model.arch, model.kind)
        logits, theirs = model(one), teacher(one)
        wanted = F.cross_entropy(logits[:, :-1].flatten(0, 1), one["input_ids"][:, 1:].flatten(), reduction="none").view(2, -1).mean(1)
        assert torch.allclose(told.loss(model.forward(one), one["labels"]), wanted.float(), atol=1e-5)
        first, second = (F.log_softmax(of[:, :-1] / 2, -1) for of in (theirs, logits))
        kl = 4 * (first.exp() * (first - second)).sum(-1).mean(1)
        assert torch.allclose(told.divergence(model.forward(one), teacher.forward(one), 2.0), kl.float(), atol=1e-5)
        nll = model.kind.answers(model.module, one)
    assert torch.allclose(nll, wanted * 8, rtol=1e-5)
    assert nll.dtype == torch.float64


def test_the_loss_is_that_of_transformers():
    model, one = made("llama"), windows(3, 9)
    with torch.no_grad():
        theirs = model.module(**inputs_of(one), labels=one["input_ids"]).loss
        ours = model.kind.answers(model.module, one).sum() / (3 * 8)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-4)


def test_tied_embeddings_are_one_parameter():
    model = made("llama", tie_word_embeddings=True)
    assert tied(model.module) == {"lm_head.weight": "model.embed_tokens.weight"}
    small = shrink(model, some_masks(model))
    assert small.lm_head.weight is small.model.embed_tokens.weight


def test_flap_adds_a_bias_where_there_is_none():
    model, one = made("llama"), windows(4, 8)
    sample = calibration([one], kind="language").of(model)
    masks = Flap().prune(model, sample, Budget.of(model, "params", 0.3, 8))
    assert any(sublayer.projection.bias is not None for sublayer in model.sublayers)
    small = shrink(model, masks)
    with torch.no_grad(), model.masked(model.columns(masks)):
        wanted = model(one)
    assert torch.allclose(model.kind.logits(small, one), wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "opt", "opt-350m", "qwen3"])
def test_kprune_restores_the_stream_where_neurons_are_doubled(name):
    """Every second neuron is the copy of the one before it: the lone one can do the work of both."""
    model = made(name)
    for sublayer in model.sublayers:
        if sublayer.kind == "feed_forward":
            for producer in sublayer.producers:
                producer.linear.weight[1::2] = producer.linear.weight[::2]
                if producer.linear.bias is not None:
                    producer.linear.bias[1::2] = producer.linear.bias[::2]
    one, pruned = windows(6, 20), model.copy()
    teacher = States.embedded(model, calibration([one], kind="language"))
    student, masks = teacher.fork(), Masks.ones(model.shape)
    masks.neurons[:, 1::2] = 0.0
    for s in range(model.shape.sublayers):
        KPrune()._tune(pruned, s, masks.of(s) > 0, teacher, student)
    with torch.no_grad(), pruned.masked(pruned.columns(masks)):
        found = pruned(one)
    assert torch.allclose(found, model(one), atol=1e-6)


def test_a_random_model_knows_as_much_as_its_vocabulary_says():
    model = tiny("llama", initializer_range=0.0)
    for parameter in model.module.parameters():
        parameter.mul_(1e-3)
    one = windows(4, 9)
    with torch.no_grad():
        nll = model.kind.answers(model.module, one).numpy()
    assert math.exp(nll.sum() / (4 * 8)) == pytest.approx(model.module.config.vocab_size, rel=0.01)


def test_an_encoder_is_no_language_model_and_a_decoder_no_classifier():
    assert "decoder" in KINDS["language"].fits(arch_of("bert"))
    assert "encoder" in KINDS["classification"].fits(arch_of("llama"))
    assert KINDS["language"].fits(arch_of("opt")) is None
