"""Fig. 1 and 2: who compresses itself, and where the gradients go."""

from benchmarks.paper import measures
from benchmarks.paper.sizes import training
from benchmarks.paper.spec import PRESETS, Experiment, Plan, Row

EPOCHS = {"smoke": 2, "small": 8, "medium": 15, "brief": 30, "paper": 100}
# The paper's text has no step that closes a block, its authors' code has: both are ACNs.
CLOSING = "ACN, closing step"
ACNS = ("ACN", CLOSING)
NETWORKS = {
    "feed-forward": {"wiring": "feedforward"},
    "residual": {"wiring": "residual"},
    "ACN": {"wiring": "acn"},
    CLOSING: {"wiring": "acn", "closing": True},
    "DG-only ACN": {"wiring": "dg_only"},
}


def plan(preset):
    return Plan({
        name: training(preset, epochs=EPOCHS, track=True, **network)
        for name, network in NETWORKS.items()
    })  # fmt: skip


def measure(context, plan, name):
    trained, data = context.trained(plan.trainings[name]), context.data(plan.trainings[name].data)
    return {
        **measures.depth_profile(trained.model, data.test),
        "linear_probe_by_depth": measures.linear_probes(trained.model, data),
        "accuracy_by_epoch_and_depth": trained.accuracy_by_depth,
        **measures.gradient_profile(trained, data.train),
    }


def _rows(acn):
    return (
        Row("accuracy lost at half depth, points", "half_drop", acn, "residual", -1, None, 100),
        Row("layers used, %", "depth_used", acn, "residual", -1, None, 100),
        Row("DG/FG of the lower half", "early_dg_fg", acn, "residual", 1),
        Row("gradient in the lower half, %", "early_gradient", acn, "residual", 1, None, 100),
    )


EXPERIMENT = Experiment(
    "fig1_2",
    "Fig. 1 and 2: sub-networks and gradients of a Mixer on CIFAR-10",
    plan,
    measure,
    (
        *(row for acn in ACNS for row in _rows(acn)),
        Row("accuracy lost at half depth, points", "half_drop", "ACN", "feed-forward", -1, None,
            100),
        Row("accuracy lost at half depth, points", "half_drop", "DG-only ACN", "residual", -1, None,
            100),
        Row("accuracy, points", "accuracy", "ACN", "DG-only ACN", 1, None, 100),
    ),
    "blocks as in the paper's text, but for the ACN whose blocks have the closing step of the "
    "authors' code",
    presets=PRESETS,
)  # fmt: skip
