"""Not in the paper: an ACN at no more training time than its residual twin.

The paper's ACNs take 1.4 to 2.3 times the epochs of the residual network. Every way here starts
from the same weights; epochs are a multiple of the twin's, so that those which have fewer layers,
or freeze some, cost about what the twin costs. A residual network of half the layers, for 1.8 times
the epochs, shows what leaving out layers gives by itself; twice the epochs, what the paper pays.
Noise, as in Table 2, shows which of them keep more than accuracy.
"""

import functools
from dataclasses import dataclass, replace

from acn_kernels.alpha_schedule import AlphaSchedule
from acn_kernels.training.schedules import (
    GROWING,
    BottomUpAlpha,
    DepthSchedule,
    FreezeSchedule,
)
from benchmarks.paper import measures, winners
from benchmarks.paper.sizes import layers, training
from benchmarks.paper.spec import PRESETS, WITH_BRIEF, Experiment, Plan, Row

EPOCHS = {"smoke": 3, "small": 8, "medium": 15, "brief": 30, "paper": 300}
TWIN = "residual"


@dataclass(frozen=True)
class Way:
    """epochs: as a multiple of the residual twin's. closing: the blocks have the step that closes
    them in the authors' code. share: of the twin's layers."""

    wiring: str = "acn"
    epochs: float = 1.0
    closing: bool = False
    share: float = 1.0
    alpha: AlphaSchedule | BottomUpAlpha | None = None
    depth: DepthSchedule | None = None
    freeze: FreezeSchedule | None = None
    first: str = "default"


ANNEALED = AlphaSchedule(0.0, 1.0, 0.5)
LOWER_HALF = DepthSchedule(((0.0, 1.0), (0.5, 0.5)))
WAYS = {
    TWIN: Way("residual"),
    "ACN": Way(),
    "ACN, twice the epochs": Way(epochs=2),
    "annealed": Way(alpha=ANNEALED),
    "annealed from the bottom up": Way(alpha=BottomUpAlpha(1.0, 0.5)),
    "ACN, Dirac weights": Way(first="dirac"),
    "annealed, then the lower half": Way(epochs=4 / 3, alpha=ANNEALED, depth=LOWER_HALF),
    "annealed, lower layers freeze": Way(
        epochs=1.2, alpha=ANNEALED, freeze=FreezeSchedule(0.5, 0.5)
    ),
    "annealed, growing": Way(epochs=1.2, alpha=ANNEALED, depth=GROWING),
    "growing": Way(epochs=1.2, depth=GROWING),
    "growing, closing step": Way(epochs=1.1, closing=True, depth=GROWING),
    "closing step, twice the epochs": Way(epochs=2, closing=True),
    "half the layers, alpha to 0.5": Way(epochs=1.8, share=0.5, alpha=AlphaSchedule(0.0, 0.5, 0.6)),
    "half the layers, closing step": Way(epochs=1.8, share=0.5, closing=True),
    "residual, half the layers": Way("residual", epochs=1.8, share=0.5),
}
# What there is no time for.
LEFT_OUT = {
    "small": {"growing, closing step", "closing step, twice the epochs"},
    "medium": {
        "ACN", "ACN, twice the epochs", "ACN, Dirac weights", "annealed",
        "annealed from the bottom up", "annealed, growing", "annealed, then the lower half",
        "annealed, lower layers freeze",
    },
    "brief": {
        "ACN", "ACN, Dirac weights", "annealed", "annealed from the bottom up", "annealed, growing",
        "annealed, then the lower half", "annealed, lower layers freeze", "growing, closing step",
    },
}  # fmt: skip

# What the Mixer's trials left to try with a ViT.
VIT_WAYS = (TWIN, "growing", "half the layers, alpha to 0.5", "residual, half the layers")


def plan(preset, family, ways):
    """A training for each of ``ways``, of the networks of ``family``."""
    trainings, depth = {}, layers(preset, family)
    for name in ways:
        if name in LEFT_OUT.get(preset, ()):
            continue
        way = WAYS[name]
        epochs = {preset: round(EPOCHS[preset] * way.epochs)}
        changes = {"closing": True} if way.closing else {}
        if way.share != 1:
            changes["depth"] = round(depth * way.share)
        one = training(preset, way.wiring, epochs, family=family, watch=True, **changes)
        trainings[name] = replace(
            one, alpha=way.alpha, depth=way.depth, freeze=way.freeze, first=way.first
        )
    return Plan(trainings, {"half": depth // 2})


def measure(context, plan, name):
    training = plan.trainings[name]
    trained, data = context.trained(training), context.data(training.data)
    profile = measures.depth_profile(trained.model, data.test)
    half = profile["accuracy_by_depth"][plan.options["half"]]
    return {
        **profile,
        "half_accuracy": half,
        "noisy_accuracy": measures.noisy_accuracy(trained.model, data, context.seed),
        # Of the network as it is put to use: the twin whole, an ACN cut in half.
        "kept_accuracy": profile["accuracy"] if name == TWIN else half,
        "epochs": training.recipe.epochs,
        "seconds": sum(trained.seconds),
        "flops": measures.training_flops(training, len(data.train.labels)),
        **measures.to_reach(
            training, trained, context.trained(plan.trainings[TWIN]).test_accuracy[-1]
        ),
    }


def _rows(way):
    return (
        Row(f"accuracy, points: {way}", "accuracy", way, TWIN, 0, None, 100),
        Row(
            f"accuracy of half of it against all of the twin, points: {way}",
            "kept_accuracy",
            way,
            TWIN,
            0,
            None,
            100,
        ),
        Row(f"accuracy under noise, points: {way}", "noisy_accuracy", way, TWIN, 1, None, 100),
        Row(f"seconds of the whole training: {way}", "seconds", way, TWIN, -1),
        Row(f"seconds to the twin's accuracy: {way}", "seconds_to_reach", way, TWIN, -1),
    )


def _experiment(name, title, family, ways, note, presets):
    return Experiment(
        name,
        title,
        functools.partial(plan, family=family, ways=ways),
        measure,
        tuple(row for way in ways if way != TWIN for row in _rows(way)),
        f"no experiment of the paper; the sign is what we aim at{note}",
        functools.partial(winners.ranking, twin=TWIN),
        presets=presets,
    )


EXPERIMENT = _experiment(
    "cheaper",
    "Cheaper training: ways to an ACN against its residual twin",
    "mixer",
    tuple(WAYS),
    ". No longer repeated, as they did not beat the ACN itself at the small preset: end points of "
    "alpha below 1 (0.8 and 0.5) with all layers, scaled first weights",
    PRESETS,
)
VIT_EXPERIMENT = _experiment(
    "cheaper_vit",
    "Cheaper training of a ViT: ways to an ACN against its residual twin",
    "vit",
    VIT_WAYS,
    "",
    WITH_BRIEF,
)
