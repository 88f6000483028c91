"""What users do with a model works once it is converted: their loops, caches, checkpoints."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from residual_case import B, T, loop, post_norm_network, pre_norm_network
from residual_hf import import_transformers
from residual_models import build
from tolerances import assert_close
from torch import nn
from torch.utils.checkpoint import checkpoint

import acn_kernels as acn

FAMILIES = ["timm-vit", "timm-mixer", "torch-pre-norm", "torch-post-norm", "hf-bert", "hf-gpt2",
            "hf-llama"]  # fmt: skip
CAUSAL = ["hf-gpt2", "hf-llama"]


def gradients(model, output):
    model.zero_grad()
    output.square().mean().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("alpha", [0.37, 1.0])
@pytest.mark.parametrize("name", CAUSAL)
def test_generation_with_a_cache_is_generation_without(name, alpha):
    _, model, _ = build(name)
    twin = acn.convert(model, alpha).eval()
    ids = torch.randint(5, 50, (B, T))
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids),
               "eos_token_id": None, "pad_token_id": 0,
               "output_logits": True, "return_dict_in_generate": True}  # fmt: skip
    cached = twin.generate(ids, use_cache=True, **options)
    plain = twin.generate(ids, use_cache=False, **options)
    assert torch.equal(cached.sequences, plain.sequences)
    for one, other in zip(cached.logits, plain.logits, strict=True):
        assert_close(one, other, torch.float32)
    with torch.no_grad():  # and both are what the whole sequence gives at once
        logits = twin(cached.sequences, use_cache=False).logits
    assert torch.equal(logits[:, T - 1 : -1].argmax(-1), cached.sequences[:, T:])


@pytest.mark.parametrize("alpha", [0.0, 0.37, 1.0])
@pytest.mark.parametrize("name", ["hf-bert", "hf-distilbert", "hf-gpt2", "hf-llama", "hf-vit"])
def test_hidden_states_are_what_the_sub_networks_put_out(name, alpha):
    case, model, inputs = build(name)
    twin = acn.convert(model, alpha)
    twin(**inputs, output_hidden_states=True)  # installs hooks; the second call finds them there
    found = twin(**inputs, output_hidden_states=True).hidden_states
    x = case.start(model, **inputs)
    network = post_norm_network if case.post else pre_norm_network
    sums = network(case.blocks(model, x, **inputs), x, alpha, "block")
    # Language models replace the last one by the normed output.
    for one, true in zip(found[:-1], sums[:-1], strict=True):
        assert_close(one, true)
    if name != "hf-vit":
        sums = [case.finish(model, y) for y in sums] if case.post else sums
    assert len(found) == len(sums)


def test_hooks_for_hidden_states_from_before_the_conversion():
    case, model, inputs = build("hf-bert")
    model(**inputs, output_hidden_states=True)
    twin = acn.convert(model, 1.0)
    found = twin(**inputs, output_hidden_states=True).hidden_states
    assert_close(found[-1], loop(case, model, inputs, 1.0, "block"))


def test_attentions():
    import_transformers()
    _, model, inputs = build("hf-bert")
    model.set_attn_implementation("eager")
    twin = acn.convert(model, 0.37)
    found = twin(**inputs, output_attentions=True).attentions
    assert [tuple(a.shape) for a in found] == [(B, 2, T, T)] * 3


@pytest.mark.parametrize("alpha", [0.0, 0.37, 1.0])
@pytest.mark.parametrize("name", ["hf-bert", "hf-gpt2", "hf-llama", "hf-vit", "timm-vit",
                                  "timm-mixer"])  # fmt: skip
def test_gradient_checkpointing(name, alpha):
    case, model, inputs = build(name)
    twin = acn.convert(model, alpha).train()
    truth = case.output(twin(**inputs))
    expected = gradients(twin, truth)
    if name.startswith("timm"):
        twin.set_grad_checkpointing()
    else:
        twin.activation_checkpointing_enable()
    calls = []
    first = next(m for m in twin.modules() if hasattr(m, "_acn_chain"))
    norm = next(m for m in first.modules() if "Norm" in type(m).__name__)
    norm.register_forward_hook(lambda *_: calls.append(1))
    output = case.output(twin(**inputs))
    assert_close(output, truth)
    got = gradients(twin, output)
    assert len(calls) == 2, "the block is run again for the backward pass"
    assert got.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for key, gradient in got.items():
        assert_close(gradient, expected[key], among=scale, name=key)


@pytest.mark.parametrize("name", ["hf-bert", "hf-gpt2"])
def test_offloaded_checkpointing(name):
    """Then the tensor that flows comes back as another one when a block is run again."""
    case, model, inputs = build(name)
    twin = acn.convert(model, 0.37).train()
    expected = gradients(twin, case.output(twin(**inputs)))

    def offloaded(function, *args):
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
            return checkpoint(function, *args, use_reentrant=False)

    twin._set_gradient_checkpointing(True, offloaded)
    got = gradients(twin, case.output(twin(**inputs)))
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for key, gradient in expected.items():
        assert_close(got[key], gradient, among=scale, name=key)


def test_reentrant_checkpointing_is_refused():
    """It would train the blocks on a part of their gradient."""
    _, model, inputs = build("hf-bert")
    twin = acn.convert(model, 1.0).train()
    twin.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        twin(**inputs).last_hidden_state.sum().backward()


@pytest.mark.parametrize("alpha", [0.37, 1.0])
def test_the_other_loops_of_timm(alpha):
    """forward_intermediates and masks go block by block, past the stack."""
    case, model, inputs = build("timm-vit")
    twin = acn.convert(model, alpha)
    final, found = twin.forward_intermediates(inputs["x"], return_prefix_tokens=True, norm=True)
    x = case.start(model, **inputs)
    sums = pre_norm_network(case.blocks(model, x, **inputs), x, alpha, "block")
    for (image, prefix), y in zip(found, sums[1:], strict=True):
        y = model.norm(y)
        assert_close(prefix, y[:, :1])
        assert_close(image.flatten(2).transpose(1, 2), y[:, 1:])
    assert_close(final, model.norm(sums[-1]))
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    assert_close(
        twin.forward_features(inputs["x"], attn_mask=mask), twin.forward_features(inputs["x"])
    )
    twin.prune_intermediate_layers([0, 1])
    assert_close(twin.forward_features(inputs["x"]), model.norm(sums[2]))


def test_timms_blocks_are_fused():
    twin = acn.convert(build("timm-vit", torch.float32)[1], 1.0)
    parts = acn.explain(twin.blocks, torch.randn(2, 5, 16))
    assert "fork" in str(parts) and "join" in str(parts)
    assert not [part for part in parts if part.path == "module"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_failed_call_leaves_nothing_behind(name):
    case, model, inputs = build(name)
    twin = acn.convert(model, 0.37)
    truth = case.output(twin(**inputs))
    last = [m for m in twin.modules() if hasattr(m, "_acn_chain")][-1]

    def fail(*_):
        raise KeyboardInterrupt

    handle = last.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        twin(**inputs)
    handle.remove()
    assert torch.equal(case.output(twin(**inputs)), truth)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_inside_a_call(name):
    case, model, inputs = build(name)
    twin = acn.convert(model, 0.37)
    truth = case.output(twin(**inputs))
    other = build(name)[2]
    other_truth = case.output(twin(**other))
    inner = []
    middle = [m for m in twin.modules() if hasattr(m, "_acn_chain")][1]

    def nested(*_):
        if not inner:
            inner.append(None)
            inner[0] = case.output(twin(**other))

    handle = middle.register_forward_pre_hook(nested)
    assert torch.equal(case.output(twin(**inputs)), truth)
    assert torch.equal(inner[0], other_truth)
    handle.remove()


@pytest.mark.parametrize("name", FAMILIES)
def test_threads(name):
    case, model, _ = build(name)
    twin = acn.convert(model, 0.37).eval()
    batches = [build(name)[2] for _ in range(4)]
    with torch.no_grad():
        truths = [case.output(twin(**inputs)) for inputs in batches]
    wrong = []

    def work(i):
        with torch.no_grad():
            for _ in range(5):
                if not torch.equal(case.output(twin(**batches[i])), truths[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", ["torch-pre-norm", "torch-post-norm", "hf-bert", "hf-gpt2"])
def test_a_lost_state_is_noticed(name):
    """A hook that replaces a block's output: at alpha = 0 that is fine, else it would be wrong."""
    case, model, inputs = build(name)
    twin = acn.convert(model, 0.0)
    block = next(m for m in twin.modules() if hasattr(m, "_acn_chain"))
    block.register_forward_hook(lambda module, args, out: out * 1)
    assert_close(case.output(twin(**inputs)), case.output(model(**inputs)))
    acn.convert(twin, 0.5, inplace=True)
    with pytest.raises(RuntimeError, match="not the output of the block before it"):
        twin(**inputs)


