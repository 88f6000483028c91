"""The optional compiled extension: the one place that imports it."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

import torch

_module: ModuleType | None = None
_state = "not built (python setup.py build_ext --inplace builds it)"


def _load() -> None:
    global _module, _state
    try:
        module = importlib.import_module("acn_kernels._native")
    except ModuleNotFoundError:
        return
    except ImportError as error:  # another torch or Python: its symbols are not there
        _state = f"refused: it does not load with torch {torch.__version__} ({error})"
        warnings.warn(f"acn_kernels: compiled extension {_state}", stacklevel=2)
        return
    if module.torch_version != torch.__version__.split("+")[0]:
        _state = f"refused: built for torch {module.torch_version}, this is {torch.__version__}"
        warnings.warn(f"acn_kernels: compiled extension {_state}", stacklevel=2)
        return
    _module, _state = module, f"loaded, built for torch {module.torch_version}"


_load()


def module() -> ModuleType | None:
    """The extension, or None where it is missing or was built for another torch."""
    return _module


def state() -> str:
    """One line: loaded, not built, or refused and why."""
    return _state
