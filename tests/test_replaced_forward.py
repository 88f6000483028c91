"""Models that are not called by their class's forward: one in its place, as accelerate leaves it
behind, or compiled in place."""

from __future__ import annotations

import functools
import types

import pytest
import torch
from language_models import SIZES, WORDS, huggingface, spread
from torch import nn

import acn_kernels as acn
from acn_kernels.blocks import TransformerBlock
from acn_kernels.inference import EarlyExitGPT
from acn_kernels.models import create


def vit():
    return spread(create("acn_vit_digits", depth=3)), torch.randn(2, 1, 8, 8)


def gpt():
    model = huggingface.ACNGPTForCausalLM(huggingface.ACNGPTConfig(**SIZES))
    return spread(model), torch.randint(WORDS, (2, 5))


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return spread(acn.convert(nn.TransformerEncoder(layer, 3), 1.0)), torch.randn(2, 5, 8)


def replaced(model, as_method=True):
    """Its class's forward in a wrapper, bound to the model."""
    calls = []

    @functools.wraps(type(model).forward)
    def forward(self, *args, **kwargs):
        calls.append(self)
        return type(model).forward(self, *args, **kwargs)

    bound = types.MethodType if as_method else functools.partial
    model.forward = bound(forward, model)
    return model, calls


def output(model, x):
    with torch.no_grad():
        found = model(x)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize("as_method", [True, False], ids=["method", "function"])
@pytest.mark.parametrize("make", [vit, gpt, encoder])
def test_a_cut_model_calls_its_own(make, as_method):
    model, x = make()
    truth, whole = output(acn.truncate(model, 2), x), output(model, x)
    model, calls = replaced(model, as_method)
    short = acn.truncate(model, 2)
    assert torch.equal(output(short, x), truth) and not torch.allclose(whole, truth)
    assert calls == ([short] if as_method else [])
    assert torch.equal(output(model, x), whole)


@pytest.mark.parametrize("make", [vit, gpt, encoder])
def test_a_model_compiled_in_place_is_cut(make):
    model, x = make()
    truth = output(acn.truncate(model, 2), x)
    model.compile(backend="eager")
    output(model, x)
    torch.testing.assert_close(output(acn.truncate(model, 2), x), truth)


@pytest.mark.parametrize("make", [vit, gpt, encoder])
def test_a_model_that_torch_compile_wraps_is_cut(make):
    model, x = make()
    truth = output(acn.truncate(model, 2), x)
    compiled = torch.compile(model, backend="eager")
    whole = output(compiled, x)
    torch.testing.assert_close(output(acn.truncate(compiled, 2), x), truth)
    torch.testing.assert_close(output(compiled, x), whole)


def test_a_wrapped_part_is_cut():
    model, x = encoder()
    truth, whole = output(acn.truncate(model, 2), x), output(model, x)
    outer = nn.Sequential(torch.compile(model, backend="eager"))
    torch.testing.assert_close(output(acn.truncate(outer, 2), x), truth)
    torch.testing.assert_close(output(outer, x), whole)


@pytest.mark.parametrize("compiled", [True, False])
def test_an_early_exit_gpt_calls_its_own(compiled):
    model, x = gpt()
    model.compile(backend="eager") if compiled else replaced(model)
    assert EarlyExitGPT(model, [1], 1e9)(x).exit_depth.eq(1).all()


def test_it_is_there_again_behind_an_analysis():
    stack, calls = replaced(acn.FusedACNStack([TransformerBlock(8, 2)]))
    batch = torch.randn(2, 2, 5, 8).unbind()
    acn.gradients(stack, batch, loss=nn.functional.mse_loss)
    assert not calls
    stack(batch[0])
    assert calls == [stack]
