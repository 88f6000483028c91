"""torch.compile(fullgraph=True) on every model: the same logits, loss and gradients."""

from __future__ import annotations

import pytest
import torch
from language_models import small_bert, small_gpt, words
from tolerances import assert_close
from torch import nn

from acn_kernels.models import create

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Not here: graphs would write the poison into every allocation of their own."""


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


def image_model(name: str, **changes):
    model = create(name, depth=2, **changes)
    nn.init.normal_(model.head.weight)
    return model, {"images": torch.randn(3, 1, 8, 8)}


def text_model(model, **more):
    return model, {"input_ids": words(length=9), **more}


MODELS = {
    "vit": lambda: image_model("acn_vit_digits"),
    "vit-class-token": lambda: image_model("acn_vit_digits", pool="first"),
    "mixer": lambda: image_model("acn_mixer_digits", closing=True),
    "gpt": lambda: text_model(small_gpt()),
    "gpt-9x512": lambda: text_model(small_gpt("sublayer")),
    "gpt-injected": lambda: text_model(small_gpt("injected-between")),
    "gpt-hybrid": lambda: text_model(small_gpt("hybrid-sublayer")),
    "gpt-padded": lambda: text_model(
        small_gpt(), attention_mask=torch.tensor([[0] * 3 + [1] * 6, [1] * 9])
    ),
    "bert": lambda: text_model(small_bert()),
    "bert-between": lambda: text_model(
        small_bert(alpha=0.37), attention_mask=torch.tensor([[1] * 6 + [0] * 3, [1] * 9])
    ),
    "bert-classifier": lambda: text_model(small_bert("ACNBertForSequenceClassification")),
}


def logits(network, batch):
    out = network(**batch)
    return out if isinstance(out, torch.Tensor) else out.logits


@pytest.mark.parametrize("name", MODELS)
def test_one_graph_forward_and_backward(name):
    model, batch = MODELS[name]()
    model.eval()
    # Position embeddings beyond the input and a token type have no gradient to compare.
    compiled = torch.compile(model, fullgraph=True)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def results(network):
        y = logits(network, batch)
        incoming = torch.linspace(-1, 1, y.numel()).view_as(y)
        return [y, *torch.autograd.grad(y, parameters, incoming, allow_unused=True)]

    truth = results(model)
    for got, expected in zip(results(compiled), truth, strict=True):
        if expected is None:
            assert got is None or not got.any()
        else:
            among = float(truth[0].abs().max())  # a bias before a norm has no gradient but noise
            assert_close(got, expected.double(), roundings=100, among=among)
    with torch.no_grad():
        assert_close(logits(compiled, batch), truth[0].double(), roundings=100)


@pytest.mark.parametrize("variant", ["acn", "hybrid-sublayer"])
def test_one_graph_for_a_token_after_a_cache(variant):
    model, ids = small_gpt(variant), words(length=6)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        cache, truth = model(ids[:, :5]).past_key_values, model(ids).logits
        assert_close(
            compiled(ids[:, 5:], past_key_values=cache).logits, truth[:, 5:].double(), roundings=100
        )
