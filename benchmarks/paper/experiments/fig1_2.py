"""Fig. 1 and 2: who compresses itself, and where the gradients go."""

from benchmarks.paper import measures
from benchmarks.paper.sizes import training
from benchmarks.paper.spec import Experiment, Plan, Row

EPOCHS = {"smoke": 2, "small": 8, "paper": 100}
NETWORKS = {
    "feed-forward": "feedforward",
    "residual": "residual",
    "ACN": "acn",
    "DG-only ACN": "dg_only",
}


def plan(preset):
    return Plan({
        name: training(preset, wiring, EPOCHS, track=True) for name, wiring in NETWORKS.items()
    })  # fmt: skip


def measure(context, plan, name):
    trained, data = context.trained(plan.trainings[name]), context.data(plan.trainings[name].data)
    return {
        **measures.depth_profile(trained.model, data.test),
        "linear_probe_by_depth": measures.linear_probes(trained.model, data),
        "accuracy_by_epoch_and_depth": trained.accuracy_by_depth,
        **measures.gradient_profile(trained, data.train),
    }


EXPERIMENT = Experiment(
    "fig1_2",
    "Fig. 1 and 2: sub-networks and gradients of a Mixer on CIFAR-10",
    plan,
    measure,
    (
        Row("accuracy lost at half depth, points", "half_drop", "ACN", "residual", -1, None, 100),
        Row("the same of the DG-only ACN", "half_drop", "DG-only ACN", "residual", -1, None, 100),
        Row("the same against feed-forward", "half_drop", "ACN", "feed-forward", -1, None, 100),
        Row("layers used, %", "depth_used", "ACN", "residual", -1, None, 100),
        Row("accuracy, points", "accuracy", "ACN", "DG-only ACN", 1, None, 100),
        Row("DG/FG of the lower half", "early_dg_fg", "ACN", "residual", 1),
        Row("gradient in the lower half, %", "early_gradient", "ACN", "residual", 1, None, 100),
    ),
    "blocks as in the paper's text, without the closing step of the authors' code",
)