@pytest.mark.parametrize("name", ["hf-bert", "hf-gpt2", "timm-vit"])
def test_nothing_outlives_the_call(name):
    """What rides on a tensor goes with it: no cycle keeps activations until a collection."""
    case, model, inputs = build(name, torch.bfloat16)
    twin = acn.convert(model, 0.37)
    seen = []
    for module in twin.modules():
        if hasattr(module, "_acn_chain"):
            module.register_forward_hook(lambda module, args, out: seen.append(weakref.ref(out)))
    gc.collect()
    gc.disable()
    try:
        case.output(twin(**inputs)).float().sum().backward()
        assert seen
        assert not [ref for ref in seen if ref() is not None]
    finally:
        gc.enable()


def test_one_encoder_behind_another():
    """The second starts its own sum, though what it gets is the output of the first."""
    case, model, inputs = build("torch-pre-norm")
    model.norm = None
    twin = acn.convert(nn.ModuleList([model, model]), 1.0)[0]
    other = acn.convert(model, 1.0)
    truth = inputs["src"]
    for _ in range(2):
        blocks = case.blocks(model, truth, src=truth)
        truth = pre_norm_network(blocks, truth, 1.0, "block")[-1]
    assert_close(other(twin(inputs["src"])), truth)
    assert_close(twin(twin(inputs["src"])), truth)


