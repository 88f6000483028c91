"""Table 5: against the other wirings that reach back over many layers."""

from benchmarks.paper import measures
from benchmarks.paper.experiments import fig1_2
from benchmarks.paper.sizes import layers, training, twins
from benchmarks.paper.spec import Experiment, Plan, Row

EPOCHS = {"smoke": 2, "small": 8, "paper": 700}


def plan(preset):
    tracked = fig1_2.plan(preset).trainings
    shared = {name: tracked[name] for name in ("residual", "ACN")}
    if preset == "paper":
        shared = twins(preset, {"residual": EPOCHS, "ACN": EPOCHS})
    few = {"smoke": layers(preset), "small": 5, "paper": 10}[preset]
    return Plan({
        **shared,
        "DenseNet": training(preset, "densenet", EPOCHS, depth=few),
        "DenseFormer": training(preset, "denseformer", EPOCHS),
    })  # fmt: skip


def _rows(against, accuracy):
    return (
        Row("accuracy, points", "accuracy", "ACN", against, 1, (92.0, accuracy), 100),
        Row("layers used, %", "depth_used", "ACN", against, -1, (75, 100), 100),
    )


EXPERIMENT = Experiment(
    "table5",
    "Table 5: residual, DenseNet-style, DenseFormer-style and ACN Mixers",
    plan,
    measures.profile,
    (*_rows("residual", 90.3), *_rows("DenseNet", 90.3), *_rows("DenseFormer", 90.4)),
)
