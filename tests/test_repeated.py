"""Steps that are recorded and replayed train as plain ones do."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from residual_models import build
from tolerances import assert_close
from torch import nn

import acn_kernels as acn
from acn_kernels import repeated
from acn_kernels.alpha_schedule import AlphaSchedule
from acn_kernels.analysis import GradientHistory
from acn_kernels.convert.conversion import chains
from acn_kernels.models import create
from acn_kernels.training.digits import Split
from acn_kernels.training.scheduled import ScheduledModel
from acn_kernels.training.schedules import BottomUpAlpha, DepthSchedule
from acn_kernels.training.trainer import Recipe, Trainer


@pytest.fixture
def recordings(monkeypatch):
    """In the place of CUDA graphs: a replay runs the step on the tensors it was recorded with."""
    made = []

    def recorded(function):
        result, replays = torch.empty(()), []
        made.append(replays)

        def replay():
            replays.append(result.copy_(function()))

        return result, replay

    monkeypatch.setattr(repeated, "recorded", recorded)
    monkeypatch.setattr(repeated, "_runs_on_cuda", lambda x: True)
    return made


def network() -> nn.Module:
    made = create("acn_mixer_digits", depth=4)
    nn.init.normal_(made.head.weight, std=0.3)
    return made


def train(model, samples: Split, epochs: int, recording: bool, **schedules):
    history = GradientHistory(model)
    trainer = Trainer(
        model, Recipe(epochs, batch_size=8), len(samples.labels), after_backward=history.note,
        replay=True, **schedules,
    )  # fmt: skip
    if not recording:
        trainer._repeated.obstacle = "steps run as they are"
        assert trainer.not_replayed == "steps run as they are"
    losses = []
    while not trainer.done:
        losses.append(trainer.train_epoch(samples))
        history.next_column()
    return torch.tensor(losses), torch.stack(history.columns)


def check_alike(device: str, epochs: int = 4, **schedules) -> None:
    model = network().to(device)
    twin = copy.deepcopy(model)
    samples = Split(
        torch.randn(36, 1, 8, 8, device=device), torch.randint(10, (36,), device=device)
    )
    plain = train(model, samples, epochs, False, **schedules)
    replayed = train(twin, samples, epochs, True, **schedules)
    for one, other in zip(plain, replayed, strict=True):
        assert_close(one, other, torch.float32, roundings=200)
    if device == "cpu":  # the very same operations
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(one, other)


def test_the_learning_rate_in_a_tensor_follows_the_schedule():
    samples = Split(torch.randn(16, 1, 8, 8), torch.randint(10, (16,)))
    model = network()
    trainers = [
        Trainer(copy.deepcopy(model), Recipe(3, batch_size=4), 16, replay=replay)
        for replay in (False, True)
    ]
    while not trainers[0].done:
        losses = [trainer.train_on(*(part[:4] for part in samples)) for trainer in trainers]
        assert_close(*losses, roundings=200)
        rates = [float(trainer.optimizer.param_groups[0]["lr"]) for trainer in trainers]
        assert rates[1] == pytest.approx(rates[0], rel=1e-6)


def test_replayed_steps_train_as_plain_ones_do(recordings):
    """Batches of 8, 8, 8, 8 and 4: those of 4 are recorded in the fourth epoch."""
    check_alike("cpu")
    assert [len(replays) for replays in recordings] == [16 - 3, 4 - 3]


def test_what_changes_is_recorded_anew(recordings):
    """alpha moves in the first of six epochs, and stands; the upper half comes in half-time."""
    check_alike(
        "cpu",
        epochs=6,
        alpha=AlphaSchedule(0.0, 1.0, 1 / 6),
        depth=DepthSchedule(((0.0, 0.5), (0.5, 1.0))),
    )
    # Batches of 8 in the epochs 2 and 3, then in the last three.
    assert [len(replays) for replays in recordings] == [8 - 3, 12 - 3]


MOVING = {
    "one alpha": AlphaSchedule(0.0, 0.5, 1.0),
    "of every layer": BottomUpAlpha(0.75, 1.0),
}


@pytest.mark.parametrize("alpha", MOVING.values(), ids=MOVING)
def test_alpha_that_moves_is_read_by_one_recording(recordings, alpha):
    check_alike("cpu", alpha=alpha)
    first = 1  # at alpha = 0, a residual network
    assert [len(replays) for replays in recordings] == [16 - first - 3, 4 - 3]


@pytest.mark.parametrize("alpha", MOVING.values(), ids=MOVING)
def test_alpha_that_moves_stays_where_it_is(alpha):
    model = network()
    scheduled = ScheduledModel(model, alpha, recorded=True)
    scheduled.follow(0.25)
    place, state = model.blocks.mix, scheduled.state
    for progress in (0.5, 0.75):
        scheduled.follow(progress)
        own = torch.tensor(model.blocks.alpha, dtype=torch.float64)
        assert model.blocks.mix is place and place.equal(own.expand(place.shape))
        assert scheduled.state == state
    scheduled.finish()
    assert model.blocks.mix is not place  # the model goes where its user takes it


def test_trainers_on_one_model_keep_to_themselves():
    model = network()
    first, second = (ScheduledModel(model, MOVING["one alpha"], recorded=True) for _ in range(2))
    first.follow(0.25)
    place = model.blocks.mix
    second.follow(0.5)
    assert model.blocks.mix is not place and place.item() == 0.125
    second.finish()
    first.follow(0.75)
    assert model.blocks.mix is place and place.item() == 0.375


@pytest.mark.parametrize("copied", [False, True])
def test_alpha_leaves_a_device_with_its_model(copied):
    """ "meta" in the place of a GPU."""
    made = network().to("meta"), nn.ModuleList(acn.convert(build("timm-vit")[1], 0.3).blocks)
    for model in made:
        held = model.blocks if hasattr(model, "blocks") else model[0]._acn_chain
        held.alpha = 0.3
        held.mix = held.mix.to("meta")
        model = copy.deepcopy(model) if copied else model
        model.to_empty(device="cpu")
        held = model.blocks if hasattr(model, "blocks") else model[0]._acn_chain
        assert held.mix.device.type == "cpu"


def test_alpha_of_other_stacks_is_left_alone():
    model = network()
    model.other = acn.FusedACNStack([nn.Linear(8, 8) for _ in range(2)])
    ScheduledModel(model, BottomUpAlpha(1.0, 0.9)).follow(0.5)
    assert model.other.alpha == 1.0 and model.blocks.alpha != 1.0


def test_layers_that_go_in_mid_training():
    model = network()
    scheduled = ScheduledModel(model, MOVING["one alpha"], recorded=True)
    x = torch.randn(2, 1, 8, 8)
    for progress in (0.25, 0.5):
        scheduled.follow(progress)
        assert model(x).shape == (2, 10) and model.blocks.alpha == progress / 2
        del model.blocks[-1]
    model.blocks = model.blocks[:1]
    scheduled.follow(0.75)
    assert model.blocks.alpha == 0.375


def test_a_trainer_goes_back_to_an_earlier_state(recordings):
    samples = Split(torch.randn(16, 1, 8, 8), torch.randint(10, (16,)))
    trainer = Trainer(
        network(), Recipe(4, batch_size=4), 16, replay=True, alpha=MOVING["one alpha"]
    )
    trainer.train_epoch(samples)
    state = copy.deepcopy(trainer.state_dict())
    ends = []
    for _ in range(2):
        while not trainer.done:
            trainer.train_epoch(samples)
        ends.append([p.detach().clone() for p in trainer.model.parameters()])
        trainer.load_state_dict(copy.deepcopy(state))
    assert all(map(torch.equal, *ends))


def test_weights_that_move_are_recorded_anew(recordings):
    samples = Split(torch.randn(16, 1, 8, 8), torch.randint(10, (16,)))
    trainer = Trainer(network(), Recipe(3, batch_size=2), 16, replay=True)
    trainer.train_epoch(samples)
    assert len(recordings) == 1
    trainer.model.double().float()  # back in the same precision, elsewhere in memory
    trainer.train_epoch(samples)
    assert len(recordings) == 2


def test_a_cut_model_that_is_evaluated_does_not_stop_dropout(recordings):
    model = network()
    model.blocks[0].dropout, modes = nn.Dropout(), []
    samples = Split(torch.randn(8, 1, 8, 8), torch.randint(10, (8,)))
    trainer = Trainer(
        model, Recipe(2, batch_size=4), 8, replay=True,
        after_backward=lambda: modes.append(model.blocks[0].dropout.training),
    )  # fmt: skip
    for _ in range(2):
        trainer.train_epoch(samples)
        model.truncate(1).eval()
    assert modes == [True] * 4


def test_a_cpu_records_nothing(monkeypatch):
    def refuses(function):
        raise AssertionError("recorded")

    monkeypatch.setattr(repeated, "recorded", refuses)
    samples = Split(torch.randn(16, 1, 8, 8), torch.randint(10, (16,)))
    trainer = Trainer(network(), Recipe(2, batch_size=2), 16, replay=True)
    trainer.train_epoch(samples)
    assert trainer.not_replayed is None


def test_the_blocks_of_a_converted_model_share_one_alpha():
    model = acn.convert(build("timm-vit")[1])
    scheduled = ScheduledModel(model, AlphaSchedule(0.0, 0.5, 1.0), recorded=True)
    scheduled.follow(0.5)
    (chain,) = chains(model)
    place = chain.mix
    scheduled.follow(0.75)
    assert chain.mix is place and place.item() == 0.375


def test_what_cannot_be_recorded_runs_as_it_is(monkeypatch):
    def refuses(function):
        raise RuntimeError("operation not permitted when stream is capturing\nand so on")

    monkeypatch.setattr(repeated, "recorded", refuses)
    monkeypatch.setattr(repeated, "_runs_on_cuda", lambda x: True)
    check_alike("cpu")
    steps = repeated.Repeated(lambda images, labels: images.sum())
    inputs = torch.ones(2), torch.ones(2)
    assert [steps("key", *inputs).item() for _ in range(6)] == [2.0] * 6
    assert steps.obstacle == "operation not permitted when stream is capturing"


def test_replays_count_as_changes_of_the_weights(recordings):
    weight = nn.Parameter(torch.zeros(2))
    steps = repeated.Repeated(lambda images: images.sum(), [weight])
    versions = []
    for _ in range(6):
        steps("key", torch.ones(2))
        versions.append(weight._version)
    assert versions == [0, 0, 0, 1, 2, 3]  # this step itself changes nothing that is counted


def test_every_input_of_another_shape_or_dtype_is_recorded_anew(recordings):
    """A recording would spread the numbers of a smaller one, and round those of a wider one."""
    steps = repeated.Repeated(lambda x, y: x.sum() * y.sum())
    x = torch.ones(2)
    for y in (torch.ones(2), torch.ones(1), torch.full((2,), 1.5), torch.tensor([1, 1])):
        for _ in range(5):
            assert steps("key", x, y) == 2 * y.sum()
    assert len(recordings) == 3


def test_records_on_the_device_of_the_inputs(recordings, monkeypatch):
    """Which need not be the current one, where torch would record by itself."""
    found = []
    monkeypatch.setattr(
        torch.cuda, "device_of", lambda x: found.append(x.shape) or contextlib.nullcontext()
    )
    steps = repeated.Repeated(lambda images: images.sum())
    for _ in range(5):
        steps("key", torch.ones(2))
    assert found == [(2,)]


@pytest.mark.gpu
@pytest.mark.parametrize("device", range(min(2, torch.cuda.device_count())))
def test_replays_on_every_gpu(device):
    steps = repeated.Repeated(lambda x: x * 2)
    with torch.no_grad():
        for i in range(6):
            x = torch.full((3,), float(i), device=f"cuda:{device}")
            assert torch.equal(steps("key", x), 2 * x)
    assert steps.obstacle is None


def test_resumed_training_goes_on_with_its_learning_rate(recordings):
    samples = Split(torch.randn(16, 1, 8, 8), torch.randint(10, (16,)))
    whole = Trainer(network(), Recipe(4, batch_size=8), 16, replay=True)
    first = Trainer(copy.deepcopy(whole.model), Recipe(4, batch_size=8), 16, replay=True)
    for _ in range(2):
        whole.train_epoch(samples)
        first.train_epoch(samples)
    second = Trainer(network(), Recipe(4, batch_size=8), 16, replay=True)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    while not whole.done:
        assert whole.train_epoch(samples) == second.train_epoch(samples)
    for one, other in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("alpha", [None, *MOVING.values()], ids=["constant", *MOVING])
def test_cuda_graphs_train_as_plain_steps_do(monkeypatch, alpha):
    made = []
    real = repeated.recorded
    monkeypatch.setattr(repeated, "recorded", lambda f: made.append(real(f)) or made[-1])
    check_alike("cuda", alpha=alpha)
    assert len(made) == 2
