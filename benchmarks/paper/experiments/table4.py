"""Table 4: what was learned on some classes, put to use on others."""

from dataclasses import replace

from benchmarks.paper import measures
from benchmarks.paper.sizes import CIFAR, training
from benchmarks.paper.spec import Experiment, Plan, Row

EPOCHS = {"smoke": 2, "small": 8, "paper": 100}
NETWORKS = {
    "ACN": ("acn", "final"),
    "Aligned": ("residual", "shared head"),
    "LayerSkip": ("residual", "layerskip"),
}


def plan(preset):
    known = replace(CIFAR[preset], classes=tuple(range(5)))
    return Plan(
        {
            name: training(preset, wiring, EPOCHS, data=known, loss=loss)
            for name, (wiring, loss) in NETWORKS.items()
        },
        {"unseen": replace(CIFAR[preset], classes=tuple(range(5, 10)))},
    )


def measure(context, plan, name):
    training = plan.trainings[name]
    trained, unseen = context.trained(training), context.data(plan.options["unseen"])
    by_depth = measures.linear_probes(trained.model, unseen)
    return {
        "accuracy": trained.test_accuracy[-1],
        "transfer_by_depth": by_depth,
        "transfer": by_depth[-1],
        "transfer_at_half": by_depth[len(by_depth) // 2],
    }


EXPERIMENT = Experiment(
    "table4",
    "Table 4: transfer between class halves",
    plan,
    measure,
    (
        Row("accuracy on unseen classes, points", "transfer", "ACN", "Aligned", 1,
            (85.38, 82.9), 100),
        Row("accuracy on unseen classes, points", "transfer", "ACN", "LayerSkip", 1,
            (85.38, 79.0), 100),
    ),
    "from classes 0-4 to 5-9 of CIFAR-10 in the place of CIFAR-100 to CIFAR-10, by linear probes "
    "of 1,000 images on the frozen networks",
)  # fmt: skip
