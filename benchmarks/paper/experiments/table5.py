"""Table 5: against the other wirings that reach back over many layers."""

from benchmarks.paper import measures
from benchmarks.paper.experiments import fig1_2
from benchmarks.paper.sizes import layers, training
from benchmarks.paper.spec import PRESETS, Experiment, Plan, Row

EPOCHS = {**fig1_2.EPOCHS, "paper": 700}


def plan(preset):
    # But for the paper's epochs these are the networks of Fig. 1-2, and so tracked as there.
    shared = {
        name: training(preset, epochs=EPOCHS, track=preset != "paper", **fig1_2.NETWORKS[name])
        for name in ("residual", *fig1_2.ACNS)
    }
    few = {"smoke": layers(preset), "small": 5, "medium": 5, "brief": 10, "paper": 10}[preset]
    return Plan({
        **shared,
        "DenseNet": training(preset, "densenet", EPOCHS, depth=few),
        "DenseFormer": training(preset, "denseformer", EPOCHS),
    })  # fmt: skip


def _rows(acn, against, accuracy):
    return (
        Row("accuracy, points", "accuracy", acn, against, 1, (92.0, accuracy), 100),
        Row("layers used, %", "depth_used", acn, against, -1, (75, 100), 100),
    )


PAPER = {"residual": 90.3, "DenseNet": 90.3, "DenseFormer": 90.4}
EXPERIMENT = Experiment(
    "table5",
    "Table 5: residual, DenseNet-style, DenseFormer-style and ACN Mixers",
    plan,
    measures.profile,
    tuple(
        row
        for acn in fig1_2.ACNS
        for network in PAPER
        for row in _rows(acn, network, PAPER[network])
    ),
    "blocks as in Fig. 1-2",
    presets=PRESETS,
)
