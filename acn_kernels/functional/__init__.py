"""The operations of an ACN, validated and documented; their truth is acn_kernels.reference."""

from acn_kernels.functional.long_connection import (
    Term,
    accumulate_norm,
    fork,
    join,
    norm,
    tap,
)

__all__ = ["Term", "accumulate_norm", "fork", "join", "norm", "tap"]
