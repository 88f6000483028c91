"""ACN BERT: its equation at every alpha, BERT itself at alpha 0, its heads, and saving."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from language_models import LAYERS, SIZES, bert_sums, small_bert, words
from loops import normed
from tolerances import assert_close
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
)

from acn_kernels.models import create, huggingface

PADDING = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
VARIANTS = {
    "acn": {},
    "residual": {"wiring": "residual"},
    "between": {"alpha": 0.37},
    "feedforward": {"wiring": "feedforward"},
    "between-sublayer": {"alpha": 0.37, "granularity": "sublayer"},
    "hybrid": {"wiring": "hybrid"},
}
HEADS = ("ACNBertForMaskedLM", "ACNBertForSequenceClassification")


def inputs() -> dict:
    kinds = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]])
    return {"input_ids": words(), "attention_mask": PADDING, "token_type_ids": kinds}


def sums(model, batch: dict) -> list[torch.Tensor]:
    names = ("input_ids", "attention_mask", "token_type_ids")
    return bert_sums(model.bert, *(batch[name] for name in names))


def logits(model, y: torch.Tensor) -> torch.Tensor:
    """The head by hand."""
    if isinstance(model, huggingface.ACNBertForMaskedLM):
        head = model.head
        h = y @ head.dense.weight.T + head.dense.bias
        h = normed(0.5 * h * (1 + torch.erf(h / 2**0.5)), head.norm)
        return h @ model.bert.embeddings.word.weight.T + head.decoder.bias
    pooled = torch.tanh(y[:, 0] @ model.bert.pooler.weight.T + model.bert.pooler.bias)
    return pooled @ model.classifier.weight.T + model.classifier.bias


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("head", HEADS)
def test_loss_and_gradients_are_those_of_the_equation(head, variant):
    model, batch = small_bert(head, **VARIANTS[variant]).double(), inputs()
    shape = (2,) if head == HEADS[1] else (2, 6)
    labels = torch.randint(0, 3, shape)
    if head == HEADS[0]:
        labels[:, ::2] = -100  # not masked, not predicted
    out, truth = model(**batch, labels=labels), logits(model, sums(model, batch)[-1])
    assert_close(out.logits, truth)
    loss = F.cross_entropy(truth.flatten(0, -2), labels.flatten())
    assert_close(out.loss, loss, torch.float32)
    names, parameters = zip(*model.named_parameters(), strict=True)
    incoming = torch.randn_like(truth)
    got = torch.autograd.grad(out.logits, parameters, incoming)
    expected = torch.autograd.grad(truth, parameters, incoming)
    for name, one, true in zip(names, got, expected, strict=True):
        assert_close(one, true, name=name, among=float(incoming.abs().sum()))
    with torch.no_grad():
        assert_close(model(**batch).logits, truth)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sub_networks(variant):
    model, batch = small_bert(**VARIANTS[variant]).double(), inputs()
    states = model(**batch, output_hidden_states=True).hidden_states
    assert len(states) == LAYERS + 1
    for k, y in enumerate(sums(model, batch)):
        assert_close(states[k], y)
        assert_close(model.truncate(k)(**batch).logits, logits(model, y))
    (middle,) = model.forward_intermediates(**batch, indices=[1])
    assert_close(middle, states[1])
    assert_close(model.forward_head(model.forward_features(**batch)), model(**batch).logits)


def of_bert(state: dict) -> dict:
    """Weights of transformers' BERT under the names here; query, key and value lie together."""
    names = {
        "embeddings.word_embeddings": "embeddings.word", "embeddings.LayerNorm": "embeddings.norm",
        "embeddings.position_embeddings": "embeddings.position",
        "embeddings.token_type_embeddings": "embeddings.token_type",
        "pooler.dense": "pooler", "encoder.layer": "blocks",
        "attention.output.dense": "attn.proj", "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2", "output.LayerNorm": "norm2",
        "cls.predictions.transform.dense": "head.dense",
        "cls.predictions.transform.LayerNorm": "head.norm",
        "cls.predictions.decoder": "head.decoder",
    }  # fmt: skip
    ours = {}
    for key, value in state.items():
        if key == "cls.predictions.bias":
            continue  # tied to the decoder's
        if ".self.query." in key:
            parts = [state[key.replace("query", part)] for part in ("query", "key", "value")]
            key, value = key.replace("attention.self.query", "attn.qkv"), torch.cat(parts)
        elif ".self." in key:
            continue
        for old, new in names.items():
            key = key.replace(old, new)
        ours[key] = value
    return ours


