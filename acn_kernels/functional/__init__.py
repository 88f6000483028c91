"""The operations of an ACN, validated and documented; their truth is acn_kernels.reference."""

from acn_kernels.functional.bias_gelu import bias_gelu
from acn_kernels.functional.exits import ExitDecision, compact, entropy, exit_head
from acn_kernels.functional.linear_stack import linear_stack, obstacle_to_linear_stack
from acn_kernels.functional.long_connection import (
    Term,
    accumulate_norm,
    fork,
    join,
    norm,
    tap,
)
from acn_kernels.functional.mixer_exit import MixerExits, mixer_exit
from acn_kernels.functional.mixer_stack import (
    MixerParameters,
    is_mixer_block,
    mixer_stack,
    obstacle_to_mixer_stack,
)

__all__ = [
    "ExitDecision",
    "MixerExits",
    "MixerParameters",
    "Term",
    "accumulate_norm",
    "bias_gelu",
    "compact",
    "entropy",
    "exit_head",
    "fork",
    "is_mixer_block",
    "join",
    "linear_stack",
    "mixer_exit",
    "mixer_stack",
    "norm",
    "obstacle_to_linear_stack",
    "obstacle_to_mixer_stack",
    "tap",
]
