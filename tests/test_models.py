"""Model families: the three wirings, cutting, saving and reloading."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)

from acn_kernels import models
from acn_kernels.blocks import FeedForwardStack, MixerBlock
from acn_kernels.models import Model, create
from acn_kernels.models.base import CONFIG_FILE, WEIGHTS_FILE

SMALL = ("acn_vit_digits", "acn_mixer_digits")


def small(name: str = "acn_mixer_digits", **changes) -> Model:
    model = create(name, depth=3, **changes)
    nn.init.normal_(model.head.weight)  # zero at first: every output would be equal
    return model.eval()


def digits(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 1, 8, 8)


@pytest.mark.parametrize("wiring", ["acn", "residual", "feedforward"])
@pytest.mark.parametrize("name", SMALL)
def test_a_model_is_its_equation(name, wiring):
    model, images = small(name, wiring=wiring), digits()
    x = model.embed(images)
    y = x
    for block in model.blocks:
        if wiring == "residual":
            if name == "acn_vit_digits":
                y = y + block.attn(block.norm1(y))
                y = y + block.mlp(block.norm2(y))
            else:
                y = y + block.token_mlp(block.norm1(y).mT).mT
                y = y + block.channel_mlp(block.norm2(y))
            continue
        x = block(x)
        y = x if wiring == "feedforward" else y + x
    expected = model.head(model.blocks.norm(y).mean(1))
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_twins_have_the_same_weights(name):
    torch.manual_seed(0)
    acn = create(name)
    torch.manual_seed(0)
    residual = create(name, wiring="residual")
    assert acn.blocks.alpha == 1 and residual.blocks.alpha == 0
    assert isinstance(create(name, wiring="feedforward").blocks, FeedForwardStack)
    for (key, a), (other, b) in zip(
        acn.state_dict().items(), residual.state_dict().items(), strict=True
    ):
        assert key == other and torch.equal(a, b)


def test_the_head_is_zero_at_first():
    assert not create("acn_vit_digits")(digits()).any()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("wiring", ["acn", "residual", "feedforward"])
def test_truncated_equals_depth_equals_probe(name, wiring):
    model, images = small(name, wiring=wiring), digits()
    by_depth = model.logits_by_depth(images)
    assert by_depth.shape == (4, 3, 10)
    for k in range(4):
        short = model.truncate(k)
        assert short.config.depth == len(short.blocks) == k
        torch.testing.assert_close(short(images), by_depth[k], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(images, depth=k), by_depth[k], rtol=1e-4, atol=1e-4)
        assert set(short.state_dict()) <= set(model.state_dict())
    assert short.head is model.head and len(model.blocks) == 3


@pytest.mark.parametrize("name", SMALL)
def test_saved_and_reloaded(name, tmp_path):
    model, images = small(name).truncate(2), digits()
    model.save_pretrained(tmp_path / "cut")
    loaded = Model.from_pretrained(tmp_path / "cut").eval()
    assert loaded.config == model.config and torch.equal(loaded(images), model(images))
    first = (tmp_path / "cut" / "model.safetensors").read_bytes()
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == first


CHANGES = {
    "granularity": "sublayer",
    "include_input": False,
    "rows": torch.tensor([1]),
    "scales": torch.tensor([1.0, 2.0, 0.5]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_network_that_would_be_loaded_as_another_is_not_saved(name, tmp_path):
    model = small().truncate(2)
    setattr(model.blocks, name, CHANGES[name])
    with pytest.raises(ValueError, match=rf"blocks\.{name} .* loaded as"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_another_final_norm_is_not_saved(tmp_path):
    model = small()
    model.blocks.norm.eps = 1e-3
    with pytest.raises(ValueError, match=r"blocks\.norm is LayerNorm.*eps=0\.001.*; it would be"):
        model.save_pretrained(tmp_path / "eps")
    model.blocks.norm = nn.Identity()
    with pytest.raises(ValueError, match=r"blocks\.norm is Identity\(\); it would be"):
        model.save_pretrained(tmp_path / "none")
    model.blocks.norm = nn.RMSNorm(64)
    with pytest.raises(ValueError, match=r"blocks\.norm is RMSNorm"):
        model.save_pretrained(tmp_path / "rms")
    assert not any(tmp_path.iterdir())


PARTS = {
    "mlp.act": (nn.GELU("tanh"), r"GELU\(approximate='tanh'\)"),
    "mlp.fc1": (nn.Linear(64, 40), r"Linear\(in_features=64, out_features=40, bias=True\)"),
    "norm1": (nn.LayerNorm(64, eps=1e-3), r"LayerNorm\(\(64,\), eps=0\.001"),
    "norm2": (nn.RMSNorm(64), "RMSNorm"),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_layer_with_another_part_is_not_saved(part, tmp_path):
    model = small("acn_vit_digits")
    module, named = PARTS[part]
    model.blocks[1].set_submodule(part, module)
    with pytest.raises(ValueError, match=rf"blocks\.1\.{part} is {named}.*; it would be loaded as"):
        model.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("part", "module", "name"),
    [
        ("head", nn.Sequential(nn.Dropout(0.1), nn.Linear(64, 10)), r"head\.1\.bias"),
        ("head", nn.Linear(64, 7), r"head\.bias has shape \(7,\)"),
    ],
    ids=["others", "classes"],
)
def test_weights_that_could_not_be_loaded_are_not_saved(part, module, name, tmp_path):
    model = small("acn_mixer_digits")
    model.set_submodule(part, module)
    with pytest.raises(ValueError, match=rf"{name}.*; it could not be loaded again"):
        model.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())


class TellingLinear(nn.Linear):
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, and more"


@pytest.mark.parametrize(
    "wrapped", [MixerBlock, nn.GELU, nn.LayerNorm, "compiled", "block", "subclass"]
)
def test_wrapped_parts_are_saved_as_what_they_are(wrapped, tmp_path):
    model = small()
    if wrapped == "compiled":
        model.blocks[1].token_mlp.act = torch.compile(model.blocks[1].token_mlp.act)
    elif wrapped == "block":
        model.blocks[1] = torch.compile(model.blocks[1])
    elif wrapped == "subclass":
        model.blocks[1].token_mlp.fc1.__class__ = TellingLinear
    else:
        final = model.blocks.norm
        apply_activation_checkpointing(
            model.blocks, check_fn=lambda m: type(m) is wrapped and m is not final
        )
    model.save_pretrained(tmp_path)
    assert Model.from_pretrained(tmp_path).state_dict().keys() == small().state_dict().keys()


@pytest.mark.parametrize("at", [WEIGHTS_FILE, CONFIG_FILE])
def test_saving_that_is_interrupted_leaves_no_model_of_two(at, tmp_path, monkeypatch):
    old, new, replace = small(), small(wiring="residual"), os.replace
    old.save_pretrained(tmp_path)

    def interrupted(source, target):
        if Path(target).name == at:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=CONFIG_FILE):
        Model.from_pretrained(tmp_path)
    monkeypatch.undo()
    new.save_pretrained(tmp_path)
    images = digits()
    assert torch.equal(Model.from_pretrained(tmp_path).eval()(images), new(images))


def test_images_of_bytes_are_refused():
    with pytest.raises(TypeError, match=r"images is torch\.uint8; it takes floating point"):
        small()(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"depth": -1}, ValueError, "depth is -1; it takes an integer of at least 0"),
        ({"depth": "2"}, TypeError, "depth is '2'; it takes an integer"),
        ({"width": 0}, ValueError, "width is 0; it takes an integer of at least 1"),
        ({"token_mlp": 32.0}, TypeError, "token_mlp is 32.0; it takes an integer"),
        ({"classes": True}, TypeError, "classes is True; it takes an integer"),
    ],
)
def test_sizes_that_are_none(changes, error, message):
    with pytest.raises(error, match=message):
        create("acn_mixer_digits", **changes)


def test_foreign_files_are_refused(tmp_path):
    model = small()
    with pytest.raises(FileNotFoundError):
        Model.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"family": "resnet"}, "family 'resnet'"),
        ({"dropout": 0.1}, "differs .* in dropout"),
        ({"width": 32}, r"is not of this model: .* has shape .*; it takes"),
        ({"width": 10**9}, "is not of this model"),  # nothing of that size is made
        ({"depth": 10**9}, "depth is 1000000000; the weights are"),
        ({"depth": 2}, "is not of this model: it holds blocks.2"),
        ({"depth": "3"}, "config.json: depth is '3'"),
        ({"alpha": "x"}, "config.json: alpha is "),
        ({"alpha": 2}, "config.json: alpha is 2"),
        ({"family": ["vit"]}, r"config.json names family \['vit'\]"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            Model.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = model.state_dict()
    for changed, message in (
        (
            {"head.weight": weights["head.weight"].int()},
            r"head\.weight is I32; it takes torch\.float32",
        ),
        ({"head.weight": weights["head.weight"][1:]}, "head.weight has shape"),
        ({"other": torch.zeros(1)}, "it holds other"),
    ):
        save_file({**weights, **changed}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=f"is not of this model: {message}"):
            Model.from_pretrained(tmp_path)
    del weights["head.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"it lacks head\.bias"):
        Model.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match="is no file of weights"):
        Model.from_pretrained(tmp_path)
    for text, message in (("{", "is no JSON"), ("[1]", "holds a list")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            Model.from_pretrained(tmp_path)


def test_weights_that_are_counts(tmp_path):
    class Counting(type(small()), family="counting"):
        def __init__(self, config):
            super().__init__(config)
            self.register_buffer("seen", torch.tensor(7))

    try:
        Counting(small().config).save_pretrained(tmp_path)
        assert Model.from_pretrained(tmp_path).seen == 7
    finally:
        del Model.families["counting"]


def test_class_token_reads_one_row():
    model = small("acn_vit_digits", pool="first")
    features = model.forward_features(digits())
    assert features.shape == (3, 1, 64)
    full = model.blocks
    full.rows = None
    every = full(model.embed(digits().fill_(1.0)))
    full.rows = "first"
    one = full(model.embed(digits().fill_(1.0)))
    torch.testing.assert_close(one, every[:, :1])


@pytest.mark.parametrize("name", [*models.PRESETS])
def test_every_preset_builds(name):
    with torch.device("meta"):
        model = create(name, depth=1)
    assert len(model.blocks) == 1


@pytest.mark.parametrize(
    ("name", "millions"),
    [("acn_vit_base_patch16_224", 86.0), ("acn_vit_small_patch16_224", 22.0)],
)
def test_preset_sizes_are_the_usual_ones(name, millions):
    with torch.device("meta"):
        model = create(name)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create("vit"), "name is 'vit'"),
        (lambda: create("acn_vit_digits", widht=3), "has no widht"),
        (lambda: create("acn_vit_digits", wiring="dense"), "wiring is 'dense'"),
        (lambda: create("acn_vit_digits", pool="max"), "pool is 'max'"),
        (lambda: create("acn_vit_digits", patch_size=3), "patch_size is 3"),
        (lambda: create("acn_vit_digits", heads=5), "heads is 5"),
        (lambda: create("acn_vit_digits", width=66, heads=1), "width is 66"),
        (lambda: small()(torch.zeros(2, 3, 8, 8)), "images has shape"),
        (lambda: small().truncate(4), "k is 4"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
