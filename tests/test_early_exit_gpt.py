"""Early exit of a language model: every token at a depth of its own, with and without a cache."""

from __future__ import annotations

import math

import pytest
import torch
from language_models import GPT_VARIANTS, LAYERS, small_gpt, words
from loops import normed, perceptron
from tolerances import assert_close

from acn_kernels.inference import EarlyExitGPT
from acn_kernels.models.huggingface import ACNGPTForCausalLM

EXITS = [1, 2]


def entropy(logits):
    p = logits.softmax(-1)
    return -(p * p.log()).sum(-1)


def threshold_of(model, ids):
    """One below which about half of the tokens lie, and as far as may be from any of them."""
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    found = torch.cat([entropy(model.lm_head(states[k])).flatten() for k in EXITS]).sort().values
    middle = found[len(found) // 3 : 2 * len(found) // 3]
    widest = int(middle.diff().argmax())
    return middle[widest : widest + 2].mean().item()


def early(variant, length=8, batch=4, **changes):
    """(model, ids) whose tokens leave at several depths."""
    model, ids = small_gpt(variant, **changes).double(), words(batch, length)
    return EarlyExitGPT(model, EXITS, threshold_of(model, ids)), ids


def row_attention(module, h, keys, values):
    """Attention of one token's h [D] over lists of keys and values, which it adds its own to."""
    q, k, v = (module.qkv.weight @ h + module.qkv.bias).chunk(3)
    keys.append(k)
    values.append(v)
    size, out = len(h) // module.heads, []
    for head in range(module.heads):
        part = slice(head * size, (head + 1) * size)
        scores = torch.stack([q[part] @ k[part] / math.sqrt(size) for k in keys])
        mixed = scores.softmax(0) @ torch.stack([v[part] for v in values])
        out.append(mixed)
    return module.proj.weight @ torch.cat(out) + module.proj.bias


def token_by_token(model, ids, exits, threshold):
    """(logits [T, V], depth [T]) of one text [T]: the definition, one token after the other."""
    base, blocks = model.transformer, model.blocks
    alpha, hybrid = blocks.alpha, model.config.wiring == "hybrid"
    a = blocks.scales if hybrid else torch.ones(LAYERS + 1).double()
    cache = [([], []) for _ in blocks]
    logits, depths = [], []
    for t, word in enumerate(ids):
        x = x_0 = base.wte.weight[word] + base.wpe.weight[t]
        again = x_0 if model.config.input_injection else torch.zeros_like(x_0)
        y, left = a[0] * x, None
        for i, block in enumerate(blocks):
            head = normed(y, blocks.norm) @ base.wte.weight.T
            if left is None and i in exits and entropy(head) < threshold:
                left = i, head
            u = (x if hybrid else alpha * x + (1 - alpha) * y) + again
            h = row_attention(block.attn, normed(u, block.norm1), *cache[i])
            if left is not None:
                continue  # the keys and values are those of x as it left
            if hybrid:
                h = h + (1 - a[i]) * x
                x = perceptron(block.mlp, normed(h, block.norm2)) + (1 - a[i]) * h
            else:
                m = perceptron(block.mlp, normed(h + (1 - alpha) * u, block.norm2))
                x = m + (1 - alpha) * h
            y = y + a[i + 1] * x
        if left is None:
            left = LAYERS, normed(y, blocks.norm) @ base.wte.weight.T
        depths.append(left[0])
        logits.append(left[1])
    return torch.stack(logits), torch.tensor(depths)


@pytest.mark.parametrize("variant", ["acn", "between", "residual", "injected-between", "hybrid"])
def test_the_definition(variant):
    model, ids = early(variant)
    out = model(ids)
    assert len(out.exit_depth.unique()) > 1
    for b, text in enumerate(ids):
        logits, depth = token_by_token(model, text, EXITS, model.threshold)
        assert torch.equal(out.exit_depth[b], depth)
        assert_close(out.logits[b], logits)


@pytest.mark.parametrize("variant", GPT_VARIANTS)
def test_token_by_token_with_a_cache_equals_all_at_once(variant):
    model, ids = early(variant)
    truth, cache, got, depth = model(ids), None, [], []
    for start, stop in ((0, 1), (1, 4), (4, 5), (5, 6), (6, 7), (7, 8)):
        out = model(ids[:, start:stop], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        got.append(out.logits)
        depth.append(out.exit_depth)
    assert torch.equal(torch.cat(depth, 1), truth.exit_depth)
    assert_close(torch.cat(got, 1), truth.logits)


@pytest.mark.parametrize("variant", GPT_VARIANTS)
def test_generation_with_and_without_the_cache(variant):
    model, ids = early(variant, length=5)
    padding = torch.ones_like(ids)
    padding[0, :2] = 0
    options = {"attention_mask": padding, "max_new_tokens": 8, "do_sample": False}
    with_cache, without = (model.generate(ids, use_cache=c, **options) for c in (True, False))
    assert torch.equal(with_cache, without)
    alone = model.generate(ids[:1, 2:], max_new_tokens=8, do_sample=False)
    assert torch.equal(alone[:, 3:], with_cache[:1, 5:])


@pytest.mark.parametrize("variant", ["acn", "between", "hybrid"])
def test_nobody_is_sure_or_everybody(variant):
    model, ids = early(variant)
    plain = small_gpt(variant).double()
    plain.load_state_dict(model.state_dict())
    options = {"max_new_tokens": 6, "do_sample": False}
    never = EarlyExitGPT(model, EXITS, 0.0)
    assert torch.equal(never.generate(ids, **options), plain.generate(ids, **options))
    assert (never(ids).exit_depth == LAYERS).all()
    at_once = EarlyExitGPT(model, EXITS, 1e9)
    assert (at_once(ids).exit_depth == 1).all()
    # A cut model does not have the skipped layers: everybody out at 1 is the model of one layer.
    assert torch.equal(at_once.generate(ids, **options), plain.truncate(1).generate(ids, **options))


def test_those_who_left_run_no_layer():
    model, ids = early("acn", batch=6)
    cache, seen = model(ids, use_cache=True).past_key_values, []
    last = model.blocks[-1]
    last.mlp.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    depth = model(words(6, 1), past_key_values=cache).exit_depth
    staying = int((depth == LAYERS).sum())
    assert sum(seen) == staying and cache.get_seq_length() == 9
    model.threshold, seen[:] = 1e9, []
    out = model(words(6, 1), past_key_values=cache)
    assert not seen and (out.exit_depth == 1).all()
    assert [layer.keys.shape[2] for layer in cache.layers] == [10] * LAYERS


@pytest.mark.parametrize("criterion", ["probability", "margin"])
def test_other_criteria(criterion):
    model, ids = early("acn")
    top = small_gpt("acn").double()
    top.load_state_dict(model.state_dict())
    states = top(ids, output_hidden_states=True).hidden_states
    shares = top.lm_head(states[1]).softmax(-1).topk(2).values
    value = shares[..., 0] if criterion == "probability" else shares[..., 0] - shares[..., 1]
    ordered = value.flatten().sort().values
    # Far from every value: equal words have equal ones, to rounding.
    threshold = ordered[ordered.diff().argmax() :][:2].mean().item()
    # The first token reads nobody who may have left before.
    depth = EarlyExitGPT(top, [1], threshold, criterion)(ids).exit_depth
    assert torch.equal(depth[:, 0] == 1, value[:, 0] > threshold)


def test_beams_move_with_their_cache():
    model, ids = early("between")
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    with_cache, without = (model.generate(ids, use_cache=c, **options) for c in (True, False))
    assert torch.equal(with_cache, without)


def test_a_nan_never_leaves():
    model, ids = early("acn")
    with torch.no_grad():
        model.transformer.wte.weight[5] = math.nan
    ids[0, 0] = 5
    model.threshold = 1e9
    assert (model(ids).exit_depth[0] == LAYERS).all()


def test_it_shares_the_weights_and_leaves_the_model_alone():
    plain, ids = small_gpt("acn"), words()
    before = plain(ids).logits
    model = EarlyExitGPT(plain, [2, 1, 2], 0.7)
    assert model.exits == EXITS and model.lm_head is plain.lm_head
    assert model.truncate(2).exits == [1] and len(model.blocks) == LAYERS
    model(ids)
    assert torch.equal(plain(ids).logits, before)


@pytest.mark.parametrize("variant", GPT_VARIANTS)
@pytest.mark.parametrize("k", [1, 2])
def test_self_speculative_decoding_is_greedy_decoding(variant, k):
    model, ids = small_gpt(variant).double(), words(1, 5)
    options = {"max_new_tokens": 12, "do_sample": False}
    truth = model.generate(ids, **options)
    ran = []
    model.blocks[k].register_forward_pre_hook(lambda *_: ran.append(1))
    assert torch.equal(model.generate(ids, assistant_early_exit=k, **options), truth)
    assert ran and model.config.num_hidden_layers == LAYERS
    assert torch.equal(model.generate(ids, **options), truth)


def test_an_agreeing_assistant_saves_runs_of_the_whole_model():
    """Layers above k that add nothing: every word of the assistant is accepted."""
    model, ids = small_gpt("acn").double(), words(1, 5)
    for block in list(model.blocks)[1:]:
        for parameter in block.mlp.fc2.parameters():
            torch.nn.init.zeros_(parameter)
    options, ran = {"max_new_tokens": 12, "do_sample": False}, []
    model.generation_config.assistant_confidence_threshold = 0.0  # drafts do not end in doubt
    model.blocks[2].register_forward_pre_hook(lambda *_: ran.append(1))
    truth = model.generate(ids, **options)
    assert len(ran) == 12
    ran.clear()
    assert torch.equal(model.generate(ids, assistant_early_exit=1, **options), truth)
    assert len(ran) < 4


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: EarlyExitGPT(m, [3], 0.7), ValueError, "exits holds 3"),
        (lambda m: EarlyExitGPT(m, [0], 0.7), ValueError, "exits holds 0"),
        (lambda m: EarlyExitGPT(m, [1], -1.0), ValueError, "threshold is -1"),
        (lambda m: EarlyExitGPT(m, [1], 0.7, "depth"), ValueError, "criterion is 'depth'"),
        (lambda m: EarlyExitGPT(m.transformer, [1], 0.7), TypeError, "model is a ACNGPTModel"),
        (lambda m: EarlyExitGPT(m, [1], 0.7)(words(), labels=words()), ValueError, "labels"),
        (lambda m: EarlyExitGPT(m, [1], 0.7)(words(), output_attentions=True), ValueError,
         "output_attentions is True"),
        (lambda m: EarlyExitGPT(m, [1], 0.7)(words(), output_hidden_states=True), ValueError,
         "output_hidden_states is True"),
    ],
)  # fmt: skip
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(small_gpt())


def test_it_is_saved_as_its_model(tmp_path):
    model, ids = early("acn")
    model.save_pretrained(tmp_path)
    loaded = ACNGPTForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    never = EarlyExitGPT(model, EXITS, 0.0)
    assert_close(loaded(ids).logits, never(ids).logits)
