"""Running less than the whole network: probing sub-networks, choosing a depth, leaving early."""

import importlib

from acn_kernels.inference.calibrate import Calibration, calibrate
from acn_kernels.inference.calibration import cutoff_depth, exit_threshold
from acn_kernels.inference.early_exit import EarlyExit, ExitResult, entropy
from acn_kernels.inference.engine import Engine, EngineResult
from acn_kernels.inference.engine_text import text_batch
from acn_kernels.inference.export import export
from acn_kernels.inference.probe import probe, probe_logits
from acn_kernels.inference.program import export_onnx, exported_program
from acn_kernels.inference.truncation import truncate

__all__ = [
    "Calibration",
    "EarlyExit",
    "Engine",
    "EngineResult",
    "ExitResult",
    "calibrate",
    "cutoff_depth",
    "entropy",
    "exit_threshold",
    "export",
    "export_onnx",
    "exported_program",
    "probe",
    "probe_logits",
    "text_batch",
    "truncate",
]


def __getattr__(name: str):
    if name == "EarlyExitGPT":  # on first use: transformers is an extra
        return importlib.import_module("acn_kernels.inference.early_exit_gpt").EarlyExitGPT
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
