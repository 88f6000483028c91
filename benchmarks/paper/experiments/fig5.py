"""Fig. 5: BERT on SST-2 with a quarter of its layers."""

from benchmarks.paper import measures
from benchmarks.paper.sizes import twins
from benchmarks.paper.spec import Experiment, Plan, fewer_layers

EPOCHS = {  # twice as many for the ACN, as in the paper's pre-training
    "residual": {"smoke": 2, "small": 4, "paper": 10},
    "ACN": {"smoke": 4, "small": 8, "paper": 20},
}
LR = {"smoke": 3e-3, "small": 1e-3, "paper": 1e-4}


def plan(preset):
    return Plan(twins(preset, EPOCHS, family="bert", lr=LR))


EXPERIMENT = Experiment(
    "fig5",
    "Fig. 5: BERT on SST-2 with a quarter of its layers",
    plan,
    measures.profile,
    fewer_layers((86.68, 86.63), (25, 100)),
    "trained from nothing on the 6,920 sentences of SST-2, words for tokens, and judged on its "
    "development set: the paper's pre-training on books and Wikipedia is left out, and with it "
    "QQP and QNLI",
)
