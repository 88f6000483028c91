"""Small ACN GPTs and BERTs, and the loops that they must equal."""

from __future__ import annotations

import pytest
import torch
from loops import attention, halves, normed, perceptron
from timm_models import define_torchvision_schemas
from torch import Tensor, nn

define_torchvision_schemas()  # transformers, too, looks at torchvision
pytest.importorskip("transformers")

from acn_kernels.models import huggingface  # noqa: E402

LAYERS, WORDS, WIDTH = 3, 40, 16
SIZES = {
    "vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
    "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32,
}  # fmt: skip
GPT_VARIANTS = {
    "acn": {},
    "residual": {"wiring": "residual"},
    "between": {"alpha": 0.37},
    "feedforward": {"wiring": "feedforward"},
    "sublayer": {"granularity": "sublayer", "learned_scales": True, "norm": "rmsnorm"},
    "injected": {"input_injection": True},
    "injected-between": {"input_injection": True, "alpha": 0.37},
    "hybrid": {"wiring": "hybrid"},
    "hybrid-sublayer": {"wiring": "hybrid", "granularity": "sublayer", "input_injection": True},
}


def spread(model: nn.Module) -> nn.Module:
    """The model, in inference mode, with weights under which tokens and layers differ."""
    for name, parameter in model.named_parameters():
        center = 0.8 if ("norm" in name and name.endswith("weight")) or "scales" in name else 0.0
        nn.init.normal_(parameter, center, 0.4)
    return model.eval()


def small_gpt(variant: str = "acn", **changes):
    """ACNGPTForCausalLM of LAYERS layers, float32; token 0 ends a text and 1 pads it."""
    fields = {**SIZES, **GPT_VARIANTS[variant], "bos_token_id": 2, "eos_token_id": None,
              "pad_token_id": 1, **changes}  # fmt: skip
    return spread(huggingface.ACNGPTForCausalLM(huggingface.ACNGPTConfig(**fields)))


def words(batch: int = 2, length: int = 6) -> Tensor:
    return torch.randint(2, WORDS, (batch, length))


def readable(padding: Tensor | None, length: int) -> Tensor:
    """[1 or B, T, T]: the tokens before each and itself, without padding [B, T]."""
    causal = torch.ones(length, length).tril().bool()[None]
    return causal if padding is None else causal & padding.bool()[:, None]


def gpt_sums(model, ids: Tensor, padding: Tensor | None = None) -> list[Tensor]:
    """[y_0, .. y_L] of an ACN GPT by the equations of its wiring, before the final norm."""
    config, base, length = model.config, model.transformer, ids.shape[1]
    mask = readable(padding, length)
    places = torch.arange(length)[None]
    if padding is not None:
        places = (padding.long().cumsum(-1) - 1).clamp(min=0)
    x = x_0 = base.wte.weight[ids] + base.wpe.weight[places]
    again = x_0 if config.input_injection else torch.zeros_like(x_0)
    sublayer = config.granularity == "sublayer"
    a = base.blocks.scales
    if a is None:
        a = torch.ones(1 + (2 if sublayer else 1) * len(base.blocks)).to(x)
    alpha = base.blocks.alpha
    y, at = a[0] * x, 0
    sums = [x if config.wiring == "feedforward" else y]
    for block in base.blocks:
        first, second = halves(block, mask)
        if config.wiring == "feedforward":
            x = second(first(x + again))
            sums.append(x)
            continue
        if config.wiring == "hybrid":
            h = first(x + again) + (1 - a[at]) * x
            if sublayer:
                at += 1
                y = y + a[at] * h
            x = second(h) + (1 - a[at]) * h
        elif sublayer:
            h = first(alpha * x + (1 - alpha) * y + again)
            at += 1
            y = y + a[at] * h
            x = second(alpha * h + (1 - alpha) * y)
        else:
            u = alpha * x + (1 - alpha) * y + again
            h = first(u)
            x = second(h + (1 - alpha) * u) + (1 - alpha) * h
        at += 1
        y = y + a[at] * x
        sums.append(y)
    return sums


def gpt_logits(model, ids: Tensor, padding: Tensor | None = None, depth: int = -1) -> Tensor:
    y = gpt_sums(model, ids, padding)[depth]
    return normed(y, model.transformer.blocks.norm) @ model.transformer.wte.weight.T


def small_bert(head: str = "ACNBertForMaskedLM", **changes):
    fields = {**SIZES, "type_vocab_size": 2, "num_labels": 3, **changes}
    return spread(getattr(huggingface, head)(huggingface.ACNBertConfig(**fields)))


def bert_sums(bert, ids: Tensor, padding: Tensor | None = None, kinds: Tensor | None = None):
    """[y_0, .. y_L]: ``y_k = x_k + alpha sum_{i<k} x_i`` of post-norm blocks; in the hybrid
    ``sum_{i<=k} a_i x_i``."""
    e, alpha = bert.embeddings, bert.blocks.alpha
    a = bert.blocks.scales
    kinds = torch.zeros_like(ids) if kinds is None else kinds
    x = e.word.weight[ids] + e.token_type.weight[kinds] + e.position.weight[: ids.shape[1]]
    x = normed(x, e.norm)
    mask = None if padding is None else padding.bool()[:, None].expand(-1, ids.shape[1], -1)
    before, sums = torch.zeros_like(x), [x if a is None else a[0] * x]
    feedforward = bert.config.wiring == "feedforward"
    for i, block in enumerate(bert.blocks):
        alpha = alpha if a is None else a[i]
        rest = 0.0 if feedforward else 1 - alpha
        before = before if feedforward else before + alpha * x
        h = normed(attention(block.attn, x, mask) + rest * x, block.norm1)
        if bert.config.granularity == "sublayer":
            before = before + alpha * h
        x = normed(perceptron(block.mlp, h) + rest * h, block.norm2)
        sums.append((x if a is None else a[i + 1] * x) + before)
    return sums