class Subclass(nn.TransformerEncoder):
    """With the same forward."""


@pytest.mark.parametrize("cls", [nn.TransformerEncoder, Subclass])
@pytest.mark.parametrize("name", ["torch-post-norm-padded", "torch-pre-norm-padded"])
def test_padded_inference_of_torchs_encoder(name, cls):
    """At alpha = 0 torch may take its nested path; above 0, where there is none, it must not."""
    case, model, inputs = build(name, torch.float32)
    model.eval().__class__ = cls
    twin = acn.convert(model, 0.0)
    with torch.no_grad():
        assert torch.equal(twin(**inputs), model(**inputs))
        for alpha in (0.37, 1.0):
            acn.convert(twin, alpha, inplace=True)
            assert_close(twin(**inputs), loop(case, model, inputs, alpha, "block"), roundings=4)
        acn.convert(twin, 0.0, inplace=True)
        assert torch.equal(twin(**inputs), model(**inputs))


COMPILED = ["timm-vit", "torch-post-norm", "hf-gpt2"]  # a few seconds each


@pytest.mark.parametrize(
    "name", [*COMPILED, *(pytest.param(name, marks=pytest.mark.slow)
                          for name in FAMILIES if name not in COMPILED)],
)  # fmt: skip
def test_compiled_without_a_break_and_annealed_without_recompiling(name):
    case, model, inputs = build(name, torch.float32)
    twin = acn.convert(model, 0.2).eval()
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    annealing = acn.anneal(compiled, lambda progress: 0.2 + progress / 2)
    for k, progress in enumerate((0.0, 0.3, 0.7, 1.0)):
        alpha = annealing.step(progress)
        with torch._dynamo.config.patch(error_on_recompile=k > 0):
            got = case.output(compiled(**inputs))
        assert_close(got, loop(case, model, inputs, alpha, "block"), roundings=20)
    for alpha in (0.0, 1.0):
        acn.convert(twin, alpha, inplace=True)
        truth = loop(case, model, inputs, alpha, "block")
        assert_close(case.output(compiled(**inputs)), truth, roundings=20)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm-vit", "torch-pre-norm", "torch-post-norm"])
def test_blocks_compiled_one_by_one(name):
    case, model, inputs = build(name)
    twin = acn.convert(model, 0.37)
    truth = case.output(twin(**inputs))
    expected = gradients(twin, truth)
    torch._dynamo.reset()
    for block in twin.blocks if name == "timm-vit" else twin.layers:
        block.compile(fullgraph=True, backend="aot_eager")
    output = case.output(twin(**inputs))
    assert_close(output, truth)
    for key, gradient in gradients(twin, output).items():
        assert_close(gradient, expected[key], among=1.0, name=key)
    torch._dynamo.reset()
