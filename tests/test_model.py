"""The forward pass in pieces, masks, and shrinking, on every family."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bench.made_up import FAMILIES, batch, tiny
from bench.masks import Masks
from bench.nn.attention import SHORT, attention
from bench.nn.bf16 import bf16_layers
from bench.nn.packing import inputs_of
from bench.nn.shrink import exact_mask_error, mask_error, shrink
from bench.tasks.spans import NEVER

PADDED, UNPADDED = batch([9, 4, 1, 7]), batch([6, 6, 6])


def composed(model, inputs):
    hidden, context = model.embed(inputs)
    for s in range(model.shape.sublayers):
        _, _, hidden = model.sublayers[s](hidden, context)
    return model.output(hidden, context)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("inputs", [PADDED, UNPADDED], ids=["padded", "unpadded"])
def test_the_pieces_compose_to_the_model(family, inputs):
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model = tiny(family, dtype=dtype)
        difference = (composed(model, inputs) - model(inputs)).abs().max()
        assert difference < limit * max(1, model(inputs).abs().max())


@pytest.mark.parametrize("tokens", [5, SHORT, SHORT + 1])
@pytest.mark.parametrize("bias", ["none", "mask", "numbers"])
def test_attention_is_torchs_whatever_the_length(tokens, bias):
    """Both ways on a CPU, with their gradients."""
    generator = torch.Generator().manual_seed(tokens)
    query, key, value = (torch.randn(3, 2, tokens, 4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3))
    real = torch.arange(tokens) < torch.tensor([tokens, tokens // 2, 1])[:, None]
    numbers = torch.randn(1, 2, tokens, tokens, dtype=torch.float64, generator=generator)
    added = {"none": None, "mask": real[:, None, None], "numbers": numbers.masked_fill(~real[:, None, None], NEVER)}[bias]
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=added)
    found = attention(query, key, value, added)
    assert torch.allclose(found, expected, atol=1e-12)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    gradients = [torch.autograd.grad((one * weights).sum(), (query, key, value)) for one in (found, expected)]
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pieces_compose_under_masks(family):
    model = tiny(family)
    masks = random_masks(model.shape, 3, 0.5)
    with model.masked(model.columns(masks)):
        assert torch.allclose(composed(model, PADDED), model(PADDED), atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_sublayer_gives_x_before_the_mask_and_the_residual(family):
    model = tiny(family)
    hidden, context = model.embed(PADDED)
    for s in range(model.shape.sublayers):
        plain, residual, following = model.sublayers[s](hidden, context)
        with model.masked({s: torch.zeros(plain.shape[-1], dtype=plain.dtype)}):
            x, _, masked = model.sublayers[s](hidden, context)
        assert torch.equal(x, plain)
        assert torch.equal(residual, hidden)
        assert torch.allclose(masked, model.sublayers[s].close(residual + model.sublayers[s].projection.bias))
        hidden = following


def random_masks(shape, seed, keep):
    random = np.random.default_rng(seed)
    factors = Masks(random.uniform(0.5, 1.5, (shape.layers, shape.heads)), random.uniform(0.5, 1.5, (shape.layers, shape.neurons)))
    return Masks(
        factors.heads * (random.random(factors.heads.shape) < keep), factors.neurons * (random.random(factors.neurons.shape) < keep)
    )


@pytest.mark.parametrize("family", FAMILIES)
@given(seed=st.integers(0, 2**32 - 1), keep=st.sampled_from([0.1, 0.5, 0.9]), empty=st.sampled_from([None, 0, 1, 3, 4]))
@settings(max_examples=15, deadline=None)
def test_the_shrunk_model_is_the_masked_one(family, seed, keep, empty):
    model = tiny(family, seed % 7, torch.float32)
    masks = random_masks(model.shape, seed, keep)
    if empty is not None:  # a sub-layer that loses all its units
        masks.of(empty)[:] = 0
    small = shrink(model, masks)
    assert mask_error(model, masks, small, [PADDED, UNPADDED]) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_what_rounding_amplifies_is_told_from_a_wrong_model(family):
    """Large weights before a LayerNorm: float32 loses digits, float64 shows that the shrunk model is the masked one."""
    model = tiny(family, 0, torch.float32)
    with torch.no_grad():
        for s in range(model.shape.sublayers):
            model.sublayers[s].projection.weight *= 1e4
    masks = random_masks(model.shape, 1, 0.5)
    small = shrink(model, masks)
    assert mask_error(model, masks, small, [PADDED]) > exact_mask_error(model, masks, small, [PADDED])
    assert exact_mask_error(model, masks, small, [PADDED]) < 1e-8
    assert next(small.parameters()).dtype == next(model.module.parameters()).dtype == torch.float32
    with torch.no_grad():
        next(small.parameters())[0, 0] += 0.1
    assert exact_mask_error(model, masks, small, [PADDED]) == np.inf, "a weight is another"
    masks.neurons[0] = 1.0
    assert exact_mask_error(model, masks, small, [PADDED]) == np.inf, "a neuron is lacking"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_model_and_a_full_one(family):
    model = tiny(family)
    everything = Masks.ones(model.shape)
    nothing = Masks(everything.heads * 0, everything.neurons * 0)
    for masks in (everything, nothing):
        assert mask_error(model, masks, shrink(model, masks), [PADDED, UNPADDED]) < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_shrinking_removes_the_parameters_of_the_units(family):
    model = tiny(family)
    masks = Masks.ones(model.shape)
    masks.heads[0, :2] = 0
    masks.neurons[1, :7] = 0
    layers = shrink(model, masks).get_submodule(model.arch.layers)
    d, d_h = model.shape.hidden, model.shape.head_dim
    expected = model.encoder_parameters() - 2 * (4 * d * d_h + 3 * d_h) - 7 * (2 * d + 1)
    assert sum(p.numel() for p in layers.parameters()) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_every_single_unit_reaches_the_logits(family):
    model = tiny(family)
    before = model(PADDED)
    for s in range(model.shape.sublayers):
        for unit in range(0, model.shape.units(s), 3):
            masks = Masks.ones(model.shape)
            masks.of(s)[unit] = 0
            with model.masked(model.columns(masks)):
                assert not torch.allclose(model(PADDED), before, atol=1e-9), (s, unit)


def test_masks_leave_no_hook_behind_even_after_an_error():
    model = tiny("bert")
    before = model(PADDED)
    with pytest.raises(RuntimeError, match="on purpose"), model.masked(model.columns(random_masks(model.shape, 0, 0.5))):
        raise RuntimeError("on purpose")
    assert torch.equal(model(PADDED), before)


def test_shrinking_leaves_the_model_as_it_is():
    model = tiny("mpnet")
    before = model(PADDED)
    shrink(model, random_masks(model.shape, 1, 0.4))
    assert torch.equal(model(PADDED), before)


def test_a_layer_with_fewer_heads_takes_its_own_rows_of_the_position_bias():
    model = tiny("mpnet")
    masks = Masks.ones(model.shape)
    masks.heads[1, 0] = 0  # the kept heads are no longer the first ones
    small = shrink(model, masks)
    assert mask_error(model, masks, small, [PADDED]) < 1e-12
    swapped = small.get_submodule("mpnet.encoder.layer.1.attention.attn")
    swapped.kept = torch.tensor([0, 1, 2])
    assert mask_error(model, masks, small, [PADDED]) > 1e-4


def test_masks_of_another_model_are_refused():
    with pytest.raises(ValueError, match="heads has shape"):
        Masks(np.ones((3, 5)), np.ones((3, 40))).check(tiny("bert").shape)
    masks = Masks.ones(tiny("bert").shape)
    masks.neurons[0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        masks.check(tiny("bert").shape)


def test_labels_never_reach_the_model():
    assert "labels" in PADDED
    assert "labels" not in inputs_of(PADDED)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pieces_run_in_bf16(family):
    model = tiny(family, dtype=torch.float32)
    with torch.no_grad(), bf16_layers(model):
        found = composed(model, PADDED)
    assert found.dtype == torch.float32
    assert not torch.equal(found, model(PADDED))
    assert torch.allclose(found, model(PADDED), atol=0.1 * float(model(PADDED).abs().max()))


def test_bf16_follows_weights_that_change_and_leaves_nothing_behind():
    model = tiny("bert", dtype=torch.float32)
    projection, x = model.sublayers[1].projection, torch.ones(3, model.shape.neurons)
    with torch.no_grad(), bf16_layers(model):
        before = projection(x)
        copied = model.copy().sublayers[1].projection
        projection.weight[:, :5] = 0.0
        after, other = projection(x), copied(x)
    assert before.dtype == torch.bfloat16
    assert torch.equal(before, other), "a copy goes on with its own weights"
    assert torch.allclose(after.float(), projection(x), atol=0.05)
    assert not torch.allclose(after, before, atol=0.05)
    assert type(projection) is torch.nn.Linear
    assert "_half" not in projection.__dict__
    with bf16_layers(model, enabled=False):
        assert projection(x).dtype == torch.float32


def test_gradients_of_masks_in_bf16_are_those_of_float32_within_its_precision():
    model = tiny("bert", dtype=torch.float32)
    found = []
    for enabled in (False, True):
        factors = {s: torch.ones_like(model.sublayers[s].projection.weight[0], requires_grad=True) for s in range(model.shape.sublayers)}
        with bf16_layers(model, enabled), model.masked(factors):
            loss = model.forward(PADDED).square().mean()
        found.append(torch.cat(torch.autograd.grad(loss, list(factors.values()))))
    assert found[1].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found[0], found[1], dim=0) > 0.99
