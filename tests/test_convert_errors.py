"""convert refuses what it does not know, says what it knows, and how to add to that."""

from __future__ import annotations

import copy

import pytest
import torch
from residual_case import D
from residual_hf import import_transformers
from residual_models import build
from tolerances import assert_close
from torch import nn

import acn_kernels as acn
from acn_kernels.convert import registry


@pytest.fixture
def registered():
    """Registrations of a test end with it."""
    before = dict(registry._adapters)
    yield
    registry._adapters.clear()
    registry._adapters.update(before)


class MyBlock(nn.Module):
    """A residual block that no library has."""

    def __init__(self):
        super().__init__()
        self.ln = nn.LayerNorm(D)
        self.mix = nn.Linear(D, D)

    def forward(self, x, shift=0.0):
        return x + torch.tanh(self.mix(self.ln(x)) + shift)


class MyModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(MyBlock() for _ in range(3))

    def forward(self, x, shift=0.0):
        for block in self.blocks:
            x = block(x, shift=shift)
        return x


def test_an_unknown_block_is_refused_with_the_known_ones_and_the_way_to_add_it():
    with pytest.raises(ValueError) as raised:
        acn.convert(MyModel())
    message = str(raised.value)
    for part in ("MyModel", "test_convert_errors.MyBlock", "acn.convert.register(MyBlock",
                 "PreNorm", "docs/convert.md", "timm: Block", "BertLayer", "GPT2Block",
                 "LlamaDecoderLayer", "torch: TransformerEncoderLayer"):  # fmt: skip
        assert part in message, part


def test_a_block_of_ones_own(registered):
    acn.convert.register(
        MyBlock,
        acn.convert.PreNorm(
            norms=["ln"],
            branches=[lambda block, h, shift=0.0: torch.tanh(block.mix(h) + shift)],
        ),
    )
    model = MyModel().double()
    x = torch.randn(2, D).double()
    for shift in (0.0, 0.3):
        for alpha in (0.0, 1e-14, 0.37, 1.0):
            u = y = last = x
            for block in model.blocks:
                u = alpha * last + (1 - alpha) * y
                last = torch.tanh(block.mix(block.ln(u)) + shift)
                y = y + last
            assert_close(acn.convert(model, alpha)(x, shift=shift), y)
    # Keyword or position, and copies: all as with the blocks of a library.
    twin = copy.deepcopy(acn.convert(model, 0.37))
    assert torch.equal(twin.blocks[0](x=x), twin.blocks[0](x))


class Half(nn.Module):
    """A block that adds one half, whichever side its norm, which does nothing, is on."""

    def __init__(self):
        super().__init__()
        self.norm = nn.Identity()

    def forward(self, x):
        return x + 0.5


@pytest.mark.parametrize("kind", ["PreNorm", "PostNorm"])
def test_sums_in_half_precision_are_kept_wide(registered, kind):
    """256 + 0.5 is 256 in bfloat16; 16 halves are 8 all the same."""
    adapter = getattr(acn.convert, kind)(("norm",), (lambda block, h: torch.full_like(h, 0.5),))
    acn.convert.register(Half, adapter)
    y = acn.convert(nn.ModuleList(Half() for _ in range(16)), 1.0)
    x = torch.full((2, 3), 256.0, dtype=torch.bfloat16)
    for block in y:
        x = block(x)
    assert x.dtype == torch.bfloat16
    assert (x == 264).all()


def test_the_output_of_another_chain_is_refused(registered):
    adapter = acn.convert.PreNorm(("norm",), (lambda block, h: torch.full_like(h, 0.5),))
    acn.convert.register(Half, adapter)
    one, other = (acn.convert(nn.ModuleList([Half(), Half()]), 1.0) for _ in range(2))
    flowing = one[0](torch.randn(2, 3))
    one[1](flowing)
    other[0](flowing)  # the first block starts a sum of its own
    with pytest.raises(RuntimeError, match="not the output of the block before it"):
        other[1](flowing)


