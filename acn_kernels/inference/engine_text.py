"""ACN BERT classifiers in the C++ engine: which it runs, and what it takes of them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from acn_kernels.blocks import Attention, Mlp, PostNormBlock, PostNormStack
from acn_kernels.inference.engine_modules import obstacle_in_modules, obstacle_in_tensors
from acn_kernels.models.base import CONFIG_FILE, read_configuration

_EPS = 1e-12


def is_bert(model: nn.Module) -> bool:
    """Whether ``model`` is an ACN BERT, with whatever head."""
    return getattr(getattr(model, "config", None), "model_type", None) == "acn_bert"


def text_batch(
    input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
) -> Tensor:
    """What the engine takes of a batch of texts: [B, 2, T] int64, words and mask, or [B, 3, T] with
    ``token_type_ids``.

    Args:
        input_ids: [B, T]. attention_mask: [B, T], 0 where a token is padding; None: nowhere.
        token_type_ids: [B, T]; None: 0 everywhere.

    Raises:
        ValueError: naming the argument, its value and what is accepted.
    """
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; it takes [batch, tokens]")
    rows = {"input_ids": input_ids, "attention_mask": attention_mask}
    if attention_mask is None:
        rows["attention_mask"] = torch.ones_like(input_ids)
    if token_type_ids is not None:
        rows["token_type_ids"] = token_type_ids
    for name, row in rows.items():
        if row.shape != input_ids.shape or row.is_floating_point():
            raise ValueError(
                f"{name} is {row.dtype} of shape {tuple(row.shape)}; it takes whole numbers of "
                f"shape {tuple(input_ids.shape)}"
            )
    return torch.stack([row.long() for row in rows.values()], 1)


def text_config(model: nn.Module) -> dict:
    """The configuration of ``model``, an ACN BERT, as the engine reads it."""
    config = model.config
    return {
        "family": "bert",
        "wiring": "acn",
        "alpha": model.blocks.alpha,
        "width": config.hidden_size,
        "depth": len(model.blocks),
        "classes": model.classifier.out_features,
        "heads": config.num_attention_heads,
        "mlp_width": config.intermediate_size,
        "vocabulary": config.vocab_size,
        "positions": config.max_position_embeddings,
        "token_kinds": config.type_vocab_size,
    }


def saved_bert(folder: str | os.PathLike) -> nn.Module | None:
    """The ACN BERT that ``save_pretrained`` wrote into ``folder``; None where it holds another
    family.

    Raises:
        FileNotFoundError: there is no configuration.
        ValueError: it is none, or the BERT has another head than that for classification.
    """
    path = Path(folder) / CONFIG_FILE
    config = read_configuration(path)
    if config.get("model_type") != "acn_bert":
        return None
    from acn_kernels.models.huggingface import ACNBertForSequenceClassification as Classifier

    heads = config.get("architectures")
    if heads != [Classifier.__name__]:
        raise ValueError(f"{path} names {heads}; it takes {Classifier.__name__}")
    return Classifier.from_pretrained(folder)


def obstacle_in_texts(model: nn.Module) -> str | None:
    """Why the engine does not run ``model``, an ACN BERT; None where it does."""
    from acn_kernels.models import huggingface
    from acn_kernels.models.huggingface.bert import ACNBertEmbeddings

    if type(model) is not huggingface.ACNBertForSequenceClassification:
        return f"the model is a {type(model).__name__}; it takes the one for classification"
    known = {
        huggingface.ACNBertForSequenceClassification, huggingface.ACNBertModel, ACNBertEmbeddings,
        Attention, Mlp, PostNormBlock, PostNormStack,
        nn.Dropout, nn.Embedding, nn.GELU, nn.LayerNorm, nn.Linear,
    }  # fmt: skip
    obstacle = _obstacle_in_options(model) or obstacle_in_modules(model, known, _EPS)
    return obstacle or obstacle_in_tensors(model.state_dict(keep_vars=True).items())


def _obstacle_in_options(model: nn.Module) -> str | None:
    """The same of its options, modules and tensors aside."""
    stack = model.blocks
    blocks = type(stack) is PostNormStack and stack.granularity == "block"
    if not blocks or not isinstance(stack.alpha, float):
        return "the wiring is not plain: one alpha, blocks as layers"
    if stack.norm is not None or stack.rows is not None:
        return "the stack has a norm or rows of its own"
    return None
