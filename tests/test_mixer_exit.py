"""mixer_exit: in one kernel, every sample stops where the plain loop would stop it."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import DEVICE
from layers import make_norm
from torch import nn
from torch.autograd import forward_ad

from acn_kernels import NormSpec, dispatch, functional, reference
from acn_kernels.blocks import MixerBlock
from acn_kernels.functional import MixerParameters
from acn_kernels.inference import EarlyExit, early_exit, entropy
from acn_kernels.inference.mixer_exit import MixerExit
from acn_kernels.models import create

triton_runs, why_not = dispatch.availability()["triton"]
pytestmark = [pytest.mark.triton, pytest.mark.skipif(not triton_runs, reason=why_not)]


def head_of(classes: int, width: int, dtype: torch.dtype) -> nn.Linear:
    head = nn.Linear(width, classes)
    nn.init.normal_(head.weight, std=width**-0.5)
    nn.init.normal_(head.bias)
    return head.to(DEVICE, dtype)


def mixer(depth, tokens, width, hidden, closing=False, dtype=torch.float32) -> MixerParameters:
    blocks = [MixerBlock(tokens, width, *hidden, closing).to(DEVICE, dtype) for _ in range(depth)]
    return MixerParameters.of(blocks)


def truth_by_depth(x, parameters, head, norm, scales, include_input, pooling):
    """(logits, entropies) [L+1, B, ..] in float64; depth 0 is left to NaN without the input."""
    wide = MixerParameters(
        *(p.double().cpu() if isinstance(p, torch.Tensor) else p for p in parameters)
    )
    spec = None
    if norm is not None:
        affine = [None if p is None else p.double().cpu() for p in NormSpec.of(norm)[1:3]]
        spec = NormSpec.of(norm)._replace(weight=affine[0], bias=affine[1])
    terms = [x.double().cpu()]
    for k in range(len(parameters.norm1_weight)):
        layer = MixerParameters(*(p[k : k + 1] if isinstance(p, torch.Tensor) else p for p in wide))
        terms.append(reference.mixer_stack(terms[-1], layer, include_input=False))
    a = len(terms) * [None] if scales is None else scales.double().cpu()
    terms = list(zip(terms, a, strict=True))
    logits = []
    for k in range(1, len(terms)):
        y = reference.join(terms[0 if include_input else 1 : k + 1], spec)
        pooled = y.mean(1) if pooling == "mean" else y[:, 0]
        bias = None if head.bias is None else head.bias.double().cpu()
        logits.append(nn.functional.linear(pooled, head.weight.double().cpu(), bias))
    logits = torch.stack([torch.full_like(logits[0], torch.nan), *logits]).detach()
    return logits, entropy(logits)


def clear_threshold(entropies) -> float:
    """Amid the widest gap of what the exits see, within the middle half: rounding decides none."""
    values = entropies.flatten().sort().values
    values = values[len(values) // 4 : 3 * len(values) // 4 + 1]
    if len(values) < 2:
        return float(values[0]) + 0.01
    widest = values.diff().argmax()
    return float(values[widest : widest + 2].mean())


def check_exit(
    depth=4, batch=5, tokens=16, width=32, hidden=(16, 64), closing=False, classes=10,
    dtype=torch.float32, norm="layernorm", scaled=False, include_input=True, pooling="mean",
    exits=None, head_bias=True, tolerance=1e-4,
):  # fmt: skip
    """Depths, counts and logits against those of the sub-networks in float64."""
    parameters = mixer(depth, tokens, width, hidden, closing, dtype)
    x = torch.randn(batch, tokens, width, device=DEVICE).to(dtype)
    head = head_of(classes, width, dtype)
    if not head_bias:
        head.bias = None
    module = make_norm(norm, width)
    module = None if module is None else module.to(DEVICE, dtype)
    scales = torch.rand(depth + 1, device=DEVICE) + 0.5 if scaled else None
    logits, entropies = truth_by_depth(x, parameters, head, module, scales, include_input, pooling)
    exits = range(1, depth) if exits is None else exits
    mask = torch.zeros(depth + 1, dtype=torch.bool, device=DEVICE)
    mask[list(exits)] = True
    seen = entropies[list(exits)] if len(exits) else entropies[-1:]
    thresholds = [0.0, clear_threshold(seen), math.inf]
    for threshold in thresholds:
        expected = early_exit.first_exit(entropies, list(exits), threshold)
        result = functional.mixer_exit(
            x, parameters, mask, threshold, head.weight, head.bias, NormSpec.of(module), scales,
            include_input, pooling,
        )  # fmt: skip
        # What an exit would have seen of a sample that left before it decides nothing.
        ahead = torch.tensor(list(exits) or [depth])[:, None] > expected
        margin = (seen - threshold).abs().masked_fill(ahead, math.inf).min(0).values
        sure = margin > tolerance
        assert sure.any() or classes == 1 or threshold == 0, "the check would be empty"
        assert torch.equal(result.depth.cpu()[sure], expected[sure])
        counts = torch.bincount(result.depth.cpu(), minlength=depth + 1)
        assert torch.equal(result.counts.cpu().long(), counts)
        assert result.logits.dtype == dtype
        chosen = logits[result.depth.cpu(), torch.arange(batch)]
        torch.testing.assert_close(
            result.logits.double().cpu(), chosen, rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("closing", [False, True], ids=["plain", "closing"])
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_equals_the_plain_loop(closing, pooling):
    check_exit(closing=closing, pooling=pooling)


@pytest.mark.parametrize(
    ("tokens", "width", "hidden"),
    [(5, 20, (7, 33)), (49, 48, (30, 100)), (16, 64, (32, 128)), (64, 16, (64, 16))],
)
def test_every_size(tokens, width, hidden):
    check_exit(depth=3, tokens=tokens, width=width, hidden=hidden)


@pytest.mark.parametrize("classes", [1, 2, 16, 17, 100])
@pytest.mark.parametrize("head_bias", [True, False], ids=["bias", "no-bias"])
def test_every_number_of_classes(classes, head_bias):
    check_exit(depth=2, batch=3, classes=classes, head_bias=head_bias)


@pytest.mark.parametrize("norm", ["layernorm-bare", "layernorm-no-bias", "rmsnorm", "none"])
@pytest.mark.parametrize("include_input", [True, False], ids=["with-input", "without-input"])
def test_every_norm(norm, include_input):
    check_exit(depth=3, norm=norm, scaled=True, include_input=include_input)


@pytest.mark.parametrize("exits", [(), (2,), (1, 3)], ids=str)
@pytest.mark.parametrize("depth", [1, 4])
def test_every_set_of_exits(depth, exits):
    check_exit(depth=depth, exits=[k for k in exits if k < depth])


@pytest.mark.parametrize("batch", [1, 2, 11])
def test_every_batch(batch):
    check_exit(depth=3, batch=batch, width=16, hidden=(8, 16))


@pytest.mark.parametrize("depth", [33, pytest.param(100, marks=pytest.mark.slow)])
def test_deep(depth):
    check_exit(depth=depth, batch=3, width=16, hidden=(8, 16), tokens=4)


def test_half_precision():
    check_exit(dtype=torch.float16, tolerance=2e-2, batch=9)


@pytest.mark.gpu
def test_bf16_at_the_size_of_the_cifar_mixer():
    check_exit(
        depth=16, batch=300, tokens=64, width=128, hidden=(64, 512), dtype=torch.bfloat16,
        tolerance=0.1, pooling="first",  # means of random tokens differ by less than the tolerance
    )  # fmt: skip


def run(x, parameters, head, threshold=1.0):
    exits = torch.ones(len(parameters.norm1_weight) + 1, dtype=torch.int32, device=DEVICE)
    return functional.mixer_exit(x, parameters, exits, threshold, head.weight, head.bias)


def test_an_empty_batch():
    parameters, head = mixer(2, 4, 16, (8, 8)), head_of(10, 16, torch.float32)
    logits, depth, counts = run(torch.randn(0, 4, 16, device=DEVICE), parameters, head)
    assert logits.shape == (0, 10) and depth.shape == (0,) and counts.tolist() == [0, 0, 0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_never_leaves_early_and_stays_in_its_sample():
    parameters, head = mixer(3, 4, 16, (8, 8)), head_of(10, 16, torch.float32)
    x = torch.randn(4, 4, 16, device=DEVICE)
    x[1, 2, 3], x[3] = torch.nan, torch.inf
    logits, depth, counts = run(x, parameters, head, math.inf)
    assert depth.tolist() == [1, 3, 1, 3] and counts.tolist() == [0, 2, 0, 2]
    assert logits[[1, 3]].isnan().all() and logits[[0, 2]].isfinite().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_impossible_class_adds_nothing_to_the_entropy():
    parameters, head = mixer(2, 4, 16, (8, 8)), head_of(40, 16, torch.float32)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(-math.inf)
        head.bias[[20, 37]] = 0.5  # none in the first chunk of classes: the entropy is log 2
    x = torch.randn(2, 4, 16, device=DEVICE)
    assert run(x, parameters, head, math.log(2) + 1e-5).depth.tolist() == [1, 1]
    assert run(x, parameters, head, math.log(2) - 1e-5).depth.tolist() == [2, 2]


def test_a_strided_input_and_twice_the_same():
    parameters, head = mixer(3, 6, 16, (8, 8)), head_of(10, 16, torch.float32)
    x = torch.randn(16, 6, 5, device=DEVICE).permute(2, 1, 0)
    one, again = (run(given, parameters, head, 2.2) for given in (x, x.contiguous()))
    assert all(map(torch.equal, one, again))


def exiting_model(**changes):
    network = create("acn_mixer_digits", depth=4, **changes)
    nn.init.normal_(network.head.weight, std=0.3)
    network.blocks.backend = "triton"
    return network.eval().to(DEVICE)


STEMS = {
    "plain": lambda own: own,
    "no-bias": lambda own: nn.Conv2d(
        own.in_channels, own.out_channels, own.kernel_size, own.stride, bias=False
    ),
    "overlapping": lambda own: nn.Conv2d(
        own.in_channels, own.out_channels, own.kernel_size[0] + 2, own.stride, padding=1
    ),
    "hooked": lambda own: own,
    "replaced": lambda own: own,
}


@pytest.mark.parametrize("stem", STEMS)
def test_whatever_embeds_the_images(stem, monkeypatch):
    network = exiting_model()
    network.stem = STEMS[stem](network.stem).to(DEVICE)
    nn.init.normal_(network.stem.weight)
    if stem == "hooked":
        network.stem.register_forward_hook(lambda _, given, out: 3 * out)
    if stem == "replaced":
        own = network.embed
        network.embed = lambda images: 2 * own(images)
    images = torch.randn(9, 1, 8, 8, device=DEVICE)
    by_depth = network.logits_by_depth(images)
    certainty = entropy(by_depth[1:])
    threshold = certainty[0].sort().values[3:5].mean().item()
    monkeypatch.setattr(EarlyExit, "_by_segments", lambda *_: pytest.fail("another path"))
    logits, depth = EarlyExit(network, [1, 2, 3], threshold)(images)
    expected = early_exit.first_exit(certainty, [0, 1, 2], threshold) + 1
    assert torch.equal(depth, expected)
    torch.testing.assert_close(logits, by_depth[expected, torch.arange(9, device=DEVICE)])


@pytest.mark.parametrize("closing", [False, True], ids=["plain", "closing"])
@pytest.mark.parametrize("scales", ["none", "learned", "without-input"])
def test_early_exit_takes_the_kernel_by_itself(closing, scales, monkeypatch):
    network, images = exiting_model(closing=closing), torch.randn(11, 1, 8, 8, device=DEVICE)
    if scales != "none":
        network.blocks.include_input = scales == "learned"
        terms = 4 + network.blocks.include_input
        network.blocks.scales = nn.Parameter(torch.rand(terms, device=DEVICE) + 0.5)
    module = EarlyExit(network, (1, 2, 3), 0.0)
    by_depth = [None] + [network(images, depth=k).detach() for k in (1, 2, 3, 4)]
    module.threshold = clear_threshold(entropy(torch.stack(by_depth[1:4])).double().cpu())
    calls = []
    original = functional.mixer_exit
    monkeypatch.setattr(functional, "mixer_exit", lambda *args: calls.append(1) or original(*args))
    inside = module(images)
    assert calls == [1]
    with torch.no_grad():
        expected = module._by_segments(network.embed(images), {})
    assert torch.equal(inside.depth, expected.depth) and len(inside.depth.unique()) > 1
    torch.testing.assert_close(inside.logits, expected.logits, rtol=1e-4, atol=1e-4)


def obstacle(network, dtype=torch.float32):
    images = torch.randn(2, 1, 8, 8, device=DEVICE, dtype=dtype)
    made = MixerExit.of([network])
    return made if isinstance(made, str) else made.obstacle(images)


def test_what_keeps_early_exit_from_the_kernel():
    network = exiting_model()
    assert obstacle(network) is None
    assert "training" in obstacle(network.train())
    network.eval()
    hook = network.blocks[2].channel_mlp.fc1.register_forward_hook(lambda *_: None)
    assert "layers[2] has hooks on channel_mlp.fc1" in obstacle(network)
    hook.remove()
    hook = network.head.register_forward_hook(lambda *_: None)
    assert "head" in obstacle(network)
    hook.remove()
    network.blocks.alpha = 0.5
    assert "alpha" in obstacle(network)
    network.blocks.alpha = 1.0
    network.blocks.rows = "first"
    assert "rows" in obstacle(network)
    network.blocks.rows = None
    network.blocks.backend = "torch"
    assert "backend" in obstacle(network)
    network.blocks.backend = "triton"
    assert obstacle(network, torch.float16) is not None
    assert obstacle(network) is None
    assert "no Mixer" in obstacle(exiting_model(wiring="feedforward"))
    if DEVICE == "cpu":
        network.blocks.backend = "auto"
        assert "auto" in obstacle(network)


def test_what_is_known_of_the_model_is_asked_of_every_call():
    """One answer for each kind of images and each mode, kept or not."""
    network = exiting_model()
    images = torch.randn(2, 1, 8, 8, device=DEVICE)
    inside = MixerExit.of([network])
    for _ in range(2):
        assert inside.obstacle(images) is None
        with torch.autocast(torch.device(DEVICE).type, torch.bfloat16):
            assert "autocast" in inside.obstacle(images)
        with forward_ad.dual_level():
            assert "forward-mode" in inside.obstacle(images)
        assert "float16" in inside.obstacle(images.half())
        network.train()
        assert "training" in inside.obstacle(images)
        network.eval()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pooling": "last"}, ValueError, "pooling is 'last'"),
        ({"exits": torch.zeros(3)}, ValueError, "exits is torch.float32"),
        ({"exits": [True, True, True]}, TypeError, "exits is a list"),
        ({"head_weight": None}, TypeError, "head_weight is a NoneType"),
        ({"exits": torch.zeros(4, dtype=torch.bool)}, ValueError, r"shape \(4,\)"),
        ({"head_weight": torch.zeros(10, 8)}, ValueError, r"it takes \(C, 16\)"),
        ({"head_bias": torch.zeros(9)}, ValueError, "head_bias has shape"),
        ({"head_bias": torch.zeros(10, dtype=torch.float64)}, TypeError, "head_bias has dtype"),
        ({"x": torch.zeros(4, 16)}, ValueError, r"takes \[B, T, D\]"),
        ({"threshold": torch.ones(())}, TypeError, "threshold is a Tensor"),
        ({"threshold": math.nan}, ValueError, "threshold is nan"),
    ],
)
def test_bad_arguments(change, error, message):
    given = {
        "x": torch.randn(2, 4, 16),
        "parameters": mixer(2, 4, 16, (8, 8)),
        "exits": torch.zeros(3, dtype=torch.bool),
        "threshold": 1.0,
        "head_weight": torch.zeros(10, 16),
        "head_bias": None,
    } | change
    given = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    with pytest.raises(error, match=message):
        functional.mixer_exit(**given)
