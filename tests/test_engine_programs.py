"""Models that the engine has no blocks for, compiled as a whole: engine = EarlyExit in PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_case import DEPTH, certainty, clear_threshold, images_for, network_of
from timm_models import import_timm
from torch import nn

from acn_kernels import EarlyExit, Engine, FusedACNStack, _extension, convert
from acn_kernels.blocks import FeedForwardStack
from acn_kernels.cli import main
from acn_kernels.inference import export, programs
from acn_kernels.models import create

if _extension.module() is None:
    pytest.skip(f"the compiled extension is {_extension.state()}", allow_module_level=True)

WIDTH, CLASSES, STOPS = 16, 5, [1, 3]


class Network(nn.Module):
    """A convolution, layers that nobody knows, and a head."""

    def __init__(self, kind: type[FusedACNStack] = FusedACNStack, **options) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, 4)
        layers = [
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.Tanh(), nn.Linear(32, 16))
            for _ in range(DEPTH)
        ]
        self.blocks = kind(layers, nn.RMSNorm(WIDTH), **options)
        self.head = nn.Linear(WIDTH, CLASSES)
        nn.init.normal_(self.head.weight)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return self.stem(images).flatten(2).transpose(1, 2)

    def forward_head(self, y: torch.Tensor) -> torch.Tensor:
        return self.head(y.mean(1))


class Converted(nn.Module):
    """A timm ViT from acn.convert, as embed, blocks and head."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        vit = import_timm().create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=4, num_classes=CLASSES, depth=DEPTH,
            embed_dim=24,
        )  # fmt: skip
        nn.init.normal_(vit.head.weight)
        self.vit = convert(vit, alpha=alpha)
        self.blocks = self.vit.blocks

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return self.vit._pos_embed(self.vit.patch_embed(images))

    def forward_head(self, y: torch.Tensor) -> torch.Tensor:
        return self.vit.forward_head(self.vit.norm(y))


def run(model, batch, exits, criterion="margin"):
    """The logits by depth, a threshold under which samples leave at several, and EarlyExit."""
    y = model.blocks.forward_intermediates(model.embed(batch))
    by_depth = torch.stack([model.forward_head(each) for each in y]).detach()
    threshold = clear_threshold(certainty(by_depth[exits], criterion)) if len(batch) else 0.5
    return by_depth, threshold, EarlyExit(model, exits, threshold, criterion)(batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        Network,
        lambda: Network(alpha=0.3),
        lambda: Network(FeedForwardStack),
        lambda: Converted(1.0),
        lambda: Converted(0.0),
    ],
    ids=["acn", "between", "feedforward", "converted", "residual"],
)
def test_programs_alone(make, tmp_path):
    model = make().eval()
    export(model, tmp_path, aot_exits=STOPS, example=torch.randn(1, 3, 16, 16))
    engine = Engine.from_folder(tmp_path, compiled=True)
    assert engine.compiled_segments == 3 and not (tmp_path / "model.safetensors").exists()
    for batch in (torch.randn(n, 3, 16, 16) for n in (0, 1, 3, 40)):
        by_depth, threshold, expected = run(model, batch, STOPS)
        for micro_batch in (None, 4):
            result = engine(batch, STOPS, threshold, "margin", micro_batch=micro_batch)
            assert torch.equal(result.depth, expected.depth)
            torch.testing.assert_close(result.logits, expected.logits, rtol=1e-4, atol=1e-4)
        for depth in (*STOPS, DEPTH):
            logits = engine(batch, depth=depth).logits
            torch.testing.assert_close(logits, by_depth[depth], rtol=1e-4, atol=1e-4)
    later = EarlyExit(model, [3], threshold, "margin")(batch)  # two segments behind each other
    assert torch.equal(engine(batch, [3], threshold, "margin").depth, later.depth)
    with pytest.raises(ValueError, match=r"hold 2; this model was compiled for 1, 3, 4"):
        engine(batch, [2], threshold, "margin")
    with pytest.raises(ValueError, match=r"it takes \[batch, 3, 16, 16\]"):
        engine(batch[:, :1])
    with pytest.raises(ValueError, match="inputs is Double"):
        engine(batch.double())
    with pytest.raises(ValueError, match="programs and no weights"):
        Engine.from_folder(tmp_path)
    without_python(tmp_path, batch, engine, threshold)
    damaged(tmp_path)


def without_python(folder, batch, engine, threshold) -> None:
    program = os.environ.get("ACN_INFER", "build/cpp/acn_infer")
    if not Path(program).is_file():
        return
    np.save(folder / "in.npy", batch.numpy())
    options = ["--exits", "1,3", "--threshold", str(threshold), "--criterion", "margin"]
    command = [program, folder, folder / "in.npy", *options, "--out", folder / "out"]
    subprocess.run([*command, "--aot"], check=True)
    expected = engine(batch, STOPS, threshold, "margin")
    assert np.array_equal(np.load(folder / "out" / "depth.npy"), expected.depth.numpy())
    logits = torch.from_numpy(np.load(folder / "out" / "logits.npy"))
    torch.testing.assert_close(logits, expected.logits, rtol=1e-4, atol=1e-4)
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1 and "--aot" in refused.stderr