@pytest.mark.parametrize(
    ("head", "theirs"),
    [(HEADS[0], BertForMaskedLM), (HEADS[1], BertForSequenceClassification)],
)
def test_alpha_0_is_bert(head, theirs):
    bert = theirs(BertConfig(**SIZES, num_labels=3)).eval()
    for parameter in bert.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)
    model, batch = small_bert(head, alpha=0.0), inputs()
    model.load_state_dict(of_bert(bert.state_dict()))
    ours, truth = (m(**batch, output_hidden_states=True) for m in (model, bert))
    assert_close(ours.logits, truth.logits.double(), roundings=10)
    kept = PADDING.bool()
    for one, true in zip(ours.hidden_states, truth.hidden_states, strict=True):
        assert_close(one[kept], true[kept].double(), roundings=10)
    model.train(), bert.train()
    for module in (*model.modules(), *bert.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "heads"):
            module.dropout = 0.0
    got, true = (m(**batch).logits for m in (model, bert))
    assert_close(got, true.double(), roundings=10)
    model.alpha = 1.0
    assert (model(**batch).logits - true).abs().max() > 0.01


def test_dropout_in_training_alone():
    model, batch = small_bert(hidden_dropout_prob=0.0), inputs()
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    model.train()  # what is left is that of the attention weights
    assert not torch.equal(model(**batch).logits, model(**batch).logits)
    model = small_bert(attention_probs_dropout_prob=0.0).train()
    assert not torch.equal(model(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize(
    ("problem", "labels", "classes"),
    [
        ("regression", torch.randn(2), 1),
        ("multi_label_classification", torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]), 3),
    ],
)
def test_other_problems(problem, labels, classes):
    model, batch = small_bert(HEADS[1], num_labels=classes, problem_type=problem), inputs()
    out = model(**batch, labels=labels)
    if problem == "regression":
        expected = (out.logits[:, 0] - labels).square().mean()
    else:
        expected = F.binary_cross_entropy(out.logits.sigmoid(), labels)
    torch.testing.assert_close(out.loss, expected)


@pytest.mark.parametrize("depth", [LAYERS, 2])
@pytest.mark.parametrize(
    ("head", "auto"),
    [(HEADS[0], AutoModelForMaskedLM), (HEADS[1], AutoModelForSequenceClassification)],
)
def test_saved_and_reloaded(head, auto, depth, tmp_path):
    model, batch = small_bert(head).truncate(depth), inputs()
    model.alpha = 0.61
    model.save_pretrained(tmp_path / "one")
    loaded = auto.from_pretrained(tmp_path / "one")
    assert type(loaded) is type(model) and loaded.alpha == 0.61
    assert loaded.config.num_hidden_layers == len(loaded.blocks) == depth
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    loaded.save_pretrained(tmp_path / "two")
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    base = AutoModel.from_pretrained(tmp_path / "one")
    assert_close(base(**batch).last_hidden_state, model.forward_features(**batch).double())
    if head == HEADS[0]:
        assert loaded.head.decoder.weight is loaded.bert.embeddings.word.weight
        # A new head on pre-trained layers: what fine-tuning starts from.
        tuned = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one", num_labels=5)
        assert tuned(**batch).logits.shape == (2, 5)
        assert torch.equal(tuned.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)


def test_a_network_that_would_be_loaded_as_another_is_not_saved(tmp_path):
    model = small_bert()
    model.blocks.granularity = "sublayer"
    with pytest.raises(ValueError, match=r"blocks\.granularity is 'sublayer'; .* as 'block'"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_checkpointing_changes_no_gradient():
    model, batch = small_bert(alpha=0.37).double(), inputs()
    parameters, calls = list(model.parameters()), []
    truth = torch.autograd.grad(model(**batch, labels=batch["input_ids"]).loss, parameters)
    model.activation_checkpointing_enable()
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    got = torch.autograd.grad(model(**batch, labels=batch["input_ids"]).loss, parameters)
    assert len(calls) == 2
    for one, true in zip(got, truth, strict=True):
        assert_close(one, true)


def test_size_of_the_preset():
    with torch.device("meta"):
        model = create("acn_bert_base")
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert count == pytest.approx(109.5, rel=0.005)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small_bert(wiring="dense"), "wiring is 'dense'"),
        (lambda: small_bert(alpha=-0.1), "alpha is -0.1"),
        (lambda: small_bert()(), "exactly one of input_ids"),
        (lambda: small_bert()(words(), output_attentions=True), "output_attentions is True"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
