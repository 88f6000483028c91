"""The recipes of docs/compress.md: what they leave is what their libraries promise."""

from __future__ import annotations

import copy

import pytest
import torch
from markdown import ROOT, run_python_blocks
from torch import nn
from torch.nn.utils import prune

from acn_kernels import EarlyExit
from acn_kernels.blocks import Attention, MixerBlock, Mlp
from acn_kernels.functional import obstacle_to_mixer_stack
from acn_kernels.models import create


@pytest.fixture(scope="module")
def recipe():
    """The names that the page's blocks leave."""
    for module in ("sklearn", "torch_pruning", "torchao"):
        pytest.importorskip(module, reason="docs/compress.md uses it")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    names = run_python_blocks(ROOT / "docs" / "compress.md")
    torch.set_num_threads(threads)
    return names


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.blocks.modules() if isinstance(module, nn.Linear)]


def zeros(model: nn.Module) -> float:
    weights = torch.cat([linear.weight.detach().flatten() for linear in linears(model)])
    return (weights == 0).double().mean().item()


@pytest.mark.parametrize(("name", "share"), [("pruned", 0.4), ("moving", 1 - 0.8**2)])
def test_pruned_models_have_their_zeros_and_work(recipe, name, share, tmp_path):
    model, images = recipe[name], recipe["digits"].test.images
    assert zeros(model) == pytest.approx(share, abs=1e-3) and zeros(recipe["short"]) < 1e-3
    model.save_pretrained(tmp_path)  # no masks are left: an ordinary model
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(again(images), model(images))
    assert EarlyExit(again, [1], 0.5)(images).logits.shape == (len(images), 10)


def test_movement_takes_other_weights_than_magnitude(recipe):
    """Of those that it dropped, many were larger than the smallest 36 % were."""
    before = torch.cat([linear.weight.detach().flatten() for linear in linears(recipe["short"])])
    after = torch.cat([linear.weight.detach().flatten() for linear in linears(recipe["moving"])])
    dropped, small = after == 0, before.abs() < before.abs().quantile(0.36)
    assert (dropped & ~small).double().mean() > 0.05


def test_removing_neurons_is_masking_them():
    """torch-pruning finds exactly the rows and columns that belong to a hidden neuron."""
    pruning = pytest.importorskip("torch_pruning")
    for name, part in (("acn_vit_digits", "mlp"), ("acn_mixer_digits", "channel_mlp")):
        model, images = create(name, depth=2).eval(), torch.randn(3, 1, 8, 8)
        nn.init.normal_(model.head.weight)
        masked, gone = copy.deepcopy(model), [0, 5, 77]
        graph = pruning.DependencyGraph().build_dependency(model, images)
        for block, twin in zip(model.blocks, masked.blocks, strict=True):
            fc1 = getattr(block, part).fc1
            graph.get_pruning_group(fc1, pruning.prune_linear_out_channels, idxs=gone).prune()
            getattr(twin, part).fc2.weight.data[:, gone] = 0
            assert fc1.out_features == 125
        torch.testing.assert_close(model(images), masked(images), rtol=1e-5, atol=1e-5)


def test_a_narrow_model_is_smaller_and_reloads(recipe):
    narrow, again, images = recipe["narrow"], recipe["again"], recipe["digits"].test.images
    assert narrow.config.mlp_width == 64
    assert {block.mlp.fc1.weight.shape for block in again.blocks} == {(64, 64)}
    assert torch.equal(again(images), narrow(images))


def test_int8_weights_give_nearly_the_same_logits(recipe):
    images = recipe["digits"].test.images
    with torch.no_grad():
        whole, got = recipe["narrow"](images), recipe["quantised"](images)
    assert 0 < (got - whole).norm() / whole.norm() < 0.03


@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
@pytest.mark.parametrize("options", [{}, {"pool": "first"}], ids=str)
def test_quantised_models_cut_and_leave_early(options, config):
    """Pooling, a class token and the exit head call the quantised layers; none takes them apart."""
    quantization = pytest.importorskip("torchao.quantization")
    model = create("acn_vit_digits", depth=3, **options).eval()
    nn.init.normal_(model.head.weight)
    quantization.quantize_(model, getattr(quantization, config)())
    images = torch.randn(9, 1, 8, 8)
    by_depth = model.logits_by_depth(images)
    torch.testing.assert_close(model.truncate(2)(images), by_depth[2], rtol=1e-4, atol=1e-4)
    left = EarlyExit(model, [1, 2], 1.0)(images)
    chosen = by_depth[left.depth, torch.arange(9)]
    torch.testing.assert_close(left.logits, chosen, rtol=1e-4, atol=1e-4)
    assert model.pooled_head is None


class Opaque(torch.Tensor):
    """A weight that holds its numbers elsewhere: reading its memory gives nothing."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        raise NotImplementedError(f"{func} takes a weight apart")


def test_kernels_leave_such_weights_alone():
    block = MixerBlock(4, 8, 5, 7)
    assert obstacle_to_mixer_stack([block], torch.randn(2, 4, 8)) is None
    block.channel_mlp.fc2.weight = nn.Parameter(
        Opaque(block.channel_mlp.fc2.weight.detach()), requires_grad=False
    )
    said = obstacle_to_mixer_stack([block], torch.randn(2, 4, 8))
    assert "channel_mlp.fc2 with a Opaque" in said


def test_a_mask_of_torch_is_seen_everywhere():
    """prune puts its mask on in a hook: the layer has to be called."""
    attention, mlp = Attention(8, 2), Mlp(8, 16)
    for linear in (attention.qkv, mlp.fc1):
        prune.random_unstructured(linear, "weight", 0.5)
    assert not mlp._is_plain()
    model = create("acn_mixer_digits", depth=1)
    prune.identity(model.head, "weight")
    assert model.pooled_head is None
