"""Table 7: early exit, in FLOPs and on the clock."""

from acn_kernels import plotting
from benchmarks.paper import exits
from benchmarks.paper.sizes import CIFAR, FASHION, fashion_shape, training
from benchmarks.paper.spec import WITH_BRIEF, Experiment, Plan, Row, over_seeds

EPOCHS = {"smoke": 2, "small": 4, "brief": 30, "paper": 100}
NETWORKS = {
    "ACN, cut": ("acn", "final"),
    "residual, branches": ("residual", "branches"),
    "ACN, branches": ("acn", "branches"),
    "residual, shared head": ("residual", "shared head"),
    "ACN, shared head": ("acn", "shared head"),
}
TAU = 0.7  # nats
# Of accuracy, that calibration allows.
DROP = {"smoke": 0.05, "small": 0.02, "brief": 0.01, "paper": 0.01}


def plan(preset):
    data, shape = CIFAR[preset], {}
    if preset == "small":
        data, shape = FASHION[preset], fashion_shape(preset)
    trainings = {
        name: training(
            preset, wiring, EPOCHS, data=data, loss=loss,
            # On CIFAR-10 that network is the one of Fig. 1-2.
            track=loss == "final" and not shape, **shape,
        )
        for name, (wiring, loss) in NETWORKS.items()
    }  # fmt: skip
    return Plan(trainings, {"tau": TAU, "drop": DROP[preset]})


def measure(context, plan, name):
    training = plan.trainings[name]
    trained, test = context.trained(training), context.data(training.data).test
    if training.loss == "final":
        return exits.cut(trained.model, test, plan.options["drop"])
    return exits.early_exit(trained, test, **plan.options)


def draw(runs, file):
    """Accuracy over the time of a sample, from leaving never to leaving at once."""
    shared = {name: seeds for name, seeds in runs.items() if name.endswith("shared head")}
    microseconds = {
        name: (1e6 * over_seeds(seeds, "seconds_by_threshold").mean(0)).tolist()
        for name, seeds in shared.items()
    }
    curves = {name: over_seeds(seeds, "accuracy_by_threshold") for name, seeds in shared.items()}
    labels = ("µs a sample, by threshold", "test accuracy")
    plotting.lines(curves, microseconds, file, *labels, "Early exit through the shared head")


def _row(of, against, paper, metric="flops_speedup", unit="FLOPs"):
    return Row(f"speed-up in {unit}, of {of}", metric, of, against, 1, paper)


def _shared(what, metric, sign, scale=1.0):
    return Row(what, metric, "ACN, shared head", "residual, shared head", sign, None, scale)


EXPERIMENT = Experiment(
    "table7",
    "Table 7: early exit on entropy below 0.7",
    plan,
    measure,
    (
        _row("ACN, branches", "residual, branches", (2.6, 2.2)),
        _row("ACN, shared head", "residual, shared head", (3.3, 2.4)),
        _row("ACN, shared head", "ACN, cut", (3.3, 1.5)),
        _row("ACN, branches", "residual, branches", None, "clock_speedup", "time"),
        _row("ACN, shared head", "residual, shared head", None, "clock_speedup", "time"),
        _shared("accuracy without exits, points", "accuracy", 1, 100),
        _shared("accuracy with exits, points", "exit_accuracy", 1, 100),
        _shared("speed-up in FLOPs within a point of accuracy", "flops_speedup_within_a_point", 1),
        _shared("speed-up in time within a point of accuracy", "clock_speedup_within_a_point", 1),
        _shared("accuracy that this point costs on fresh samples, points",
                "exit_drop_within_a_point", -1, 100),
    ),
    "at small on Fashion-MNIST, as networks that CIFAR-10 leaves at 30 % are never sure enough to "
    "leave; speed-ups are those over the same network without exits",
    exits.summary,
    draw,
    WITH_BRIEF,
)  # fmt: skip
