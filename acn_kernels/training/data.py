"""Labelled images to train on: CIFAR-10 in one file, a folder per class, or the built-in digits."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

DIGITS = "digits"
_TRAIN_NAMES, _TEST_NAMES = ("train",), ("test", "val")
_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


class Samples(Protocol):
    """Indexed by a tensor of positions [B]: images [B, C, S, S] fp32 and labels [B] int64."""

    def __len__(self) -> int: ...
    def __getitem__(self, positions: Tensor) -> tuple[Tensor, Tensor]: ...


class ImageData(NamedTuple):
    """Training and test samples, and the names of the classes."""

    train: Samples
    test: Samples
    classes: Sequence[str]


def load_images(source: str | os.PathLike, size: int, channels: int) -> ImageData:
    """The images of ``source``, ``size`` pixels square, RGB or (one channel) grey, in [-1, 1].

    Args:
        source: "digits", scikit-learn's; a folder (or the file itself) with one .npz of JPEG
            streams: ``{train,test}_jpeg`` uint8, all files end to end, ``{train,test}_offset``
            int64 [N+1], ``{train,test}_label`` [N] and ``classes``; or a folder with
            ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val``).

    Raises:
        FileNotFoundError: ``source`` is not there.
        ValueError: it is none of these, or damaged.
        ModuleNotFoundError: pillow (extra "train") or scikit-learn (extra "demo") is missing.
    """
    if channels not in (1, 3):
        raise ValueError(f"the model takes {channels} channels; images have 1 (grey) or 3 (RGB)")
    if source == DIGITS:
        return _digits(size, channels)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"data is {str(source)!r}, which is not there")
    archives = [path] if path.is_file() else sorted(path.glob("*.npz"))
    if len(archives) == 1:
        return _archive(archives[0], size, channels)
    if any((path / name).is_dir() for name in _TRAIN_NAMES):
        return _folders(path, size, channels)
    raise ValueError(f"data is {str(source)!r}; it takes one .npz file, or train/CLASS/ folders")


class Pixels:
    """Images that fit into memory, [N, C, S, S] uint8."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[positions] / 127.5 - 1, self.labels[positions]


class Files:
    """Images read when they are asked for."""

    def __init__(self, paths: list[Path], labels: Tensor, size: int, channels: int) -> None:
        self.paths, self.labels = paths, labels
        self.size, self.channels = size, channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        paths = [self.paths[i] for i in positions.tolist()]
        images = [_decoded(path, str(path), self.size, self.channels) for path in paths]
        return torch.stack(images) / 127.5 - 1, self.labels[positions]


def _decoded(file: Path | io.BytesIO, name: str, size: int, channels: int) -> Tensor:
    """[C, size, size] uint8: the square in the middle, scaled; an error calls it ``name``."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            if image.mode.startswith("I"):  # grey of 16 bits, which convert would clip
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            image = image.convert("RGB" if channels == 3 else "L")
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} cannot be read as an image") from error
    except Exception as error:  # decoders raise all sorts on damaged data
        raise ValueError(f"{name} cannot be read as an image: {error}") from error
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image))
    return pixels.view(size, size, channels).permute(2, 0, 1).contiguous()


def _digits(size: int, channels: int) -> ImageData:
    from acn_kernels.training.digits import load_digits

    if (size, channels) != (8, 1):
        raise ValueError(
            f"data is 'digits', images of 8 x 8 and 1 channel; the model takes {size} x {size} "
            f"and {channels}"
        )
    digits = load_digits()
    train, test = (_Standardised(*split) for split in (digits.train, digits.test))
    return ImageData(train, test, [str(digit) for digit in range(10)])


class _Standardised(Pixels):
    """Images that are numbers of their own scale already."""

    def __getitem__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[positions], self.labels[positions]


def _archive(path: Path, size: int, channels: int) -> ImageData:
    try:
        with _opened(path) as arrays:
            classes = [str(name) for name in _array(arrays, "classes", "USiu", "names")]
            parts = [
                _unpacked(arrays, name, len(classes), size, channels) for name in ("train", "test")
            ]
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} does not hold what it takes: {error}") from error
    return ImageData(*parts, classes)


def _opened(path: Path) -> np.lib.npyio.NpzFile:
    try:
        arrays = np.load(path, allow_pickle=False)
    except ValueError as error:  # numpy takes what it does not know for a pickle
        raise ValueError("it is no .npz archive") from error
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise ValueError("it holds one array; it takes a .npz archive")
    return arrays


def _array(arrays, name: str, kinds: str, what: str) -> np.ndarray:
    """The array [N] called ``name``, of one of numpy's ``kinds`` of numbers, in words ``what``."""
    try:
        array = arrays[name]
    except ValueError as error:  # objects, which only a pickle holds
        raise ValueError(f"{name} cannot be read; it takes {what} [N]: {error}") from error
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}; it takes {what} [N]")
    return array


def _unpacked(arrays, part: str, classes: int, size: int, channels: int) -> Pixels:
    stream = _array(arrays, f"{part}_jpeg", "u", "bytes").tobytes()
    labels = _array(arrays, f"{part}_label", "biu", "whole numbers")
    offset = _array(arrays, f"{part}_offset", "iu", "whole numbers").tolist()
    if len(offset) != len(labels) + 1 or offset[0] != 0 or offset[-1] != len(stream):
        raise ValueError(f"the {part} images, their offsets and labels do not go together")
    if not len(labels):
        raise ValueError(f"there are no {part} images")
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"{part}_label has labels that are none of its {classes} classes")
    images = torch.empty(len(labels), channels, size, size, dtype=torch.uint8)
    for i in range(len(labels)):
        file = io.BytesIO(stream[offset[i] : offset[i + 1]])
        images[i] = _decoded(file, f"image {i} of {part}_jpeg", size, channels)
    return Pixels(images, torch.from_numpy(labels.astype(np.int64)))


def _folders(path: Path, size: int, channels: int) -> ImageData:
    folders = [
        next((path / name for name in names if (path / name).is_dir()), None)
        for names in (_TRAIN_NAMES, _TEST_NAMES)
    ]
    if folders[1] is None:
        raise ValueError(f"{path} has no folder {' or '.join(_TEST_NAMES)} beside train")
    classes = sorted(entry.name for entry in folders[0].iterdir() if entry.is_dir())
    parts = []
    for folder in folders:
        found = list(_images_in(folder, classes))
        if not found:
            raise ValueError(f"{folder} has no images; it takes CLASS/*{'|'.join(_SUFFIXES)}")
        paths, labels = zip(*found, strict=True)
        parts.append(Files(list(paths), torch.tensor(labels), size, channels))
    return ImageData(*parts, classes)


def _images_in(folder: Path, classes: Sequence[str]) -> Iterator[tuple[Path, int]]:
    unknown = {entry.name for entry in folder.iterdir() if entry.is_dir()} - set(classes)
    if unknown:
        raise ValueError(f"{folder} has classes without training images: {', '.join(unknown)}")
    for label, name in enumerate(classes):
        for path in sorted((folder / name).glob("**/*")):
            if path.suffix.lower() in _SUFFIXES:
                yield path, label
