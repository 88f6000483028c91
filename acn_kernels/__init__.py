"""Fused kernels for Auto-Compressing Networks (arXiv 2506.09714)."""

from acn_kernels import functional, models, reference
from acn_kernels.analysis import gradients
from acn_kernels.convert import anneal, convert
from acn_kernels.explain import explain
from acn_kernels.inference import EarlyExit, Engine, calibrate, probe, truncate
from acn_kernels.norm_spec import NormSpec
from acn_kernels.stack import FusedACNStack

__version__ = "0.1.0"

__all__ = [
    "EarlyExit",
    "Engine",
    "FusedACNStack",
    "NormSpec",
    "anneal",
    "calibrate",
    "convert",
    "explain",
    "functional",
    "gradients",
    "models",
    "probe",
    "reference",
    "truncate",
]
