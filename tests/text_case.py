"""An ACN BERT that classifies padded texts, and what the engine has to make of them."""

from __future__ import annotations

import torch
from engine_case import certainty
from language_models import WORDS, bert_sums, small_bert

LAYERS, EXITS = 4, [1, 3]
CLASSIFIER = "ACNBertForSequenceClassification"


def classifier(**changes):
    return small_bert(CLASSIFIER, num_hidden_layers=LAYERS, num_labels=5, **changes)


def texts(batch: int, length: int = 9) -> dict[str, torch.Tensor]:
    """Texts of 1 to ``length`` words, padded."""
    lengths = torch.randint(1, length + 1, (batch, 1))
    return {
        "input_ids": torch.randint(WORDS, (batch, length)),
        "attention_mask": (torch.arange(length) < lengths).long(),
        "token_type_ids": torch.randint(2, (batch, length)),
    }


def logits_by_depth(model, batch) -> torch.Tensor:
    """[L+1, B, classes], by the equation of every sub-network and the head by hand."""
    logits = []
    for y in bert_sums(model.bert, *batch.values()):
        pooled = torch.tanh(y[:, 0] @ model.bert.pooler.weight.T + model.bert.pooler.bias)
        logits.append(pooled @ model.classifier.weight.T + model.classifier.bias)
    return torch.stack(logits).detach()


def first_exits(by_depth, criterion, threshold) -> torch.Tensor:
    depths = torch.full((by_depth.shape[1],), LAYERS)
    for k in reversed(EXITS):
        value = certainty(by_depth[k], criterion)
        depths[value < threshold if criterion == "entropy" else value > threshold] = k
    return depths


def check(result, by_depth, depths, device: str = "cpu") -> None:
    """A result of the engine or of EarlyExit: who left where, and with which logits."""
    logits, depth = result[:2]
    assert logits.device.type == depth.device.type == device
    assert torch.equal(depth.cpu(), depths)
    expected = by_depth[depths, torch.arange(len(depths))]
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-4, atol=1e-4)


def check_bf16(logits, truth) -> None:
    """All logits as a whole: of few of them one may lie far off, where a norm makes its rows out of
    small differences."""
    assert logits.dtype == torch.bfloat16
    assert (logits.cpu().double() - truth).norm() < 0.06 * truth.norm()


def without_engine(model):
    model.blocks.backend = "torch"
    return model
