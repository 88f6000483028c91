"""One file for each experiment, and the list of them all."""

from benchmarks.paper.experiments import (
    cheaper,
    fig1_2,
    fig3,
    fig4,
    fig6,
    table2,
    table3,
    table4,
    table5,
    table7,
)
from benchmarks.paper.spec import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        fig1_2.EXPERIMENT,
        fig3.EXPERIMENT,
        fig4.EXPERIMENT,
        fig6.EXPERIMENT,
        table2.EXPERIMENT,
        table3.CIFAR10,
        table3.FASHION_MNIST,
        *table3.CIFAR100,
        table4.EXPERIMENT,
        table5.EXPERIMENT,
        table7.EXPERIMENT,
        cheaper.EXPERIMENT,
    )
}

# What the paper shows and this runner does not repeat, with the reason.
NOT_RUN = {
    "Fig. 5: BERT on GLUE": "needs the BERT model",
    "Fig. 7: pruning BERT on SST-2": "needs the BERT model",
}
