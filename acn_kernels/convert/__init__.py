"""Residual models turned into their ACN twins, one adapter for each type of block."""

from acn_kernels.convert import known as _known  # noqa: F401  (registers the adapters)
from acn_kernels.convert.adapters import PostNorm, PreNorm
from acn_kernels.convert.anneal import Annealing, anneal
from acn_kernels.convert.conversion import convert
from acn_kernels.convert.registry import known, register

# acn.convert is the function; what belongs to it is found there.
convert.register, convert.known = register, known
convert.PreNorm, convert.PostNorm = PreNorm, PostNorm

__all__ = ["Annealing", "PostNorm", "PreNorm", "anneal", "convert", "known", "register"]