def test_a_subclass_keeps_the_adapter_as_long_as_it_keeps_the_forward(registered):
    adapter = acn.convert.PreNorm(("ln",), (lambda block, h, shift=0.0: block.mix(h).tanh(),))
    acn.convert.register(MyBlock, adapter)

    class Renamed(MyBlock):
        pass

    class Other(MyBlock):
        def forward(self, x, shift=0.0):
            return x + 2 * super().forward(x, shift)

    acn.convert(nn.ModuleList([Renamed()]))
    with pytest.raises(ValueError, match=r"holds no residual block that acn.convert knows"):
        acn.convert(nn.ModuleList([Other()]))


def test_known_residual_blocks_without_an_adapter():
    layer = nn.TransformerDecoderLayer(D, 2)
    with pytest.raises(ValueError, match=r"holds no residual block.*TransformerDecoderLayer"):
        acn.convert(nn.TransformerDecoder(layer, 2))
    both = nn.Transformer(D, 2, 2, 2, 16)
    with pytest.raises(ValueError, match=r"decoder.layers.0 is a .*TransformerDecoderLayer.*adds"):
        acn.convert(both)
    acn.convert(both.encoder, 0.5)  # the part of it that can be


def test_a_stack_points_to_convert():
    layer = nn.TransformerEncoderLayer(D, 2)
    with pytest.raises(ValueError, match=r"acn_kernels.convert"):
        acn.FusedACNStack([layer])


def test_the_plain_mlp_of_torchvision_is_a_layer():
    """It adds nothing: the block around it does."""
    plain = type("MLPBlock", (nn.Sequential,), {"__module__": "torchvision.ops.misc"})
    acn.FusedACNStack([plain(nn.Linear(D, D), nn.GELU())])


def test_cross_attention_is_refused():
    library = import_transformers()
    model = library.GPT2Model(
        library.GPT2Config(n_embd=D, n_layer=1, n_head=2, vocab_size=9, add_cross_attention=True)
    )
    with pytest.raises(ValueError, match=r"h\.0 \(GPT2Block\).*encoder"):
        acn.convert(model)


def test_a_refusal_changes_nothing(registered):
    acn.convert.register(MyBlock, acn.convert.PreNorm(("nosuch",), (lambda block, h: h,)))
    model = MyModel()
    layer = nn.TransformerEncoderLayer(D, 2, 16, 0.0)
    model.layers = nn.ModuleList([layer])
    with pytest.raises(ValueError, match=r"the adapter of blocks.0 does not fit.*nosuch"):
        acn.convert(model, 1.0, inplace=True)
    assert type(model.layers[0]) is nn.TransformerEncoderLayer
    assert type(model.blocks[0]) is MyBlock


def test_a_block_with_another_forward():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1)
    model.layers[0].forward = model.layers[0].forward
    with pytest.raises(ValueError, match=r"layers\.0 \(.*\) has a forward in the place of its cl"):
        acn.convert(model, 1.0)


def test_the_same_block_twice():
    layer = nn.TransformerEncoderLayer(D, 2)
    with pytest.raises(ValueError, match="the same block twice"):
        acn.convert(nn.ModuleList([layer, layer]))


def test_a_block_outside_of_a_list():
    layer = nn.TransformerEncoderLayer(D, 2)
    with pytest.raises(ValueError, match=r"holds no residual block|outside of any"):
        acn.convert(layer)
    model = nn.ModuleDict({"first": layer, "rest": nn.ModuleList([copy.deepcopy(layer)])})
    with pytest.raises(ValueError, match=r"first is a TransformerEncoderLayer outside of any"):
        acn.convert(model)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("x",), TypeError, "model is a str"),
        ((None,), TypeError, "model is a NoneType"),
        ((MyModel(), 1.5), ValueError, "alpha is 1.5"),
        ((MyModel(), "1"), TypeError, "alpha is a str"),
        ((MyModel(), 1.0, "layer"), ValueError, "granularity is 'layer'"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        acn.convert(*arguments)
    with pytest.raises(TypeError, match="inplace is 1"):
        acn.convert(MyModel(), inplace=1)


def test_bad_registrations(registered):
    good = acn.convert.PreNorm((None,), (lambda block, h: h,))
    with pytest.raises(TypeError, match="block is 3"):
        acn.convert.register(3, good)
    with pytest.raises(TypeError, match="adapter is a str"):
        acn.convert.register(MyBlock, "adapter")
    with pytest.raises(ValueError, match="norms has 2 entries, branches 1"):
        acn.convert.PreNorm(("a", "b"), (lambda block, h: h,))
    with pytest.raises(TypeError, match="branches holds 'mlp'"):
        acn.convert.PreNorm(("a",), ("mlp",))
    with pytest.raises(ValueError, match="every sublayer of PostNorm takes a norm"):
        acn.convert.PostNorm((None,), (lambda block, h: h,))


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        ((0.0, 1.0), TypeError, "schedule is"),
        (3, TypeError, "schedule is 3"),
        ((0.0, 2.0, 0.5), ValueError, "alpha is 2.0"),
        ((0.0, 1.0, 1.5), ValueError, "fraction of the schedule is 1.5"),
        ((0.0, 1.0, "0.5"), TypeError, "fraction of the schedule is '0.5'"),
        (lambda progress: 2.0, ValueError, "alpha is 2.0"),
    ],
)
def test_bad_schedules(schedule, error, message):
    with pytest.raises(error, match=message):
        acn.anneal(acn.FusedACNStack([nn.Linear(2, 2)]), schedule)


