"""The same network through other people's compilers and runtimes; each compiles at its first call,
so that its first-call time holds all of that."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.utils import cpp_extension

from benchmarks.throughput.case import Missing, Setting, Way

_WITH_CUDA_GRAPHS = ("max-autotune", "reduce-overhead")
_left_out: str | None = None


@contextmanager
def without_compilers(why: str | None) -> Iterator[None]:
    """Inside, ways that have yet to be compiled are Missing because of ``why`` (None: they
    are not)."""
    global _left_out
    before, _left_out = _left_out, why
    try:
        yield
    finally:
        _left_out = before


def _require_leave_to_compile() -> None:
    if _left_out is not None:
        raise Missing(_left_out)


def lazily(make: Callable[[], Callable]) -> Callable:
    """What ``make`` returns, made at the first call."""
    made = None

    def call(*args):
        nonlocal made
        if made is None:
            made = make()
        return made(*args)

    return call


def imported(module: str) -> ModuleType:
    """The module, or Missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Missing(f"{module.partition('.')[0]} cannot be imported: {error}") from error


def compiled(function: Callable, setting: Setting, mode: str = "default") -> Callable:
    """``torch.compile`` of a module or function, one graph with fixed shapes.

    A tiny run on a CPU captures the graphs and leaves out the code generation, which takes a
    hundred times as long as everything else in such a run.
    """

    def make() -> Callable:
        _require_leave_to_compile()
        if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
            raise Missing("torch.compile is switched off by TORCH_COMPILE_DISABLE")
        if not setting.on_gpu and mode in _WITH_CUDA_GRAPHS:
            raise Missing(f"{mode} tunes for GPUs")
        if setting.tiny and not setting.on_gpu:
            return torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)
        _require_compiler(setting)
        made = torch.compile(function, mode=mode, fullgraph=True, dynamic=False)
        return _marking_steps(made) if mode in _WITH_CUDA_GRAPHS else made

    return lazily(make)


def _marking_steps(function: Callable) -> Callable:
    def call(*args):
        torch.compiler.cudagraph_mark_step_begin()
        return function(*args)

    return call


def _require_compiler(setting: Setting) -> None:
    compiler = cpp_extension.get_cxx_compiler()
    if shutil.which(compiler) is None:
        raise Missing(f"torch.compile needs a C++ compiler; there is no {compiler}")
    if setting.on_gpu and importlib.util.find_spec("triton") is None:
        raise Missing("torch.compile needs Triton on a GPU")


def graphed(network: nn.Module, x: Tensor, setting: Setting) -> Way:
    """The eager kernels of an inference, recorded once as a CUDA graph and replayed."""

    @torch.no_grad()
    def make() -> Way:
        if not setting.on_gpu:
            raise Missing("CUDA graphs need a GPU")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries allocate their workspaces before the recording
                network(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = network(x)

        def replay() -> Tensor:
            graph.replay()
            return y

        return replay

    return lazily(make)


def ahead_of_time(network: nn.Module, x: Tensor, setting: Setting) -> Way:
    """An AOTInductor package, for a CPU with its weights packed once, without which it takes up to
    twice as long; a tiny run on a CPU runs the exported program it would be made of."""

    @torch.no_grad()
    def make() -> Way:
        _require_leave_to_compile()
        exported = torch.export.export(network, (x,))
        if setting.tiny and not setting.on_gpu:
            runner = exported.module()
        else:
            _require_compiler(setting)
            with tempfile.TemporaryDirectory() as folder:
                package = torch._inductor.aoti_compile_and_package(
                    exported,
                    package_path=str(Path(folder) / "network.pt2"),
                    inductor_configs={"freezing": not setting.on_gpu},
                )
                runner = torch._inductor.aoti_load_package(package)
        return torch.no_grad()(lambda: runner(x))

    return lazily(make)


def onnx_runtime(network: nn.Module, x: Tensor, setting: Setting) -> Way:
    """ONNX Runtime, on the device that x is on."""

    @torch.no_grad()
    def make() -> Way:
        _require_leave_to_compile()
        runtime = imported("onnxruntime")
        imported("onnxscript")
        provider = "CUDAExecutionProvider" if setting.on_gpu else "CPUExecutionProvider"
        if provider not in runtime.get_available_providers():
            raise Missing(f"this onnxruntime has no {provider}")
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "network.onnx")
            torch.onnx.export(network, (x,), file, dynamo=True, verbose=False)
            options = runtime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            # Else its threads spin on after a call, on cores that the next way is timed on.
            options.add_session_config_entry("session.force_spinning_stop", "1")
            session = runtime.InferenceSession(file, options, providers=[provider])
        return _bound(session, x, torch.empty_like(network(x)))

    return lazily(make)


def _bound(session, x: Tensor, y: Tensor) -> Way:
    """Runs a session from the memory of x into that of y, so that nothing is copied."""
    binding = session.io_binding()
    x = x.contiguous()
    device = x.device.type, x.device.index or 0
    element = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}[x.dtype]  # TensorProto
    source, target = session.get_inputs()[0].name, session.get_outputs()[0].name
    binding.bind_input(source, *device, element, tuple(x.shape), x.data_ptr())
    binding.bind_output(target, *device, element, tuple(y.shape), y.data_ptr())

    def run() -> Tensor:
        binding.synchronize_inputs()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        _ = x  # the session knows an address only: the tensor must live as long as it does
        return y

    return run
