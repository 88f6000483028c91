"""What is written for the C++ runtime, what it refuses to load, and acn_infer on it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_case import EXITS, KINDS, certainty, clear_threshold, images_for, network_of
from safetensors.torch import load_file, save_file

from acn_kernels import Engine, truncate
from acn_kernels.cli import main
from acn_kernels.inference import export
from acn_kernels.models import create


def test_a_folder_is_the_model(tmp_path):
    for kind in KINDS:
        network = network_of(kind)
        network.save_pretrained(tmp_path)
        images = images_for(network, 4)
        loaded = Engine.from_folder(tmp_path)
        assert torch.equal(loaded(images).logits, Engine.from_model(network)(images).logits)
    export(network, tmp_path, depth=2, dtype="bf16")
    loaded = Engine.from_folder(tmp_path)
    expected = Engine.from_model(truncate(network, 2).to(torch.bfloat16))(images.bfloat16())
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded(images.bfloat16()).logits, expected.logits)


def test_files_that_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        Engine.from_folder(tmp_path)
    network = network_of("mixer")
    network.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], whole + b"x", b"\xff" * 8 + whole[8:]):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match=str(weights)):
            Engine.from_folder(tmp_path)
    tensors = network.state_dict()
    save_file({**tensors, "head.bias": torch.zeros(11)}, weights)
    with pytest.raises(ValueError, match=r"'head.bias' has shape \[11\]"):
        Engine.from_folder(tmp_path)
    save_file({**tensors, "more": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match="tensors, and the configuration takes"):
        Engine.from_folder(tmp_path)
    torch.save(tensors, weights)  # a pickle
    with pytest.raises(ValueError, match=str(weights)):
        Engine.from_folder(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=str(weights)):
        Engine.from_folder(tmp_path)


def test_export_on_the_command_line(tmp_path, capsys):
    network = network_of("vit")
    network.save_pretrained(tmp_path / "saved")
    command = ["export", str(tmp_path / "saved"), str(tmp_path / "out"), "--depth", "3"]
    assert main(command) == 0
    assert "vit, fp32" in capsys.readouterr().out
    images = images_for(network, 2)
    got = Engine.from_folder(tmp_path / "out")(images).logits
    torch.testing.assert_close(got, Engine.from_model(network)(images, depth=3).logits)
    assert main([*command[:3], "--dtype", "fp8"]) == 2
    assert "dtype is 'fp8'" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert main([*command[:3], "--exits", "2"]) == 2
    assert "--exits goes with --aot" in capsys.readouterr().err
    with pytest.raises(ValueError, match="not plain: one alpha"):
        export(create("acn_vit_digits", wiring="feedforward"), tmp_path / "out")
    network.blocks.alpha = [0.5, 1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="not plain: one alpha"):
        export(network, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["closing mixer", "class token", "class token between"])
def test_compiled_segments(kind, tmp_path):
    network = network_of(kind)
    network.save_pretrained(tmp_path / "saved")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "saved"), str(out), "--aot", "--exits", "2"]) == 0
    plain, engine = Engine.from_folder(out), Engine.from_folder(out, compiled=True)
    assert (plain.compiled_segments, engine.compiled_segments) == (0, 2)
    for batch in (0, 1, 3, 40):
        images = images_for(network, batch)
        by_depth = network.logits_by_depth(images)
        threshold = clear_threshold(certainty(by_depth[[2]], "entropy"))
        for exits in ([2], [1, 2], []):
            expected = plain(images, exits, threshold)
            result = engine(images, exits, threshold)
            assert torch.equal(result.depth, expected.depth)
            torch.testing.assert_close(result.logits, expected.logits, rtol=1e-4, atol=1e-4)
    (out / "segment-0-2.pt2").write_bytes(b"no package")
    with pytest.raises(ValueError, match=r"segment-0-2\.pt2 does not load"):
        Engine.from_folder(out, compiled=True)
    (out / "segment-0-2.pt2").rename(out / "segment-0-9.pt2")
    with pytest.raises(ValueError, match="layers that a model of 4 lacks"):
        Engine.from_folder(out, compiled=True)
    export(network, out)
    with pytest.raises(ValueError, match="it holds no compiled segment"):
        Engine.from_folder(out, compiled=True)


def test_exports_run_without_python(tmp_path):
    program = os.environ.get("ACN_INFER", "build/cpp/acn_infer")
    if not Path(program).is_file():
        pytest.skip("acn_infer is not built (make cpp-test builds it)")
    network = network_of("closing mixer")
    images = images_for(network, 9)
    export(network, tmp_path)
    np.save(tmp_path / "in.npy", images.numpy())
    save_file({"images": images}, tmp_path / "in.safetensors")
    expected = Engine.from_folder(tmp_path)(images, EXITS, 1.5)
    for source, out in (("in.npy", "out"), ("in.safetensors", "out.safetensors")):
        options = ["--exits", "1,2,3", "--threshold", "1.5", "--out", tmp_path / out]
        subprocess.run([program, tmp_path, tmp_path / source, *options], check=True)
    file = load_file(tmp_path / "out.safetensors")
    arrays = {name: np.load(tmp_path / "out" / f"{name}.npy") for name in ("logits", "depth")}
    for name, tensor in file.items():
        assert np.array_equal(arrays[name], tensor.numpy())
    assert torch.equal(file["depth"], expected.depth)
    torch.testing.assert_close(file["logits"], expected.logits, rtol=1e-5, atol=1e-5)
