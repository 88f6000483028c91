"""Fig. 5: BERT on SST-2 with a quarter of its layers."""

from benchmarks.paper import measures
from benchmarks.paper.sizes import training
from benchmarks.paper.spec import Experiment, Plan, Row

EPOCHS = {  # twice as many for the ACN, as in the paper's pre-training
    "residual": {"smoke": 2, "small": 4, "paper": 10},
    "ACN": {"smoke": 4, "small": 8, "paper": 20},
}
LR = {"smoke": 3e-3, "small": 1e-3, "paper": 1e-4}


def plan(preset):
    return Plan({
        name: training(preset, wiring, EPOCHS[name], family="bert", lr=LR)
        for name, wiring in (("residual", "residual"), ("ACN", "acn"))
    })  # fmt: skip


def measure(context, plan, name):
    training = plan.trainings[name]
    return measures.depth_profile(context.trained(training).model, context.data(training.data).test)


EXPERIMENT = Experiment(
    "fig5",
    "Fig. 5: BERT on SST-2 with a quarter of its layers",
    plan,
    measure,
    (
        Row("accuracy, points", "accuracy", "ACN", "residual", 0, (86.68, 86.63), 100),
        Row("share of layers used, %", "depth_used", "ACN", "residual", -1, (25, 100), 100),
        Row("accuracy lost at half depth, points", "half_drop", "ACN", "residual", -1, None, 100),
    ),
    "trained from nothing on the 6,920 sentences of SST-2, words for tokens, and judged on its "
    "development set: the paper's pre-training on books and Wikipedia is left out, and with it "
    "QQP and QNLI",
)
