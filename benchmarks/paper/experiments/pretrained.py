"""Not in the paper: an ACN from a residual network that is trained already.

alpha rises from 0 over a fine-tuning, and the upper half is cut at its end or beforehand. Against
that stand the same fine-tuning of the lower half alone (layers dropped beforehand), and of the
whole residual network with the losses of Aligned and LayerSkip. Ways that are taught begin where
the fine-tuning of the whole residual network ends, with its lower half, and learn from what the
whole makes of each sentence or image.
"""

from dataclasses import dataclass, replace

from acn_kernels.alpha_schedule import AlphaSchedule
from acn_kernels.training.trainer import Recipe
from benchmarks.paper import measures
from benchmarks.paper.experiments import fig3, fig5
from benchmarks.paper.minilm import DEPTH
from benchmarks.paper.sizes import layers
from benchmarks.paper.spec import Data, Experiment, Plan, Row, Training
from benchmarks.paper.text_models import MINILM

WHOLE, BEFORE, DROPPED = "residual", "before", "layers dropped"
CUT = "annealed to 0.1, cut before"
TAUGHT = ", taught"


@dataclass(frozen=True)
class Way:
    """dropped: only the lower half is there from the beginning, at half the cost. taught: goes on
    from the whole network's fine-tuning, which is its teacher."""

    alpha: AlphaSchedule | None = None
    loss: str = "final"
    dropped: bool = False
    taught: bool = False


_A_LITTLE = AlphaSchedule(0.0, 0.1, 0.25)
WAYS = {
    WHOLE: Way(),
    WHOLE + TAUGHT: Way(taught=True),
    "annealed": Way(AlphaSchedule(0.0, 1.0, 0.5)),
    CUT: Way(_A_LITTLE, dropped=True),
    CUT + TAUGHT: Way(_A_LITTLE, dropped=True, taught=True),
    DROPPED: Way(dropped=True),
    DROPPED + TAUGHT: Way(dropped=True, taught=True),
    "Aligned": Way(loss="shared head"),
    "LayerSkip": Way(loss="layerskip"),
}


# Of a text model not those that cost most; "annealed" was never the best in trials.
TEXT_WAYS = {name: way for name, way in WAYS.items() if name not in ("annealed", WHOLE + TAUGHT)}


def _ways(ways: dict[str, Way], whole: Training, depth: int, key: str, taught: int):
    """The fine-tunings of ``whole``; ``key``: how its depth is called. ``taught``: the epochs of
    those that are taught."""
    half = tuple(sorted({**dict(whole.changes), key: depth // 2}.items()))
    trainings = {BEFORE: replace(whole, recipe=replace(whole.recipe, epochs=0))}
    for name, way in ways.items():
        epochs = taught if way.taught else whole.recipe.epochs
        trainings[name] = replace(
            whole, alpha=way.alpha, loss=way.loss, recipe=replace(whole.recipe, epochs=epochs),
            changes=half if way.dropped else whole.changes,
            start=whole if way.taught else whole.start, teacher=whole if way.taught else None,
        )  # fmt: skip
    return Plan(trainings, {"half": depth // 2})


TEXT_EPOCHS = {"small": 2, "paper": 3}
# A teacher that has learned its sentences by heart has more to say of them with words left out,
# and goes on saying it.
TAUGHT_EPOCHS = {"small": 2, "paper": 8}
LR = {"small": 2e-4, "paper": 1e-4}
TEXT = {
    "small": Data("sst2", train=512, test=600, tokens=16, held_out="test"),
    "paper": Data("sst2", tokens=64, held_out="test"),
}


def plan_text(preset):
    if preset == "smoke":
        known = fig5.plan(preset).trainings["residual"]
        whole = replace(known, start=known)
        return _ways(TEXT_WAYS, whole, 4, "num_hidden_layers", known.recipe.epochs)
    recipe = Recipe(TEXT_EPOCHS[preset], batch_size=32, lr=LR[preset], warmup=0.25, max_norm=1.0)
    whole = Training(TEXT[preset], MINILM, (), recipe, half=preset == "paper")
    return _ways(TEXT_WAYS, whole, DEPTH, "depth", TAUGHT_EPOCHS[preset])


IMAGE_EPOCHS = {"smoke": 2, "small": 3, "paper": 100}


def plan_images(preset):
    known = fig3.plan(preset).trainings["residual"]
    epochs = IMAGE_EPOCHS[preset]
    whole = replace(known, recipe=replace(known.recipe, epochs=epochs), start=known)
    return _ways(WAYS, whole, layers(preset, "vit"), "depth", epochs)


def measure(context, plan, name):
    training = plan.trainings[name]
    model, data = context.trained(training).model, context.data(training.data)
    if name == BEFORE:
        return {"accuracy_by_depth": measures.linear_probes(model, data)}
    profile = measures.depth_profile(model, data.test)
    by_depth, half = profile["accuracy_by_depth"], plan.options["half"]
    return {
        **profile,
        "half_accuracy": by_depth[half],
        # Of the network as it is put to use: whole, or its lower half.
        "kept_accuracy": by_depth[-1 if name.startswith(WHOLE) else half],
    }


def _dropped_alike(name):
    """The same fine-tuning without long connections."""
    return DROPPED + TAUGHT if name.endswith(TAUGHT) else DROPPED


def _rows(ways: dict[str, Way]):
    cut = [name for name in ways if not name.startswith(WHOLE)]
    return (
        *(Row("accuracy of the lower half against the whole, points", "kept_accuracy", name, WHOLE,
              0, None, 100) for name in cut),
        # The whole, too, may gain by being trained further and taught by what it was.
        *(Row("accuracy of the lower half against the whole, both taught, points", "kept_accuracy",
              name, WHOLE + TAUGHT, 0, None, 100)
          for name in cut if WHOLE + TAUGHT in ways and name.endswith(TAUGHT)),
        *(Row("accuracy of the lower half, points", "half_accuracy", name, against, 1, None, 100)
          for name in cut if name.startswith("annealed")
          for against in (_dropped_alike(name), "Aligned", "LayerSkip")),
        Row("accuracy of the lower half, taught against not, points", "half_accuracy", CUT + TAUGHT,
            DROPPED, 1, None, 100),
        *(Row("accuracy of all layers, points", "accuracy", name, WHOLE, 0, None, 100)
          for name in ("annealed", WHOLE + TAUGHT) if name in ways),
    )  # fmt: skip


TEXT_EXPERIMENT = Experiment(
    "pretrained_minilm",
    "From a pre-trained residual model: MiniLM on SST-2",
    plan_text,
    measure,
    _rows(TEXT_WAYS),
    "no experiment of the paper; the sign is what we aim at. `before`: fresh linear classifiers "
    "on the network as it was found. Judged on the test sentences. Ways that are taught train for "
    "8 epochs at the paper preset, the others for 3. Not kept, as in trials with "
    "2,000 sentences and one or two seeds none was better than dropping the layers: learned scales "
    "through which the head reads the outputs of all layers, starting from the last one alone or "
    "from all alike; one head at half and at full depth; the same until half-time, the upper exit "
    "teaching the lower one, and then the lower half alone",
)
IMAGE_EXPERIMENT = Experiment(
    "pretrained_vit",
    "From a pre-trained residual model: a ViT on CIFAR-10",
    plan_images,
    measure,
    _rows(WAYS),
    "goes on from the residual network of Fig. 3; otherwise as with MiniLM",
)
