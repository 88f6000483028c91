"""Sentences as token ids, in the place of images: SST-2, and digits read as sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from acn_kernels.training.datasets import sst2
from acn_kernels.training.digits import Split
from benchmarks.paper.minilm import minilm_folder
from benchmarks.paper.spec import Data

PADDING, _UNKNOWN, _FIRST = 0, 1, 2
Encode = Callable[[Sequence[str]], Tensor]


def sentences(data: Data, folder: str | None) -> tuple[Split, Split]:
    """Token ids [N, data.tokens] int64 and labels, to train on and to test.

    Raises:
        ValueError, FileNotFoundError: the data folder is not named, or lacks the files; MiniLM's
            vocabulary is asked for and not installed.
    """
    train, test = (
        (texts[:count], labels[:count])
        for (texts, labels), count in (
            (sst2(folder, "train"), data.train),
            (sst2(folder, data.held_out), data.test),
        )
    )
    encode = word_ids(train[0], data) if data.words else _piece_ids(data.tokens)
    return Split(encode(train[0]), train[1]), Split(encode(test[0]), test[1])


def word_ids(known: Sequence[str], data: Data) -> Encode:
    """The ``data.words`` - 2 most frequent words of the ``known`` sentences have ids of their own,
    from 2 on; all others share 1, and 0 is padding."""
    counts = Counter(word for sentence in known for word in sentence.split())
    kept = counts.most_common(data.words - _FIRST)
    ids = {word: i for i, (word, _) in enumerate(kept, _FIRST)}

    def encode(sentences: Sequence[str]) -> Tensor:
        rows = torch.full((len(sentences), data.tokens), PADDING)
        for row, sentence in zip(rows, sentences, strict=True):
            found = [ids.get(word, _UNKNOWN) for word in sentence.split()[: data.tokens]]
            row[: len(found)] = torch.tensor(found)
        return rows

    return encode


def _piece_ids(length: int) -> Encode:
    """Pieces of words as MiniLM knows them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)

    def encode(sentences: Sequence[str]) -> Tensor:
        return torch.tensor([found.ids for found in tokenizer.encode_batch(list(sentences))])

    return encode


def lengths(ids: Tensor) -> Tensor:
    """[N]: how many of the tokens of each sentence [N, T] are no padding."""
    return (ids != PADDING).sum(1)


def word_dropout(ids: Tensor, share: float = 0.2) -> Tensor:
    """Sentences [N, T] with a ``share`` of their tokens, never the first, made padding by chance
    (Iyyer et al., ACL 2015, section 3)."""
    left_out = torch.rand(ids.shape, device=ids.device) < share
    left_out[:, :1] = False
    return ids.masked_fill(left_out, PADDING)


def read_as_sentence(digits: Split) -> Split:
    """The pixels of [N, 1, 8, 8] bytes one after the other, [N, 64]: 17 grey levels, from id 1."""
    return Split((digits.images.flatten(1).float() * (16 / 255)).round().long() + 1, digits.labels)