def damaged(folder) -> None:
    """Programs cut short, of other shapes than the configuration says, or missing."""
    segment, config = folder / "segment-1-3.pt2", folder / "config.json"
    whole, sound = segment.read_bytes(), json.loads(config.read_text())
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        segment.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"segment-1-3\.pt2 does not load"):
            Engine.from_folder(folder, compiled=True)
    segment.write_bytes(whole)
    for part, said in (("stem", "head"), ("head", "stem"), ("segment-1-3", "head")):
        file = folder / f"{part}.pt2"
        own = file.read_bytes()
        file.write_bytes((folder / f"{said}.pt2").read_bytes())
        with pytest.raises(ValueError, match=rf"{part}\.pt2 is for the {said} of model .*it takes"):
            Engine.from_folder(folder, compiled=True)
        file.write_bytes(own)
    config.write_text(json.dumps({**sound, "model": "another"}))
    with pytest.raises(ValueError, match=r"stem\.pt2 is for .*here it takes .* of model another"):
        Engine.from_folder(folder, compiled=True)
    config.write_text(json.dumps({**sound, "classes": 9}))
    with pytest.raises(ValueError, match=r"head\.pt2 returns"):
        Engine.from_folder(folder, compiled=True)(torch.zeros(2, 3, 16, 16))
    config.write_text(json.dumps({**sound, "stops": [2, 4]}))
    with pytest.raises(FileNotFoundError, match=r"segment-0-2\.pt2"):
        Engine.from_folder(folder, compiled=True)


@pytest.mark.slow
def test_other_wirings_on_the_command_line(tmp_path):
    network = create("acn_mixer_digits", depth=2, wiring="feedforward").eval()
    nn.init.normal_(network.head.weight)
    network.save_pretrained(tmp_path / "saved")
    command = ["export", str(tmp_path / "saved"), str(tmp_path / "out")]
    assert main(command) == 2
    assert main([*command, "--aot", "--exits", "1"]) == 0
    engine = Engine.from_folder(tmp_path / "out", compiled=True)
    images = images_for(network, 7)
    for depth in (1, 2):
        logits, expected = engine(images, depth=depth).logits, network(images, depth=depth)
        torch.testing.assert_close(logits, expected.detach(), rtol=1e-4, atol=1e-4)
    export(network_of("mixer"), tmp_path / "out")  # weights take the programs' place
    assert Engine.from_folder(tmp_path / "out").compiled_segments == 0
    with pytest.raises(ValueError, match="it holds no compiled segment"):
        Engine.from_folder(tmp_path / "out", compiled=True)


def test_what_is_not_compiled(tmp_path):
    example = torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match="with aot_exits it is compiled"):
        export(Network(), tmp_path)
    with pytest.raises(ValueError, match="example is None; to compile a Network"):
        export(Network(), tmp_path, aot_exits=STOPS)
    with pytest.raises(ValueError, match=r"example is torch\.int32"):
        export(Network(), tmp_path, aot_exits=STOPS, example=example.int())
    with pytest.raises(ValueError, match="the sum has scales"):
        export(Network(scales="learned"), tmp_path, aot_exits=STOPS, example=example)
    with pytest.raises(TypeError, match="model is a Linear; it takes one with embed"):
        export(nn.Linear(2, 2), tmp_path, aot_exits=[], example=example)
    with pytest.raises(ValueError, match="aot_exits is 9"):
        export(Network(), tmp_path, aot_exits=[9], example=example)
    assert not list(tmp_path.iterdir())


def test_compiled_segments_and_their_weights_take_the_folder_together(tmp_path, monkeypatch):
    """An export that fails while it compiles leaves the one before; what stays is of one model."""
    stale = ("model.onnx", "segment-0-9.pt2", "stem.pt2")
    for name in stale:
        (tmp_path / name).write_bytes(b"of an export before")
    labels = []

    def compile_one(module, inputs, path, label, *_):
        assert len(labels) != 2, "the last one fails"
        labels.append(label)
        path.write_bytes(b"a segment")

    monkeypatch.setattr(programs, "_compile", compile_one)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(AssertionError):
        export(network_of("mixer"), tmp_path, aot_exits=STOPS)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    del labels[:]
    export(network_of("mixer"), tmp_path, aot_exits=[2])
    files = ["config.json", "model.safetensors", "segment-0-2.pt2", "segment-2-4.pt2"]
    assert sorted(os.listdir(tmp_path)) == files
    written = b"".join((tmp_path / name).read_bytes() for name in files[:2])
    assert all(label.endswith(f" of model {zlib.crc32(written):08x}") for label in labels)


@pytest.mark.parametrize("fails_at", ["embed", "forward_head", "compiling"])
def test_what_fails_to_be_compiled_leaves_the_folder_as_it_was(fails_at, tmp_path, monkeypatch):
    network_of("mixer").save_pretrained(tmp_path)
    (tmp_path / "segment-0-1.pt2").write_bytes(b"of the mixer")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    network, example = Network(), torch.randn(2, 3, 16, 16)
    if fails_at == "embed":
        example = example[:, :2]
    elif fails_at == "forward_head":
        monkeypatch.setattr(network, "head", nn.Identity())
        monkeypatch.setattr(Network, "forward_head", lambda self, y: y)
    else:
        compiled = []

        def compile_two(module, inputs, path, *_):
            assert len(compiled) < 2, "the third one fails"
            compiled.append(path.write_bytes(b"a part"))

        monkeypatch.setattr(programs, "_compile", compile_two)
    with pytest.raises((RuntimeError, ValueError, AssertionError)):
        export(network, tmp_path, aot_exits=STOPS, example=example)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
