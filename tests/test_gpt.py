"""ACN GPT: its equation, its loss and gradients, and what a Hugging Face model can do."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from language_models import GPT_VARIANTS, LAYERS, gpt_logits, gpt_sums, small_gpt, words
from loops import normed
from tolerances import assert_close
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from acn_kernels.models import create, huggingface

PADDING = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize("variant", GPT_VARIANTS)
def test_loss_and_gradients_are_those_of_the_equation(variant):
    model, ids = small_gpt(variant).double(), words()
    names, parameters = zip(*model.named_parameters(), strict=True)
    out = model(ids, labels=ids)
    truth = gpt_logits(model, ids)
    assert_close(out.logits, truth)
    loss = F.cross_entropy(truth[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    # Hugging Face computes the loss in float32.
    assert_close(out.loss, loss, torch.float32)
    incoming = torch.randn_like(truth)
    got = torch.autograd.grad(out.logits, parameters, incoming)
    expected = torch.autograd.grad(truth, parameters, incoming)
    for name, one, true in zip(names, got, expected, strict=True):
        assert_close(one, true, name=name, among=float(incoming.abs().sum()))
    with torch.no_grad():
        assert_close(model(ids).logits, truth)


@pytest.mark.parametrize("variant", GPT_VARIANTS)
def test_hidden_states_are_what_the_head_reads_of_every_sub_network(variant):
    model, ids = small_gpt(variant).double(), words()
    out = model(ids, output_hidden_states=True)
    norm = model.blocks.norm
    assert len(out.hidden_states) == LAYERS + 1
    for k, y in enumerate(gpt_sums(model, ids)):
        assert_close(out.hidden_states[k], normed(y, norm))
        assert_close(model.truncate(k)(ids).logits, gpt_logits(model, ids, depth=k))
    assert_close(model.lm_head(out.hidden_states[-1]), out.logits)
    last, first = model.forward_intermediates(ids, indices=[-1, 0])
    assert_close(last, model.forward_features(ids))
    assert_close(first, out.hidden_states[0])


def with_gpt_2(**dropout):
    """The residual twin, and transformers' GPT-2 of the same weights (its Linear layers are stored
    transposed)."""
    ours = small_gpt("residual", **dropout)
    theirs = GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=16, n_layer=LAYERS, n_head=2, n_inner=24, n_positions=32,
                   activation_function="gelu", **dropout)
    ).eval()  # fmt: skip
    names = {"ln_1": "norm1", "ln_2": "norm2", "attn.c_attn": "attn.qkv",
             "attn.c_proj": "attn.proj", "mlp.c_fc": "mlp.fc1",
             "mlp.c_proj": "mlp.fc2"}  # fmt: skip
    state = {}
    for key, value in theirs.state_dict().items():
        for old, new in names.items():
            if f".{old}." in key:
                key = key.replace(f".{old}.", f".{new}.")
                value = value.T if value.dim() == 2 else value
        state[key.replace(".h.", ".blocks.").replace("ln_f", "blocks.norm")] = value
    ours.load_state_dict(state)
    return ours, theirs


def test_the_residual_twin_is_gpt_2():
    ours, theirs = with_gpt_2()
    ids = words()
    for mask in (None, PADDING):
        got, truth = (m(ids, attention_mask=mask).logits for m in (ours, theirs))
        kept = slice(None) if mask is None else mask.bool()
        assert_close(got[kept], truth[kept].double(), roundings=10)


@pytest.mark.parametrize("name", ["embd_pdrop", "resid_pdrop", "attn_pdrop"])
def test_dropout_drops_what_gpt_2_drops(name, seed):
    rates = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0, name: 0.4}
    ours, theirs = with_gpt_2(**rates)
    ids, logits = words(), []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(seed)  # the same draws, in the same order
        logits.append(model(ids).logits)
    assert_close(logits[0], logits[1].double(), roundings=10)
    assert not torch.allclose(logits[0], ours.eval()(ids).logits, atol=1e-3)
    assert_close(ours(ids).logits, theirs.eval()(ids).logits.double(), roundings=10)


@pytest.mark.parametrize("variant", ["acn", "between", "hybrid-sublayer"])
def test_padding_on_the_left_changes_nothing(variant):
    model, ids = small_gpt(variant).double(), words()
    places = (PADDING.cumsum(-1) - 1).clamp(min=0)
    got = model(ids, attention_mask=PADDING, position_ids=places).logits
    truth = gpt_logits(model, ids, PADDING)
    assert_close(got[PADDING.bool()], truth[PADDING.bool()])
    assert_close(got[:1, 2:], gpt_logits(model, ids[:1, 2:]))


@pytest.mark.parametrize("variant", GPT_VARIANTS)
def test_token_by_token_with_a_cache_equals_all_at_once(variant):
    model, ids = small_gpt(variant).double(), words(length=7)
    truth, cache, got = gpt_logits(model, ids), None, []
    for start, stop in ((0, 3), (3, 4), (4, 6), (6, 7)):  # also several tokens after a cache
        out = model(ids[:, start:stop], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        got.append(out.logits)
    assert cache.get_seq_length() == 7
    assert_close(torch.cat(got, 1), truth)


def greedy(model, ids, padding, count):
    """Greedy decoding by the loop alone."""
    for _ in range(count):
        ids = torch.cat([ids, gpt_logits(model, ids, padding)[:, -1:].argmax(-1)], 1)
        padding = None if padding is None else F.pad(padding, (0, 1), value=1)
    return ids


@pytest.mark.parametrize("padding", [None, PADDING], ids=["", "padded"])
@pytest.mark.parametrize("variant", GPT_VARIANTS)
def test_generation_with_and_without_the_cache(variant, padding):
    model, ids = small_gpt(variant).double(), words()
    truth = greedy(model, ids, padding, 6)
    for use_cache in (True, False):
        got = model.generate(ids, attention_mask=padding, max_new_tokens=6, do_sample=False,
                             use_cache=use_cache)  # fmt: skip
        assert torch.equal(got, truth), f"use_cache={use_cache}"


@pytest.mark.parametrize("variant", ["acn", "hybrid-sublayer"])
def test_beams_move_with_their_cache(variant):
    model, ids = small_gpt(variant).double(), words()
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "attention_mask": PADDING}
    with_cache, without = (model.generate(ids, use_cache=c, **options) for c in (True, False))
    assert torch.equal(with_cache, without)


def test_a_static_cache_too():
    model, ids = small_gpt(), words()
    got = model.generate(ids, max_new_tokens=6, do_sample=False, cache_implementation="static",
                         disable_compile=True)  # fmt: skip
    assert torch.equal(got, model.generate(ids, max_new_tokens=6, do_sample=False))


def test_logits_of_the_last_tokens_alone():
    model, ids = small_gpt(), words()
    every = model(ids).logits
    assert_close(model(ids, logits_to_keep=2).logits, every[:, -2:].double())
    assert_close(model(ids, logits_to_keep=torch.tensor([1, 4])).logits, every[:, [1, 4]].double())


@pytest.mark.parametrize("variant", ["acn", "between", "hybrid-sublayer", "feedforward"])
@pytest.mark.parametrize("depth", [LAYERS, 2])
def test_saved_and_reloaded(variant, depth, tmp_path):
    model, ids = small_gpt(variant), words()
    if depth < LAYERS:
        model = model.truncate(depth)
    if variant == "between":
        model.alpha = 0.61
    model.save_pretrained(tmp_path / "one")
    for auto in (huggingface.ACNGPTForCausalLM, AutoModelForCausalLM):
        loaded = auto.from_pretrained(tmp_path / "one")
        assert isinstance(loaded, huggingface.ACNGPTForCausalLM) and not loaded.training
        assert loaded.config.num_hidden_layers == len(loaded.blocks) == depth
        assert loaded.alpha == model.alpha
        assert loaded.lm_head.weight is loaded.transformer.wte.weight
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        got, truth = (m.generate(ids, max_new_tokens=4, do_sample=False) for m in (loaded, model))
        assert torch.equal(got, truth)
    loaded.save_pretrained(tmp_path / "two")
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    base = AutoModel.from_pretrained(tmp_path / "one")
    assert_close(base(ids).last_hidden_state, model.forward_features(ids).double())
    assert AutoConfig.from_pretrained(tmp_path / "one").model_type == "acn_gpt"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("granularity", "sublayer"),
        ("include_input", False),
        ("scales", torch.full((LAYERS + 1,), 0.5)),
        ("scales", nn.Parameter(torch.ones(LAYERS + 1))),
    ],
)
def test_a_network_that_would_be_loaded_as_another_is_not_saved(name, value, tmp_path):
    model = small_gpt("acn")
    setattr(model.transformer.blocks, name, value)
    for each in (model, model.transformer):
        with pytest.raises(ValueError, match=rf"blocks\.{name} .* loaded as"):
            each.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_alphas_of_a_cut_model_are_those_of_its_layers(tmp_path):
    model, ids = small_gpt("acn"), words()
    model.alpha = [0.5] * (LAYERS - 1) + [1.0]
    model.save_pretrained(tmp_path / "whole")
    short = huggingface.ACNGPTForCausalLM.from_pretrained(tmp_path / "whole").truncate(2)
    short.save_pretrained(tmp_path / "cut")
    loaded = huggingface.ACNGPTForCausalLM.from_pretrained(tmp_path / "cut")
    assert torch.equal(loaded(ids).logits, model.truncate(2)(ids).logits)


def test_a_cut_model_shares_the_weights_and_leaves_the_whole_alone():
    model, ids = small_gpt("hybrid"), words()
    whole = model(ids).logits
    short = model.truncate(1)
    assert len(short.blocks) == short.config.num_hidden_layers == 1
    assert short.transformer.config is short.config
    assert short.lm_head is model.lm_head and short.blocks[0] is model.blocks[0]
    short.alpha = 1.0
    short.config.num_hidden_layers = 0
    assert len(model.blocks) == model.config.num_hidden_layers == LAYERS
    assert torch.equal(model(ids).logits, whole)


def test_twins_have_the_same_weights():
    ids = words()
    models = [small_gpt(wiring) for wiring in ("acn", "residual", "feedforward")]
    assert len({tuple(model.state_dict()) for model in models}) == 1
    for model in models:
        model.load_state_dict(models[0].state_dict())
    assert [model.alpha for model in models[:2]] == [1, 0]
    assert len({model(ids).logits.sum().item() for model in models}) == 3


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("variant", ["acn", "between", "hybrid-sublayer"])
def test_checkpointing_changes_no_gradient(variant):
    model, ids = small_gpt(variant).double().train(), words()
    parameters, calls = list(model.parameters()), []
    truth = torch.autograd.grad(model(ids, labels=ids).loss, parameters)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    got = torch.autograd.grad(model(ids, labels=ids).loss, parameters)
    assert len(calls) == 2  # once more in the backward pass
    for one, true in zip(got, truth, strict=True):
        assert_close(one, true)
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="past_key_values is given"):
        model(ids, past_key_values=cache)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def test_checkpointing_of_some_blocks_or_elsewhere_is_refused():
    model = small_gpt()
    if not hasattr(model, "activation_checkpointing_enable"):
        pytest.skip("transformers has neither option yet")
    for options, said in (
        ({"every_n_layers": 2}, "every_n_layers is 2"),
        ({"offload": True}, "offl"),
    ):
        with pytest.raises(ValueError, match=said):
            model.activation_checkpointing_enable(**options)
        assert not model.is_gradient_checkpointing


def test_in_training_no_cache_is_kept():
    model, ids = small_gpt(), words()
    assert model(ids).past_key_values is not None
    assert model.train()(ids).past_key_values is None


@pytest.mark.parametrize("tokens", [40, 44])
def test_embeddings_resized(tokens):
    model = small_gpt()
    model.resize_token_embeddings(tokens)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model(words()).logits.shape[-1] == tokens


def test_importing_the_package_imports_no_transformers():
    code = "import sys, acn_kernels, acn_kernels.cli; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_transformers_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import acn_kernels as acn\n"
        "try: acn.models.create('acn_gpt_small')\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "acn-kernels[transformers]" in done.stdout


@pytest.mark.parametrize(("name", "millions"), [("acn_gpt_small", 124.4), ("acn_gpt_9x512", 54.6)])
def test_preset_sizes(name, millions):
    with torch.device("meta"):
        model = create(name)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.005)


def test_a_preset_changed():
    model = create("acn_gpt_9x512", num_hidden_layers=2, vocab_size=64, wiring="hybrid")
    assert len(model.blocks) == 2 and model.config.hidden_size == 512
    assert isinstance(model.blocks.norm, nn.RMSNorm) and len(model.blocks.scales) == 5
    assert torch.equal(model.blocks.scales, torch.ones(5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create("acn_gpt_small", layers=3), "has no layers"),
        (lambda: small_gpt(norm="batchnorm"), "norm is 'batchnorm'"),
        (lambda: small_gpt(wiring="dense"), "wiring is 'dense'"),
        (lambda: small_gpt(alpha=1.5), "alpha is 1.5"),
        (lambda: small_gpt(num_attention_heads=3), "heads is 3"),
        (lambda: small_gpt(granularity="token"), "granularity is 'token'"),
        (lambda: small_gpt().truncate(4), "k is 4"),
        (lambda: small_gpt()(), "exactly one of input_ids"),
        (lambda: small_gpt()(words(), output_attentions=True), "output_attentions is True"),
        (lambda: small_gpt(output_attentions=True)(words()), "output_attentions is True"),
        (lambda: small_gpt(embd_pdrop=1.5), "dropout probability"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
