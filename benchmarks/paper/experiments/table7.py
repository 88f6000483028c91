"""Table 7: early exit, in FLOPs and on the clock."""

from benchmarks.paper import measures
from benchmarks.paper.sizes import training
from benchmarks.paper.spec import Experiment, Plan, Row

EPOCHS = {"smoke": 2, "small": 8, "paper": 100}
NETWORKS = {
    "ACN, cut": ("acn", "final"),
    "residual, branches": ("residual", "branches"),
    "ACN, branches": ("acn", "branches"),
    "residual, shared head": ("residual", "shared head"),
    "ACN, shared head": ("acn", "shared head"),
}
TAU = 0.7  # nats


def plan(preset):
    trainings = {
        name: training(preset, wiring, EPOCHS, loss=loss, track=loss == "final")
        for name, (wiring, loss) in NETWORKS.items()
    }
    return Plan(trainings, {"tau": TAU})


def measure(context, plan, name):
    training = plan.trainings[name]
    trained, test = context.trained(training), context.data(training.data).test
    if training.loss == "final":
        return measures.cut(trained.model, test)
    return measures.early_exit(trained, test, plan.options["tau"])


def _row(of, against, paper, metric="flops_speedup", unit="FLOPs"):
    return Row(f"speed-up in {unit}, of {of}", metric, of, against, 1, paper)


EXPERIMENT = Experiment(
    "table7",
    "Table 7: early exit on entropy below 0.7",
    plan,
    measure,
    (
        _row("ACN, branches", "residual, branches", (2.6, 2.2)),
        _row("ACN, shared head", "residual, shared head", (3.3, 2.4)),
        _row("ACN, shared head", "ACN, cut", (3.3, 1.5)),
        _row("ACN, shared head", "residual, shared head", None, "clock_speedup", "time"),
        _row("ACN, branches", "residual, branches", None, "clock_speedup", "time"),
        Row("speed-up in FLOPs within a point of accuracy", "flops_speedup_within_a_point",
            "ACN, shared head", "residual, shared head", 1),
        Row("accuracy with exits, points", "exit_accuracy", "ACN, shared head",
            "residual, shared head", 1, None, 100),
    ),
)  # fmt: skip
