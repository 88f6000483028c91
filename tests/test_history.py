"""DenseNet- and DenseFormer-style wirings against plain loops."""

from __future__ import annotations

import pytest
import torch
from layers import Opaque, Shift
from loops import halves, normed, plain, residual_network
from tolerances import assert_close
from torch import nn

import acn_kernels as acn
from acn_kernels.blocks import DenseFormerStack, DenseNetStack, TransformerBlock
from acn_kernels.models import Model, create


def wide(layers):
    return [layer.double() for layer in layers]


@pytest.mark.parametrize("kind", [Shift, Opaque])
def test_densenet_is_the_plain_loop(kind):
    layers, norm = wide(kind(6) for _ in range(4)), nn.LayerNorm(6).double()
    stack = DenseNetStack(layers, norm, width=6).double()
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    outputs, u, truth = [x], x, [normed(x, norm)]
    for layer, mixer in zip(layers, stack.mixers, strict=True):
        outputs.append(plain(layer, u))
        u = torch.cat(outputs, -1) @ mixer.linear.weight.T + mixer.linear.bias
        truth.append(normed(u, norm))
    for k, (got, expected) in enumerate(zip(stack.forward_intermediates(x), truth, strict=True)):
        assert_close(got, expected, roundings=10, name=f"depth {k}")
        assert_close(stack(x, depth=k), expected, roundings=10)
        assert_close(stack.truncate(k)(x), expected, roundings=10)


def test_denseformer_is_the_plain_loop():
    blocks = wide(TransformerBlock(8, 2, 16) for _ in range(3))
    stack = DenseFormerStack(blocks, rows="first").double()
    for mixer in stack.mixers:
        nn.init.normal_(mixer.weight)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    outputs, u = [x], x
    for block, mixer in zip(blocks, stack.mixers, strict=True):
        first, second = halves(block)
        h = u + first(u)
        outputs.append(h + second(h))
        u = sum(w * out for w, out in zip(mixer.weight, outputs, strict=True))
    assert_close(stack(x), u[:, :1], roundings=20)


def test_denseformer_begins_as_the_residual_network():
    blocks = wide(TransformerBlock(8, 2, 16) for _ in range(3))
    norm = nn.LayerNorm(8).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    stack = DenseFormerStack(blocks, norm).double()
    assert_close(stack(x), residual_network(blocks, x, norm), roundings=20)


@pytest.mark.parametrize("wiring", ["dg_only", "densenet", "denseformer"])
@pytest.mark.parametrize("name", ["acn_mixer_digits", "acn_vit_digits"])
def test_models_train_cut_save_and_load(wiring, name, tmp_path):
    network = create(name, depth=3, wiring=wiring)
    images = torch.randn(2, 1, 8, 8)
    nn.init.normal_(network.head.weight)
    network(images).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    network.truncate(2).save_pretrained(tmp_path)
    again = Model.from_pretrained(tmp_path)
    assert torch.equal(again(images), network(images, depth=2))
    assert acn.probe(network, [(images, torch.tensor([1, 2]))]).shape == (4,)


def test_what_has_no_state_refuses():
    network = create("acn_mixer_digits", depth=2, wiring="densenet").eval()
    with pytest.raises(TypeError, match="blocks are a DenseNetStack"):
        acn.EarlyExit(network, [1], 0.1)
    with pytest.raises(TypeError, match="it has no state"):
        network.blocks.advance(torch.randn(1, 4, 8))
    with pytest.raises(TypeError, match="which sums no outputs"):
        acn.gradients(network, (torch.randn(1, 1, 8, 8), torch.tensor([1])))
    with pytest.raises(ValueError, match="cut behind a layer"):
        network.blocks[1:]


@pytest.mark.parametrize("kind", [DenseNetStack, DenseFormerStack])
def test_list_methods_keep_each_layer_with_its_mixer(kind):
    options = {"width": 8} if kind is DenseNetStack else {}
    stack = kind([nn.Linear(8, 8) for _ in range(3)], **options)
    x = torch.randn(2, 3, 8)
    truth = stack(x, depth=2)
    for change in (
        lambda: stack.append(nn.Linear(8, 8)),
        lambda: stack.insert(0, nn.Linear(8, 8)),
        lambda: stack.pop(0),
        lambda: stack.__delitem__(1),
    ):
        with pytest.raises(ValueError, match="of 3 layers may lose the last ones, no others"):
            change()
    stack.pop()
    assert torch.equal(stack(x), truth) and len(stack.mixers) == 2
    stack[0] = nn.Identity()
    assert len(stack.mixers) == 2 and not torch.equal(stack(x), truth)


@pytest.mark.parametrize("wiring", ["densenet", "denseformer"])
def test_checkpointing_recomputes_the_layers(wiring):
    network, images = create("acn_mixer_digits", depth=3, wiring=wiring), torch.randn(2, 1, 8, 8)
    nn.init.normal_(network.head.weight)
    truth = torch.autograd.grad(network(images).square().sum(), [*network.parameters()])
    network.set_grad_checkpointing()
    calls = []
    network.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for again in (network, network.truncate(3)):
        calls.clear()
        got = torch.autograd.grad(again(images).square().sum(), [*again.parameters()])
        assert len(calls) == 2  # once more in the backward pass
        for one, expected in zip(got, truth, strict=True):
            assert_close(one, expected)
