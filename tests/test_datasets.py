"""Readers of public data, on small files of the same formats made here."""

from __future__ import annotations

import gzip
import io
import struct

import numpy as np
import pytest
import torch

from acn_kernels.training import datasets
from acn_kernels.training.digits import Split


def jpeg(colour: tuple[int, int, int]) -> np.ndarray:
    image = pytest.importorskip("PIL.Image").new("RGB", (32, 32), colour)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return np.frombuffer(buffer.getvalue(), dtype=np.uint8)


def test_cifar10_decodes_the_chosen_images(tmp_path):
    colours = [(200, 30, 90), (10, 120, 250), (77, 77, 77)]
    files = [jpeg(colour) for colour in colours]
    offset = np.cumsum([0, *map(len, files)])
    label = np.array([3, 9, 0], dtype=np.uint8)
    arrays = {"jpeg": np.concatenate(files), "offset": offset, "label": label}
    np.savez(
        tmp_path / "cifar10_jpeg.npz",
        **{f"{part}_{key}": value for part in datasets.PARTS for key, value in arrays.items()},
    )
    images, labels = datasets.cifar10(tmp_path, "test", [2, 0])
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.uint8
    assert labels.tolist() == [0, 3]
    for image, colour in zip(images, (colours[2], colours[0]), strict=True):
        difference = image.int() - torch.tensor(colour)[:, None, None]
        assert difference.abs().max() <= 4  # what JPEG does to a single colour
    assert len(datasets.cifar10(tmp_path, "train").labels) == 3


def test_cifar100_reads_fine_labels(tmp_path):
    (tmp_path / "cifar-100-binary").mkdir()
    pixels = np.random.randint(0, 256, (4, 3072), dtype=np.uint8)
    heads = np.array([[1, 70], [2, 99], [3, 0], [4, 5]], dtype=np.uint8)
    np.concatenate([heads, pixels], 1).tofile(tmp_path / "cifar-100-binary" / "train.bin")
    images, labels = datasets.cifar100(tmp_path, "train", [1, 3])
    assert labels.tolist() == [99, 5]
    # A record holds the red plane, then green, then blue, each row by row.
    assert images[0, 1, 2, 5] == pixels[1, 1024 + 2 * 32 + 5]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("home", [".", "fashion-mnist"])
def test_fashion_mnist(tmp_path, monkeypatch, home):
    (tmp_path / home).mkdir(exist_ok=True)
    images = np.random.randint(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = np.array([9, 0, 3, 1, 1], dtype=np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        file = tmp_path / home / f"t10k-{name}-ubyte.gz"
        file.write_bytes(gzip.compress(idx(array)))
    got = datasets.fashion_mnist(tmp_path, "test")
    assert torch.equal(got.images, torch.from_numpy(images)[:, None])
    assert got.labels.tolist() == labels.tolist()
    monkeypatch.setattr(datasets, "_DEBIAN_FASHION", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="train-images"):
        datasets.fashion_mnist(tmp_path, "train")


def test_sst2(tmp_path):
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "dev.tsv").write_text("a tab\tinside\t1\nbad\t0\n")
    sentences, labels = datasets.sst2(tmp_path, "dev")
    assert sentences == ["a tab\tinside", "bad"] and labels.tolist() == [1, 0]
    (tmp_path / "sst2" / "train.tsv").write_text("no label\n")
    with pytest.raises(ValueError, match=r"train\.tsv is not of lines"):
        datasets.sst2(tmp_path, "train")


def test_standardised_by_the_training_part():
    train, test = (
        Split(torch.randint(256, (n, 3, 4, 4), dtype=torch.uint8), torch.zeros(n).long())
        for n in (50, 7)
    )
    scaled, other = datasets.standardised(train, test)
    pixels = train.images.double() / 255
    mean, deviation = pixels.mean((0, 2, 3)), pixels.var((0, 2, 3), correction=0).sqrt()
    truth = (test.images.double() / 255 - mean[:, None, None]) / deviation[:, None, None]
    torch.testing.assert_close(other.images.double(), truth, rtol=1e-5, atol=1e-5)
    assert scaled.images.mean((0, 2, 3)).abs().max() < 1e-5


def test_classes_are_relabelled_in_their_order():
    data = Split(torch.arange(6), torch.tensor([2, 0, 1, 2, 0, 2]))
    images, labels = datasets.of_classes(data, [2, 0], samples=2)
    assert images.tolist() == [0, 1, 3, 4] and labels.tolist() == [0, 1, 0, 1]


def test_where_the_data_is(tmp_path, monkeypatch):
    monkeypatch.delenv(datasets.DATA_DIR, raising=False)
    with pytest.raises(ValueError, match="--data-dir or the variable ACN_DATA_DIR"):
        datasets.data_folder()
    monkeypatch.setenv(datasets.DATA_DIR, str(tmp_path))
    assert datasets.data_folder() == tmp_path
    with pytest.raises(FileNotFoundError, match="nowhere"):
        datasets.data_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="cifar10_jpeg"):
        datasets.cifar10(tmp_path, "train")
    with pytest.raises(ValueError, match="part is 'dev'"):
        datasets.cifar10(tmp_path, "dev")
