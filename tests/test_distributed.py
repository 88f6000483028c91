"""DistributedDataParallel: two processes over gloo give the gradients of one."""

from __future__ import annotations

import datetime
import os
import time

import pytest
import torch
import torch.distributed as dist
from layers import Shift, make_norm
from tolerances import assert_close
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from acn_kernels import FusedACNStack
from acn_kernels.blocks import TransformerBlock

PROCESSES = 2
SECONDS = 120  # on a busy machine; some 8 are enough
VARIANTS = {
    "plain": {},
    "learned-scales": {"scales": "learned"},
    "first-row": {"rows": "first"},
    "alpha-0.5": {"alpha": 0.5},
    "direct-gradient-only": {"direct_gradient_only": True},
    "checkpoint": {"checkpoint": True},
    "torch-backend": {"backend": "torch"},
}


def build(variant):
    torch.manual_seed(17)
    layers = [TransformerBlock(8, 2), Shift(8), TransformerBlock(8, 2)]
    return FusedACNStack(layers, make_norm("layernorm", 8), **VARIANTS[variant]).double()


def batch():
    return torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(5)).double()


def gradients_of(network, x):
    """Two steps' worth: the second runs on the buckets that DDP rebuilt after the first."""
    for _ in range(2):
        network.zero_grad()
        network(x).square().mean().backward()
    return [p.grad.clone() for p in network.parameters()]


def worker(rank, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES,
        timeout=datetime.timedelta(seconds=SECONDS / 2),
    )  # fmt: skip
    x = batch().chunk(PROCESSES)[rank]
    found = {name: gradients_of(DistributedDataParallel(build(name)), x) for name in VARIANTS}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The gradients by process and variant; one pair of processes for all of them."""
    folder = tmp_path_factory.mktemp("ddp")
    processes = multiprocessing.spawn(worker, (str(folder),), PROCESSES, join=False)
    deadline = time.monotonic() + SECONDS
    while not processes.join(timeout=1):  # raises as soon as one of them fails
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            pytest.fail(f"the processes are not done after {SECONDS} s")
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_one_process(found, variant):
    stack = build(variant)
    truth = gradients_of(stack, batch())
    assert all(isinstance(gradient, torch.Tensor) for gradient in truth)
    names = [name for name, _ in stack.named_parameters()]
    for rank in range(PROCESSES):
        for name, got, true in zip(names, found[rank][variant], truth, strict=True):
            assert_close(got, true, name=f"{name} in process {rank}", among=0.01)


def test_the_cases_have_gradients_to_compare(found):
    for gradients in found[0].values():
        assert sum(float(g.abs().sum()) for g in gradients) > 0.1
    assert isinstance(build("plain"), nn.ModuleList)
