"""Running less than the whole network: probing sub-networks, choosing a depth, leaving early."""

from acn_kernels.inference.calibration import cutoff_depth, exit_threshold
from acn_kernels.inference.early_exit import EarlyExit, ExitResult, entropy
from acn_kernels.inference.engine import Engine, EngineResult
from acn_kernels.inference.export import export
from acn_kernels.inference.probe import probe, probe_logits
from acn_kernels.inference.program import export_onnx, exported_program
from acn_kernels.inference.truncation import truncate

__all__ = [
    "EarlyExit",
    "Engine",
    "EngineResult",
    "ExitResult",
    "cutoff_depth",
    "entropy",
    "exit_threshold",
    "export",
    "export_onnx",
    "exported_program",
    "probe",
    "probe_logits",
    "truncate",
]
