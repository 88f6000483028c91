"""Images on disk, in the two forms that ``acn-kernels train`` reads."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch

from acn_kernels.cli import main
from acn_kernels.models import Model
from acn_kernels.training.data import load_images

Image = pytest.importorskip("PIL.Image", reason="pillow decodes the images")
CLASSES = ["cat", "dog"]


def picture(size: int, kind: str = "PNG") -> bytes:
    pixels = np.frombuffer(random.randbytes(size * size * 3), np.uint8).reshape(size, size, 3)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def pixels_of(data: bytes) -> torch.Tensor:
    """[3, S, S] in [-1, 1], as the image library reads it."""
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float64)
    return torch.from_numpy(image.transpose(2, 0, 1) / 127.5 - 1).float()


def archive(path, counts=(5, 3), **changes):
    arrays, files = {"classes": np.array(CLASSES)}, {}
    for part, count in zip(("train", "test"), counts, strict=True):
        files[part] = [picture(6, "JPEG") for _ in range(count)]
        arrays[f"{part}_jpeg"] = np.frombuffer(b"".join(files[part]), np.uint8)
        arrays[f"{part}_offset"] = np.cumsum([0, *map(len, files[part])])
        arrays[f"{part}_label"] = np.array([random.randrange(2) for _ in range(count)], np.uint8)
    arrays |= changes
    np.savez(path, **arrays)
    return files, arrays


def test_one_archive_of_jpeg_streams(tmp_path):
    files, arrays = archive(tmp_path / "images.npz")
    for source in (tmp_path, tmp_path / "images.npz"):
        data = load_images(source, 6, 3)
        assert data.classes == CLASSES and (len(data.train), len(data.test)) == (5, 3)
        for part, samples in (("train", data.train), ("test", data.test)):
            positions = torch.tensor([2, 0])
            images, labels = samples[positions]
            expected = torch.stack([pixels_of(files[part][i]) for i in (2, 0)])
            torch.testing.assert_close(images, expected)
            assert labels.tolist() == arrays[f"{part}_label"][[2, 0]].tolist()
            assert labels.dtype == torch.int64


def test_a_folder_for_each_class(tmp_path):
    files = {}
    for part in ("train", "val"):
        for label, name in enumerate(CLASSES):
            for i in range(2):
                data = picture(8)
                path = tmp_path / part / name / "deeper" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                files[part, 2 * label + i] = data
            (tmp_path / part / name / "notes.txt").write_text("no image")
    data = load_images(tmp_path, 8, 3)
    assert data.classes == CLASSES
    for part, samples in (("train", data.train), ("val", data.test)):
        images, labels = samples[torch.arange(4)]
        assert labels.tolist() == [0, 0, 1, 1]
        torch.testing.assert_close(
            images, torch.stack([pixels_of(files[part, i]) for i in range(4)])
        )
    assert load_images(tmp_path, 4, 1).train[torch.tensor([1])][0].shape == (1, 1, 4, 4)


def test_the_middle_square_is_taken(tmp_path):
    """Left third red, middle white, right third blue: what remains is white."""
    row = [(255, 0, 0)] * 4 + [(255, 255, 255)] * 4 + [(0, 0, 255)] * 4
    for part in ("train", "test"):
        folder = tmp_path / part / "flag"
        folder.mkdir(parents=True)
        Image.fromarray(np.array([row] * 4, np.uint8)).save(folder / "0.png")
    assert bool((load_images(tmp_path, 4, 3).train[torch.tensor([0])][0] == 1).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_label": np.array([0] * 4)}, "do not go together"),
        ({"train_label": np.array([7] * 5)}, "none of its 2 classes"),
        ({"train_offset": np.array([0, 1, 2, 3, 4, 5])}, "do not go together"),
        ({"test_jpeg": np.zeros(0, np.uint8), "test_offset": np.zeros(1, int),
          "test_label": np.zeros(0, int)}, "there are no test images"),
        ({"train_jpeg": np.zeros(50, np.uint8), "train_offset": np.arange(0, 60, 10)},
         "image 0 of train_jpeg cannot be read"),
        ({"train_offset": np.linspace(0, 50, 6)}, r"train_offset is float64 \[6\]; it takes whole"),
        ({"test_label": np.arange(3, dtype=np.float32) + 0.5}, "test_label is float32"),
        ({"train_label": np.array(["cat"] * 5)}, "train_label is <U3"),
        ({"train_label": np.zeros((5, 1), int)}, r"train_label is int64 \[5, 1\]"),
        ({"classes": np.array(CLASSES, object)}, "classes cannot be read; it takes names"),
        ({"classes": np.array("cat")}, r"classes is <U3 \[\]"),
    ],
)  # fmt: skip
def test_damaged_archives(change, message, tmp_path):
    archive(tmp_path / "images.npz", **change)
    with pytest.raises(ValueError, match=message) as raised:
        load_images(tmp_path, 6, 3)
    assert str(tmp_path / "images.npz") in str(raised.value)


def test_an_image_that_cannot_be_read_is_named_in_one_line(tmp_path, capsys):
    pytest.importorskip("accelerate", reason="the recipe stands on accelerate")
    for part in ("train", "test"):
        (tmp_path / part / "cat").mkdir(parents=True)
        (tmp_path / part / "cat" / "0.png").write_bytes(b"")
    command = ["train", "--data", str(tmp_path), "--model", "acn_vit_digits", "--depth", "1",
               "--epochs", "1", "--batch-size", "1", "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(command) == 2
    image = tmp_path / "train" / "cat" / "0.png"
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f"acn-kernels train: {image} cannot be read as an image")


def test_files_that_are_no_archives(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("no archive")
    for name, message in (("one.npy", "holds one array"), ("text.npz", r"is no \.npz archive")):
        with pytest.raises(ValueError, match=message):
            load_images(tmp_path / name, 6, 3)


def test_foreign_folders(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_images(tmp_path / "missing", 6, 3)
    with pytest.raises(ValueError, match=r"it takes one \.npz file"):
        load_images(tmp_path, 6, 3)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="no folder test or val"):
        load_images(tmp_path, 6, 3)
    (tmp_path / "test" / "cow").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "0.png").write_bytes(picture(6))
    with pytest.raises(ValueError, match="without training images: cow"):
        load_images(tmp_path, 6, 3)
    (tmp_path / "test" / "cow").rmdir()
    with pytest.raises(ValueError, match="has no images"):
        load_images(tmp_path, 6, 3)
    (tmp_path / "half.npz").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(ValueError, match="does not hold"):
        load_images(tmp_path, 6, 3)


def test_a_model_trains_on_files(tmp_path):
    """From the command line to the log, files read by processes of their own."""
    pytest.importorskip("accelerate", reason="the recipe stands on accelerate")
    for part, count in (("train", 5), ("test", 3)):
        for name in CLASSES:
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                (tmp_path / part / name / f"{i}.png").write_bytes(picture(9))
    command = ["train", "--data", str(tmp_path), "--model", "acn_vit_digits", "--depth", "1",
               "--epochs", "2", "--batch-size", "4", "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(command) == 0
    assert len((tmp_path / "out" / "log.csv").read_text().splitlines()) == 3
    assert Model.from_pretrained(tmp_path / "out" / "model").config.classes == 2


def test_grey_of_sixteen_bits(tmp_path):
    pytest.importorskip("accelerate", reason="the same extra brings it")
    ramp = np.linspace(0, 65535, 36).astype(np.uint16).reshape(6, 6)
    for part in ("train", "test"):
        folder = tmp_path / part / "cat"
        folder.mkdir(parents=True)
        Image.fromarray(ramp).save(folder / "ramp.png")
    for channels in (1, 3):
        image = load_images(tmp_path, 6, channels).train[torch.tensor([0])][0]
        truth = torch.from_numpy(ramp / 32767.5 - 1).float().expand(channels, 6, 6)
        assert (image[0] - truth).abs().max() < 2 / 255
