"""Fig. 3: the full accuracy of a ViT with half its layers."""

from benchmarks.paper import measures
from benchmarks.paper.sizes import twins
from benchmarks.paper.spec import Experiment, Plan, fewer_layers

EPOCHS = {
    "residual": {"smoke": 2, "small": 6, "paper": 300},
    "ACN": {"smoke": 2, "small": 14, "paper": 700},
}


def plan(preset):
    return Plan(twins(preset, EPOCHS, family="vit", batch={"paper": 256}))


EXPERIMENT = Experiment(
    "fig3",
    "Fig. 3: a ViT with half its layers",
    plan,
    measures.profile,
    fewer_layers((70.76, 70.74), (50, 100)),
    "ViT-Ti/4 on CIFAR-10 in the place of ViT-B/16 on ImageNet-1K; epochs 300 and 700 as there",
)
