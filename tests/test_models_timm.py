"""timm's surface on the image models: the same names, and what they mean."""

from __future__ import annotations

import inspect

import pytest
import torch
from loops import block_network, normed
from timm_models import import_timm
from tolerances import assert_close
from torch import nn

from acn_kernels.models import Model, ViT, create

NAMES = ("acn_vit_digits", "acn_mixer_digits")


def small(name: str = "acn_vit_digits", **changes) -> Model:
    model = create(name, depth=3, **changes)
    nn.init.normal_(model.head.weight)
    return model.double().eval()


def digits() -> torch.Tensor:
    return torch.randn(2, 1, 8, 8).double()


def sums(model: Model, images: torch.Tensor) -> list[torch.Tensor]:
    """y_0 .. y_L by the equation, with every row and without the norm."""
    x = model.embed(images)
    return [block_network(list(model.blocks)[:k], x, alpha=1.0) for k in range(4)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", [True, False])
def test_intermediates_are_the_sums(name, norm):
    model, images = small(name), digits()
    truth = [normed(y, model.blocks.norm) if norm else y for y in sums(model, images)]
    for indices, depths in (
        (None, [0, 1, 2, 3]), (2, [2, 3]), ([3, 1], [3, 1]), ([-1, -4], [3, 0]), ((1, 1), [1, 1]),
    ):  # fmt: skip
        found = model.forward_intermediates(images, indices, norm=norm)
        for got, k in zip(found, depths, strict=True):
            assert_close(got, truth[k])


@pytest.mark.parametrize("stop_early", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_final_features_beside_the_intermediates(norm, stop_early):
    model, images = small(), digits()
    final, found = model.forward_intermediates(
        images, [1], norm=norm, stop_early=stop_early, intermediates_only=False
    )
    truth = sums(model, images)
    assert_close(final, normed(truth[1 if stop_early else 3], model.blocks.norm))
    assert_close(found[0], normed(truth[1], model.blocks.norm) if norm else truth[1])


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_images_of_features_and_the_class_token(pool):
    model, images = small(pool=pool), digits()
    truth = sums(model, images)[2]
    first = int(pool == "first")
    (got,) = model.forward_intermediates(images, [2], norm=False, output_fmt="NCHW")
    assert got.shape == (2, 64, 4, 4)
    for row in range(4):
        for column in range(4):
            assert_close(got[:, :, row, column], truth[:, first + 4 * row + column])
    (got,) = model.forward_intermediates(images, [2], norm=False, return_prefix_tokens=True)
    if pool == "first":
        assert_close(got[0], truth[:, 1:])
        assert_close(got[1], truth[:, :1])
        assert model.blocks.rows == "first"
        assert model.forward_features(images).shape == (2, 1, 64)
    else:
        assert_close(got, truth)


@pytest.mark.parametrize("options", [{"output_fmt": "NCHW"}, {"return_prefix_tokens": True}])
@pytest.mark.parametrize("norm", [True, False])
def test_the_head_reads_the_final_features(norm, options):
    model, images = small(pool="first"), digits()
    last, _ = model.forward_intermediates(images, norm=norm, intermediates_only=False, **options)
    assert_close(model.forward_head(last), model(images))


@pytest.mark.parametrize("name", NAMES)
def test_pruned_in_place(name, tmp_path):
    model, images = small(name), digits()
    truth = model.forward_intermediates(images, [1, 2])
    assert model.prune_intermediate_layers([1, 2]) == [1, 2]
    assert len(model.blocks) == model.config.depth == 2 and model.num_classes == 0
    for got, expected in zip(model.forward_intermediates(images, [1, 2]), truth, strict=True):
        assert_close(got, expected)
    assert_close(model(images), truth[1].mean(1))
    model.save_pretrained(tmp_path)
    assert_close(Model.from_pretrained(tmp_path).double()(images), model(images))
    model.prune_intermediate_layers(1, prune_norm=True)
    bare = block_network(list(model.blocks), model.embed(images), alpha=1.0)
    assert_close(model.forward_features(images), bare)
    with pytest.raises(ValueError, match="norm was pruned"):
        model.save_pretrained(tmp_path)


def test_pruning_may_leave_the_head():
    model, images = small(), digits()
    truth = model(images, depth=2)
    model.prune_intermediate_layers([2], prune_head=False)
    assert_close(model(images), truth)


def test_another_classifier(tmp_path):
    model, images = small().float(), digits().float()
    model.reset_classifier(7)
    assert model.num_classes == model.config.classes == 7 and model.get_classifier() is model.head
    assert (
        model.head.weight.dtype == torch.float32 and not model.training and not model.head.training
    )
    assert model(images).shape == (2, 7) and not model(images).any()
    nn.init.normal_(model.head.weight)
    model.save_pretrained(tmp_path)
    assert torch.equal(Model.from_pretrained(tmp_path)(images), model(images))
    model.reset_classifier(0)
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    assert model.num_classes == 0 and torch.equal(model(images), features)
    assert features.shape[1] == model.num_features == model.head_hidden_size
    assert model.pooled_head is None


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_no_gradient(name):
    model, images = small(name), digits()
    parameters = [p for p in model.parameters() if p.requires_grad]
    truth = torch.autograd.grad(model(images).square().sum(), parameters)
    model.set_grad_checkpointing()
    assert model.blocks.checkpoint is True
    calls = []
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    got = torch.autograd.grad(model(images).square().sum(), parameters)
    assert len(calls) == 2  # once more in the backward pass
    for one, expected in zip(got, truth, strict=True):
        assert_close(one, expected)
    model.set_grad_checkpointing(False)
    assert model.blocks.checkpoint is False


def test_parameters_without_weight_decay():
    assert create("acn_mixer_digits").no_weight_decay() == set()
    assert create("acn_vit_digits", pool="first").no_weight_decay() == {"cls_token"}


def test_arguments_have_timms_names():
    vit = import_timm().models.VisionTransformer
    for name in ("forward_intermediates", "prune_intermediate_layers", "reset_classifier",
                 "set_grad_checkpointing", "forward_head"):  # fmt: skip
        ours = list(inspect.signature(getattr(ViT, name)).parameters)[2:]
        assert set(ours) <= set(inspect.signature(getattr(vit, name)).parameters), name
    assert callable(vit.no_weight_decay) and callable(vit.get_classifier)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: m.forward_intermediates(x, 5), ValueError, "indices is 5"),
        (lambda m, x: m.forward_intermediates(x, [4]), ValueError, "indices holds 4"),
        (lambda m, x: m.forward_intermediates(x, [-5]), ValueError, "indices holds -5"),
        (lambda m, x: m.forward_intermediates(x, [1.0]), TypeError, "indices holds 1.0"),
        (lambda m, x: m.forward_intermediates(x, []), ValueError, "indices is empty"),
        (lambda m, x: m.forward_intermediates(x, output_fmt="NHWC"), ValueError, "output_fmt"),
        (lambda m, x: m.prune_intermediate_layers([4]), ValueError, "indices holds 4"),
        (lambda m, x: m.reset_classifier(-1), ValueError, "num_classes is -1"),
        (lambda m, x: m.reset_classifier("ten"), TypeError, "num_classes is 'ten'"),
        (lambda m, x: m.set_grad_checkpointing(2), TypeError, "enable is 2"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(small(), digits())
