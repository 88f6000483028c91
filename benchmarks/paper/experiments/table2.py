"""Table 2: accuracy under noise that training never saw."""

from benchmarks.paper import measures
from benchmarks.paper.experiments import fig1_2
from benchmarks.paper.spec import PRESETS, Experiment, Plan, Row

PAPER = {  # ACN, residual; ImageNet
    "gaussian 0.1": (69.50, 67.68),
    "gaussian 0.2": (64.54, 62.80),
    "gaussian 0.4": (51.89, 45.46),
    "salt and pepper 0.01": (59.80, 56.80),
    "salt and pepper 0.05": (36.35, 27.48),
    "salt and pepper 0.1": (19.98, 10.34),
}


def plan(preset):
    networks = fig1_2.plan(preset).trainings
    return Plan({name: networks[name] for name in ("residual", "ACN")})


def measure(context, plan, name):
    training = plan.trainings[name]
    model, data = context.trained(training).model, context.data(training.data)
    return measures.under_noise(model, data, context.seed)


EXPERIMENT = Experiment(
    "table2",
    "Table 2: noise",
    plan,
    measure,
    tuple(
        Row(f"accuracy, points, {level}", level, "ACN", "residual", 1, paper, 100)
        for level, paper in PAPER.items()
    ),
    "the networks of Fig. 1-2 on CIFAR-10 in the place of ViT-B/16 on ImageNet-1K",
    presets=PRESETS,
)
