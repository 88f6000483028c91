"""Fig. 3: the full accuracy of a ViT with half its layers."""

from benchmarks.paper import measures
from benchmarks.paper.sizes import training
from benchmarks.paper.spec import Experiment, Plan, Row

EPOCHS = {
    "residual": {"smoke": 2, "small": 6, "paper": 300},
    "ACN": {"smoke": 2, "small": 14, "paper": 700},
}


def plan(preset):
    return Plan({
        name: training(preset, wiring, EPOCHS[name], family="vit", batch={"paper": 256})
        for name, wiring in (("residual", "residual"), ("ACN", "acn"))
    })  # fmt: skip


def measure(context, plan, name):
    training = plan.trainings[name]
    return measures.depth_profile(context.trained(training).model, context.data(training.data).test)


EXPERIMENT = Experiment(
    "fig3",
    "Fig. 3: a ViT with half its layers",
    plan,
    measure,
    (
        Row("accuracy, points", "accuracy", "ACN", "residual", 0, (70.76, 70.74), 100),
        Row("share of layers used, %", "depth_used", "ACN", "residual", -1, (50, 100), 100),
        Row("accuracy lost at half depth, points", "half_drop", "ACN", "residual", -1, None, 100),
    ),
    "ViT-Ti/4 on CIFAR-10 in the place of ViT-B/16 on ImageNet-1K; epochs 300 and 700 as there",
)
