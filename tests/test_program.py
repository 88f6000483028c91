"""Models as graphs: torch.export, AOTInductor and ONNX give the logits of eager mode."""

from __future__ import annotations

import shutil
import sys

import pytest
import torch
from torch import nn

from acn_kernels.cli import main
from acn_kernels.inference import export, export_onnx, exported_program
from acn_kernels.models import Model, create

BATCHES = (1, 7)
MODELS = {
    "vit": ("acn_vit_digits", {}),
    "vit-class-token": ("acn_vit_digits", {"pool": "first"}),
    "vit-residual": ("acn_vit_digits", {"wiring": "residual"}),
    "mixer": ("acn_mixer_digits", {}),
    "mixer-closing": ("acn_mixer_digits", {"closing": True}),
    "mixer-feedforward": ("acn_mixer_digits", {"wiring": "feedforward"}),
}
CASES = [
    (name, depth) for name in MODELS for depth in ((None, 0, 2) if name == "mixer" else (None, 2))
]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Not here: graphs would write the poison into every allocation of their own."""


def model_of(name: str) -> Model:
    preset, options = MODELS[name]
    model = create(preset, depth=3, **options)
    nn.init.normal_(model.head.weight)
    return model


def assert_same_logits(run, model, depth):
    for batch in BATCHES:
        images = torch.randn(batch, 1, 8, 8)
        with torch.no_grad():
            expected = model.eval()(images, depth=depth)
        torch.testing.assert_close(run(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "depth"), CASES)
def test_torch_export(name, depth):
    model = model_of(name).train()
    program = exported_program(model, depth)
    assert model.training
    assert_same_logits(program.module(), model, depth)


def test_a_mixture_keeps_its_alpha():
    model = model_of("vit")
    model.blocks.alpha = 0.4
    assert_same_logits(exported_program(model).module(), model, None)


def session_of(path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="what runs ONNX files")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


QUICK = (("mixer", 2), ("vit-class-token", None))
ONNX_CASES = [
    case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES
]


@pytest.mark.parametrize(("name", "depth"), ONNX_CASES)
def test_onnx(name, depth, tmp_path):
    pytest.importorskip("onnxscript", reason="torch's ONNX exporter stands on it")
    model = model_of(name)
    export_onnx(model, tmp_path / "model.onnx", depth)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert_same_logits(session_of(tmp_path / "model.onnx"), model, depth)


@pytest.mark.slow
def test_onnx_on_the_command_line(tmp_path, capsys):
    pytest.importorskip("onnxscript", reason="torch's ONNX exporter stands on it")
    model = model_of("mixer")
    model.save_pretrained(tmp_path / "saved")
    command = ["export", str(tmp_path / "saved"), str(tmp_path / "out"), "--onnx", "--depth", "2"]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out" / "model.onnx")
    assert_same_logits(session_of(tmp_path / "out" / "model.onnx"), model, 2)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
@pytest.mark.parametrize(("name", "depth"), [("vit", 2), ("mixer", None)])
def test_aot_inductor(name, depth, tmp_path):
    model, path = model_of(name), str(tmp_path / "model.pt2")
    torch._inductor.aoti_compile_and_package(exported_program(model, depth), package_path=path)
    assert_same_logits(torch._inductor.aoti_load_package(path), model, depth)


def test_bad_arguments(tmp_path, capsys, monkeypatch):
    model = model_of("mixer")
    with pytest.raises(TypeError, match="model is a Linear"):
        exported_program(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="k is 4"):
        exported_program(model, 4)
    model.save_pretrained(tmp_path / "saved")
    command = ["export", str(tmp_path / "saved"), str(tmp_path / "out"), "--onnx"]
    assert main([*command, "--dtype", "bf16"]) == 2
    assert "--onnx goes with --depth alone" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(command) == 2
    assert "acn-kernels[onnx]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    model.blocks.alpha = [1.0, *[0.5] * (len(model.blocks) - 1)]
    with pytest.raises(ValueError, match=r"the engine does not run this model: .*one alpha"):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
