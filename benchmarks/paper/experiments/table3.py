"""Table 3: tasks one after the other, and what of the earlier ones is forgotten."""

import functools
from dataclasses import replace

from benchmarks.paper import continual
from benchmarks.paper.sizes import CIFAR, FASHION, fashion_shape, training
from benchmarks.paper.spec import Data, Experiment, Plan, Row

EPOCHS = {"smoke": 1, "small": 3, "paper": 10}
PER_TASK = {"smoke": 2, "small": 2}
DEPTH = {"smoke": 4, "small": 5, "paper": 5}
STRENGTH = 1.0
FASHION_DATA = {**FASHION, "small": replace(FASHION["small"], train=2000, test=1000)}


def plan(preset, data=None, classes=10, per_task=2, **changes):
    data, changes = data or CIFAR[preset], {"depth": DEPTH[preset], **changes}
    trainings = {
        f"{name}, {method}": training(preset, wiring, EPOCHS, data=data, altered=False, **changes)
        for name, wiring in (("residual", "residual"), ("ACN", "acn"))
        for method in ("naive", "SI")
    }
    tasks = [tuple(range(k, k + per_task)) for k in range(0, classes, per_task)]
    return Plan(trainings, {"tasks": tasks, "strength": STRENGTH})


def plan_fashion(preset):
    if preset == "smoke":
        return plan(preset)
    return plan(preset, FASHION_DATA[preset], **fashion_shape(preset))


def plan_cifar100(preset, depth):
    if preset == "smoke":
        return plan(preset, per_task=5)
    data = Data("cifar100", 5000, 2000) if preset == "small" else Data("cifar100")
    return plan(preset, data, classes=100, per_task=5, depth=depth)


def measure(context, plan, name):
    method = name.rpartition(", ")[2]
    strength = plan.options["strength"] if method == "SI" else 0.0
    return continual.learn(context, plan.trainings[name], plan.options["tasks"], strength)


def _rows(paper=None):
    numbers = paper or {}
    return (
        Row("forgetting, naive, points", "forgetting", "ACN, naive", "residual, naive", -1,
            numbers.get("naive"), 100),
        Row("forgetting, SI, points", "forgetting", "ACN, SI", "residual, SI", -1,
            numbers.get("SI"), 100),
        Row("average accuracy, SI, points", "average_accuracy", "ACN, SI", "residual, SI", 1,
            numbers.get("accuracy"), 100),
    )  # fmt: skip


NOTE = "task-incremental: the head is told the task"
CIFAR10 = Experiment("table3_cifar10", "Table 3: split CIFAR-10", plan, measure, _rows(), NOTE)
FASHION_MNIST = Experiment(
    "table3_fashion", "Table 3: split Fashion-MNIST", plan_fashion, measure, _rows(), NOTE
)
PAPER = {  # by depth: ACN, residual
    5: {"naive": (46.6, 52.8), "SI": (35.7, 42.4), "accuracy": (44.5, 43.5)},
    10: {"naive": (45.5, 54.9), "SI": (33.8, 44.6), "accuracy": (46.1, 36.1)},
    15: {"naive": (46.9, 54.5), "SI": (32.0, 50.0), "accuracy": (46.2, 32.1)},
}
CIFAR100 = [
    Experiment(
        f"table3_cifar100_{depth}",
        f"Table 3: split CIFAR-100, {depth} layers",
        functools.partial(plan_cifar100, depth=depth),
        measure,
        _rows(paper),
        NOTE,
    )
    for depth, paper in PAPER.items()
]
