"""Layers known to add their own input: inside an ACN they would bring the short connection back."""

from __future__ import annotations

from torch import nn

# Qualified by the package that defines them: a user's own `Block` is not timm's.
_KNOWN: dict[str, frozenset[str]] = {
    "torch": frozenset({"TransformerEncoderLayer", "TransformerDecoderLayer"}),
    "torchvision": frozenset({"EncoderBlock", "BasicBlock", "Bottleneck", "CNBlock"}),
    "timm": frozenset({
        "Block", "ResPostBlock", "LayerScaleBlock", "ParallelScalingBlock", "ParallelThingsBlock",
        "DiffParallelScalingBlock", "MixerBlock", "ResBlock", "SpatialGatingBlock", "EvaBlock",
        "EvaBlockPostNorm", "BasicBlock", "Bottleneck", "ConvNeXtBlock", "SwinTransformerBlock",
    }),
    "transformers": frozenset({
        "BertLayer", "RobertaLayer", "TransformerBlock", "ViTLayer", "DeiTLayer", "BeitLayer",
        "GPT2Block", "GPTNeoBlock", "GPTNeoXLayer", "OPTDecoderLayer", "BloomBlock",
        "LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer",
        "GemmaDecoderLayer", "Gemma2DecoderLayer", "PhiDecoderLayer", "T5Block", "BartEncoderLayer",
        "BartDecoderLayer", "ElectraLayer", "AlbertLayer", "DebertaV2Layer", "Dinov2Layer",
        "CLIPEncoderLayer", "SiglipEncoderLayer", "ModernBertEncoderLayer",
    }),
}  # fmt: skip


def residual_class(layer: nn.Module) -> type | None:
    """The class of ``layer``, or one it inherits from, that is known to add its own input."""
    for cls in type(layer).__mro__:
        if cls.__name__ in _KNOWN.get(cls.__module__.partition(".")[0], ()):
            return cls
    return None


def refuse_residual(i: int, layer: nn.Module) -> None:
    """Raises ValueError where ``layers[i]`` is known to add its own input, unless it was converted:
    what lists ``entry_norms`` leaves that to the stack."""
    cls = residual_class(layer)
    if cls is not None and not hasattr(layer, "entry_norms"):
        raise ValueError(
            f"layers[{i}] is a {cls.__module__}.{cls.__name__}, which adds its own input to its "
            "output; an ACN layer returns f(u) alone: convert the model with acn_kernels.convert, "
            "use acn_kernels.blocks, or a block without the short connection"
        )
