"""Fig. 7: BERT on SST-2 with ever fewer weights."""

from dataclasses import replace

from acn_kernels import plotting
from benchmarks.paper import pruning
from benchmarks.paper.experiments import fig5
from benchmarks.paper.spec import Experiment, Plan, Row, over_seeds
from benchmarks.paper.trained import accuracy

KEPT = (0.8, 0.6, 0.4, 0.2)  # by magnitude
DROPPED = {"movement, 20 % an epoch": 0.2, "movement, 40 % an epoch": 0.4}
EPOCHS = {
    "smoke": 3,
    "small": 3,
    "paper": 3,
}  # of movement pruning, each but the first at a size of its own
LR = 1.0  # of the training's


def plan(preset):
    networks = fig5.plan(preset).trainings
    trainings = {
        f"{name}, {method}": training
        for name, training in networks.items()
        for method in ("magnitude", *DROPPED)
    }
    return Plan(trainings, {"epochs": EPOCHS[preset]})


def measure(context, plan, name):
    training, method = plan.trainings[name], name.partition(", ")[2]
    model, data = context.trained(training).model, context.data(training.data)
    if method == "magnitude":
        kept = list(KEPT)
        accuracies = [accuracy(pruning.by_magnitude(model, share), data.test) for share in kept]
    else:
        recipe = replace(
            training.recipe,
            epochs=plan.options["epochs"], lr=LR * training.recipe.lr, seed=context.seed,
        )  # fmt: skip
        kept, accuracies = pruning.by_movement(
            model, recipe, data.train, data.test, DROPPED[method]
        )
    return {
        "accuracy": accuracy(model, data.test),
        "kept": kept,
        "accuracy_by_kept": accuracies,
        **{f"accuracy {i}": value for i, value in enumerate(accuracies)},
    }


def _row(what, metric, method):
    of, against = (f"{name}, {method}" for name in ("ACN", "residual"))
    return Row(f"accuracy, points, weights: {what}", metric, of, against, 1, None, 100)


def draw(runs, file):
    """Accuracy over the share of the weights that is left."""
    sizes = {name: next(iter(seeds.values()))["kept"] for name, seeds in runs.items()}
    curves = {name: over_seeds(seeds, "accuracy_by_kept") for name, seeds in runs.items()}
    labels = ("share of weights left", "test accuracy")
    plotting.lines(curves, sizes, file, *labels, EXPERIMENT.title)


EXPERIMENT = Experiment(
    "fig7",
    "Fig. 7: pruning BERT on SST-2",
    plan,
    measure,
    (
        *(_row(f"{share:.0%} left by magnitude", f"accuracy {i}", "magnitude")
          for i, share in enumerate(KEPT)),
        *(_row(f"{(1 - dropped) ** (i + 1):.0%} left by movement", f"accuracy {i}", method)
          for method, dropped in DROPPED.items() for i in range(2)),
    ),
    "the networks of Fig. 5; movement pruning goes on from them",
    draw=draw,
)  # fmt: skip
