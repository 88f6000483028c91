"""Real public data from a folder that the user names: CIFAR, Fashion-MNIST, SST-2.

Every reader takes ``folder``; None is the variable ACN_DATA_DIR. Images come as bytes, [N, C, H, W]
uint8, as they are in the file; :func:`standardised` makes of them what a network trains on.
"""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from acn_kernels.training.digits import Split

DATA_DIR = "ACN_DATA_DIR"
PARTS = ("train", "test")
_CIFAR100_RECORD = 2 + 3 * 32 * 32  # coarse label, fine label, pixels
# Where Debian's package dataset-fashion-mnist puts its files.
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


def data_folder(folder: str | os.PathLike | None = None) -> Path:
    """``folder``, or what ACN_DATA_DIR names.

    Raises:
        ValueError: neither is given.
        FileNotFoundError: there is no such folder.
    """
    named = folder or os.environ.get(DATA_DIR)
    if not named:
        raise ValueError(f"no data folder: name one by --data-dir or the variable {DATA_DIR}")
    if not Path(named).is_dir():
        raise FileNotFoundError(f"the data folder {named} is not there")
    return Path(named)


def cifar10(
    folder: str | os.PathLike | None, part: str, indices: Sequence[int] | None = None
) -> Split:
    """CIFAR-10 from ``cifar10_jpeg.npz``: images [N, 3, 32, 32] uint8, labels [N] int64.

    The file holds JPEG copies of the images (quality about 75), so accuracies sit slightly below
    those on the originals.

    Args:
        part: "train" (50,000 images) or "test" (10,000).
        indices: which of them, in that order; only these are decoded. None is all.

    Raises:
        FileNotFoundError: the folder does not hold the file.
        ModuleNotFoundError: pillow is not installed; ``pip install acn-kernels[paper]``.
    """
    from PIL import Image

    _check_part(part)
    with np.load(_existing(data_folder(folder) / "cifar10_jpeg.npz"), allow_pickle=False) as file:
        jpeg, offset, label = (file[f"{part}_{key}"] for key in ("jpeg", "offset", "label"))
    chosen = _chosen(indices, len(label))
    images = np.empty((len(chosen), 32, 32, 3), dtype=np.uint8)
    for place, i in enumerate(chosen):
        with Image.open(io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes())) as image:
            images[place] = np.asarray(image.convert("RGB"))
    return _split(images.transpose(0, 3, 1, 2), label[chosen])


def cifar100(
    folder: str | os.PathLike | None, part: str, indices: Sequence[int] | None = None
) -> Split:
    """CIFAR-100 from ``cifar-100-binary/{train,test}.bin``, with the 100 fine labels."""
    _check_part(part)
    file = _existing(data_folder(folder) / "cifar-100-binary" / f"{part}.bin")
    records = np.fromfile(file, dtype=np.uint8)
    if not len(records) or len(records) % _CIFAR100_RECORD:
        raise ValueError(f"{file} holds {len(records)} bytes; a record has {_CIFAR100_RECORD}")
    records = records.reshape(-1, _CIFAR100_RECORD)
    records = records[_chosen(indices, len(records))]
    return _split(records[:, 2:].reshape(-1, 3, 32, 32), records[:, 1])


def fashion_mnist(
    folder: str | os.PathLike | None, part: str, indices: Sequence[int] | None = None
) -> Split:
    """Fashion-MNIST from its gzip IDX files: images [N, 1, 28, 28] uint8, labels [N] int64.

    They lie in ``fashion-mnist`` inside the folder, in the folder itself, or where Debian's
    package dataset-fashion-mnist puts them.
    """
    _check_part(part)
    prefix, folder = {"train": "train", "test": "t10k"}[part], data_folder(folder)
    names = [f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"]
    homes = [folder / "fashion-mnist", folder, _DEBIAN_FASHION]
    home = next((home for home in homes if (home / names[0]).is_file()), homes[0])
    images, labels = (_idx(_existing(home / name)) for name in names)
    chosen = _chosen(indices, len(labels))
    return _split(images[chosen][:, None], labels[chosen])


def sst2(folder: str | os.PathLike | None, part: str) -> tuple[list[str], Tensor]:
    """SST-2 sentences and labels [N] int64 (1 is positive) of "train", "dev" or "test"."""
    if part not in ("train", "dev", "test"):
        raise ValueError(f"part is {part!r}; it takes 'train', 'dev' or 'test'")
    file = _existing(data_folder(folder) / "sst2" / f"{part}.tsv")
    rows = [line.rsplit("\t", 1) for line in file.read_text(encoding="utf-8").splitlines() if line]
    if any(len(row) != 2 or row[1] not in ("0", "1") for row in rows):
        raise ValueError(f"{file} is not of lines `sentence<TAB>label` with label 0 or 1")
    return [sentence for sentence, _ in rows], torch.tensor([int(label) for _, label in rows])


def standardised(train: Split, *others: Split) -> list[Split]:
    """All parts in fp32, each channel with the mean 0 and deviation 1 that it has in ``train``."""
    mean, deviation = channel_statistics(train.images)
    return [
        Split(((part.images.float() / 255) - mean) / deviation, part.labels)
        for part in (train, *others)
    ]


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [C, 1, 1] of pixels in [0, 1], for images [N, C, H, W] uint8."""
    # From a histogram of the 256 values: no wide copy of a whole data set.
    counts = torch.stack([
        torch.bincount(channel.flatten().int(), minlength=256)
        for channel in images.unbind(1)
    ]).double()  # fmt: skip
    shares = counts / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (shares * values).sum(1)
    deviation = ((shares * values.square()).sum(1) - mean.square()).clamp(min=1e-12).sqrt()
    return mean.float()[:, None, None], deviation.float()[:, None, None]


def of_classes(data: Split, classes: Sequence[int], samples: int | None = None) -> Split:
    """The samples of these classes, labelled 0, 1, ... in the order of ``classes``.

    Args:
        samples: of each class at most, the first ones; None is all.
    """
    rows = [(data.labels == label).nonzero().flatten()[:samples] for label in classes]
    kept = torch.cat(rows).sort().values
    places = torch.full((int(data.labels.max()) + 1,), -1)
    places[torch.tensor(classes)] = torch.arange(len(classes))
    return Split(data.images[kept], places[data.labels[kept]])


def _idx(file: Path) -> np.ndarray:
    """An array of bytes in the IDX format: two zeros, type 8, rank, big-endian sizes, data."""
    with gzip.open(file) as stream:
        data = stream.read()
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{file} is no IDX file of bytes")
    shape = np.frombuffer(data, dtype=">u4", count=data[3], offset=4)
    values = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * data[3])
    if values.size != shape.prod():
        raise ValueError(f"{file} holds {values.size} values; its header says {shape.tolist()}")
    return values.reshape(shape)


def _check_part(part: str) -> None:
    if part not in PARTS:
        raise ValueError(f"part is {part!r}; it takes 'train' or 'test'")


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise FileNotFoundError(f"the data folder lacks {file}")
    return file


def _chosen(indices: Sequence[int] | None, count: int) -> np.ndarray:
    return np.arange(count) if indices is None else np.asarray(indices, dtype=np.int64)


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(
        torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64))
    )
