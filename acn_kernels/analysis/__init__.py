"""What a network's layers learn and contribute, what disturbs it, and what its parts cost."""

from acn_kernels.analysis.cost import Costs, costs, count_flops
from acn_kernels.analysis.gradients import GradientHistory, Gradients, gradients, gradients_by_step
from acn_kernels.analysis.noise import gaussian, noise_robustness, salt_and_pepper
from acn_kernels.analysis.results import Curves, Grid
from acn_kernels.analysis.similarity import cka, cka_by_depth
from acn_kernels.analysis.subnetworks import (
    contributions,
    contributions_over_training,
    effective_depth,
    features_by_depth,
    linear_probes,
    shared_head,
)

__all__ = [
    "Costs",
    "Curves",
    "GradientHistory",
    "Gradients",
    "Grid",
    "cka",
    "cka_by_depth",
    "contributions",
    "contributions_over_training",
    "costs",
    "count_flops",
    "effective_depth",
    "features_by_depth",
    "gaussian",
    "gradients",
    "gradients_by_step",
    "linear_probes",
    "noise_robustness",
    "salt_and_pepper",
    "shared_head",
]