def test_bad_progress():
    annealing = acn.anneal(acn.FusedACNStack([nn.Linear(2, 2)]), (0, 1, 0.5))
    for progress, error in ((-0.1, ValueError), (1.1, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="progress is"):
            annealing.step(progress)
    with pytest.raises(ValueError, match="without alpha"):
        acn.anneal(nn.Linear(2, 2), (0, 1, 0.5))
    with pytest.raises(TypeError, match="model is a str"):
        acn.anneal("model", (0, 1, 0.5))


def test_an_acn_is_none_already():
    model = nn.Sequential(nn.Linear(2, 2), acn.FusedACNStack([nn.Linear(2, 2)]))
    with pytest.raises(ValueError, match="1 is a FusedACNStack, an ACN already: its alpha"):
        acn.convert(model)


@pytest.mark.parametrize("inplace", [True, False])
def test_a_block_in_two_lists(inplace):
    model = MyModel()
    layers = [nn.TransformerEncoderLayer(D, 2, batch_first=True) for _ in range(2)]
    model.blocks, model.upper = nn.ModuleList(layers), nn.Sequential(layers[1])
    classes = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match="upper holds a block of blocks; acn"):
        acn.convert(model, inplace=inplace)
    assert [type(module) for module in model.modules()] == classes
    model.upper = model.blocks  # one list under two names
    assert acn.convert(model, inplace=inplace).upper[0]._acn_first


@pytest.mark.parametrize(("k", "error"), [(0, ValueError), (4, ValueError), ("1", TypeError)])
def test_bad_depths(k, error):
    _, model, _ = build("hf-bert")
    with pytest.raises(error, match=f"k is {k!r}; it takes an integer from 1 to 3"):
        acn.truncate(acn.convert(model), k)


def test_cutting_a_model_with_two_lists():
    layer = nn.TransformerEncoderLayer(D, 2)
    model = nn.ModuleList(nn.TransformerEncoder(layer, 2) for _ in range(2))
    with pytest.raises(ValueError, match="2 lists of converted blocks"):
        acn.truncate(acn.convert(model), 1)


@pytest.mark.parametrize("name", ["hf-bert", "hf-qwen3"])
def test_a_cut_model_has_one_configuration_of_its_depth(name, tmp_path):
    _, model, _ = build(name)
    converted = acn.convert(model)
    short = acn.truncate(converted, 2)
    configs = {
        id(module.config) for module in (short, *short.children()) if hasattr(module, "config")
    }
    assert len(configs) == 1 and short.config is not converted.config
    assert short.config.num_hidden_layers == 2 and converted.config.num_hidden_layers == 3
    short.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).config.num_hidden_layers == 2


@pytest.mark.parametrize("norm_first", [True, False])
def test_changes_in_place_between_blocks_are_refused(norm_first):
    layer = nn.TransformerEncoderLayer(D, 2, 16, batch_first=True, norm_first=norm_first)
    model = acn.convert(nn.ModuleList([layer, copy.deepcopy(layer)]), alpha=0.5)
    for mode in (torch.enable_grad, torch.no_grad):
        with mode(), pytest.raises(RuntimeError, match="changed in place before the next block"):
            model[1](model[0](torch.randn(2, 3, D)).mul_(2))
