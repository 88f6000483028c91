"""Fig. 4: the harder the task, the more layers an ACN uses."""

from dataclasses import replace

from benchmarks.paper import measures
from benchmarks.paper.sizes import CIFAR, twins
from benchmarks.paper.spec import WITH_BRIEF, Experiment, Plan, Row

EPOCHS = {
    "residual": {"smoke": 2, "small": 8, "brief": 30, "paper": 300},
    "ACN": {"smoke": 2, "small": 11, "brief": 42, "paper": 420},
}
CLASSES = (2, 5, 10)


def plan(preset):
    trainings = {}
    for classes in CLASSES:
        data = replace(CIFAR[preset], classes=tuple(range(classes)) if classes < 10 else None)
        # Those of all classes are the cheaper training's too, which watches them.
        for name, training in twins(preset, EPOCHS, data=data, watch=classes == 10).items():
            trainings[f"{name}, {classes} classes"] = training
    return Plan(trainings)


def _row(what, of, against, paper):
    return Row(what, "depth_used", of, against, -1, tuple(100 * k / 16 for k in paper), 100)


EXPERIMENT = Experiment(
    "fig4",
    "Fig. 4: task difficulty, CIFAR-10 with 2, 5, 10 classes",
    plan,
    measures.profile,
    (
        _row("layers used, %, 2 classes", "ACN, 2 classes", "residual, 2 classes", (8, 16)),
        _row("layers used, %, 5 classes", "ACN, 5 classes", "residual, 5 classes", (10, 16)),
        _row("layers used, %, 10 classes", "ACN, 10 classes", "residual, 10 classes", (12, 16)),
        _row("layers used, %, 2 against 10 classes", "ACN, 2 classes", "ACN, 10 classes", (8, 12)),
    ),
    presets=WITH_BRIEF,
)
