"""ACN BERT and ACN GPT as Hugging Face models; importing this registers them with the Auto classes.

Needs transformers (the extra "transformers"); ``import acn_kernels`` alone does not.
"""

try:
    import transformers
except ImportError as error:
    raise ImportError(
        "acn_kernels.models.huggingface needs transformers: pip install 'acn-kernels[transformers]'"
    ) from error

from acn_kernels.models.huggingface.base import ACNPreTrainedModel
from acn_kernels.models.huggingface.bert import (
    ACNBertConfig,
    ACNBertForMaskedLM,
    ACNBertForSequenceClassification,
    ACNBertModel,
    ACNBertWithHead,
)
from acn_kernels.models.huggingface.gpt import ACNGPTConfig, ACNGPTForCausalLM, ACNGPTModel

for _config, _classes in (
    (ACNGPTConfig, {"AutoModel": ACNGPTModel, "AutoModelForCausalLM": ACNGPTForCausalLM}),
    (
        ACNBertConfig,
        {
            "AutoModel": ACNBertModel,
            "AutoModelForMaskedLM": ACNBertForMaskedLM,
            "AutoModelForSequenceClassification": ACNBertForSequenceClassification,
        },
    ),
):
    transformers.AutoConfig.register(_config.model_type, _config, exist_ok=True)
    for _auto, _class in _classes.items():
        getattr(transformers, _auto).register(_config, _class, exist_ok=True)

__all__ = [
    "ACNBertConfig",
    "ACNBertForMaskedLM",
    "ACNBertForSequenceClassification",
    "ACNBertModel",
    "ACNBertWithHead",
    "ACNGPTConfig",
    "ACNGPTForCausalLM",
    "ACNGPTModel",
    "ACNPreTrainedModel",
]
