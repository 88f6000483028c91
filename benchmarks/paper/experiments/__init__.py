"""One file for each experiment, and the list of them all."""

from benchmarks.paper.experiments import (
    cheaper,
    fig1_2,
    fig3,
    fig4,
    fig5,
    fig6,
    fig7,
    pretrained,
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
        fig5.EXPERIMENT,
        fig6.EXPERIMENT,
        fig7.EXPERIMENT,
        table2.EXPERIMENT,
        table3.CIFAR10,
        table3.FASHION_MNIST,
        *table3.CIFAR100,
        table4.EXPERIMENT,
        table5.EXPERIMENT,
        table7.EXPERIMENT,
        cheaper.EXPERIMENT,
        cheaper.VIT_EXPERIMENT,
        pretrained.TEXT_EXPERIMENT,
        pretrained.IMAGE_EXPERIMENT,
    )
}

# What the paper shows and this runner does not repeat, with the reason.
NOT_RUN = {
    "Fig. 5: BERT on QQP and QNLI": "their data are not at hand",
}
