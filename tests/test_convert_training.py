"""Annealing alpha in training, cutting, saving, and two processes."""

from __future__ import annotations

import copy
import datetime
import os
import time

import pytest
import torch
import torch.distributed as dist
from residual_case import loop, post_norm_network, pre_norm_network
from residual_hf import import_transformers
from residual_models import build
from tolerances import assert_close
from torch import multiprocessing, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import acn_kernels as acn

CUT = ["timm-vit", "timm-mixer", "torch-pre-norm", "torch-post-norm", "hf-bert", "hf-distilbert",
       "hf-gpt2", "hf-llama", "hf-vit"]  # fmt: skip


@pytest.mark.parametrize(
    "schedule", [(0.0, 1.0, 0.5), lambda p: min(1.0, 2 * p)], ids=["numbers", "function"]
)
def test_the_schedule_in_the_papers_trials(schedule):
    """alpha 0 to 1 over the first half, then 1."""
    stack = acn.FusedACNStack([nn.Linear(4, 4) for _ in range(2)])
    annealing = acn.anneal(stack, schedule)
    assert stack.alpha == 0.0
    for progress, alpha in ((0.1, 0.2), (0.25, 0.5), (0.5, 1.0), (0.8, 1.0), (1.0, 1.0)):
        assert annealing.step(progress) == pytest.approx(alpha)
        assert stack.alpha == pytest.approx(alpha)


def test_a_schedule_over_nothing_is_its_end():
    assert acn.anneal(acn.FusedACNStack([nn.Linear(4, 4)]), (0.0, 0.7, 0.0)).step(0.0) == 0.7


@pytest.mark.parametrize("name", ["timm-vit", "hf-bert", "torch-pre-norm"])
def test_training_while_annealing(name):
    """Steps on a converted model are steps on the plain loop, alpha moving in both."""
    case, model, inputs = build(name)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 0.5, 0.1)
    twin = acn.convert(model)
    annealing = acn.anneal(nn.ModuleList([twin]), (0.0, 1.0, 0.6))
    mine = torch.optim.SGD(twin.parameters(), 1e-2)
    others = torch.optim.SGD(model.parameters(), 1e-2)
    for step in range(6):
        alpha = annealing.step(step / 5)
        for optimiser, output in (
            (mine, lambda: case.output(twin(**inputs))),
            (others, lambda alpha=alpha: loop(case, model, inputs, alpha, "block")),
        ):
            optimiser.zero_grad()
            output().square().mean().backward()
            optimiser.step()
    assert alpha == 1.0
    truths = dict(model.named_parameters())
    for key, parameter in twin.named_parameters():
        assert_close(parameter, truths[key], roundings=20, among=1.0, name=key)


@pytest.mark.parametrize("alpha", [0.0, 0.37, 1.0])
@pytest.mark.parametrize("name", CUT)
def test_a_cut_model_is_its_sub_network(name, alpha):
    case, model, inputs = build(name)
    twin = acn.convert(model, alpha)
    before = case.output(twin(**inputs))
    x = case.start(model, **inputs)
    network = post_norm_network if case.post else pre_norm_network
    sums = network(case.blocks(model, x, **inputs), x, alpha, "block")
    for k in (1, 2, 3):
        short = acn.truncate(twin, k)
        assert type(short) is type(twin)
        assert_close(case.output(short(**inputs)), case.finish(model, sums[k]))
        assert len(list(short.parameters())) < len(list(twin.parameters())) or k == 3
        shared = dict(twin.named_parameters())
        assert all(p is shared[key] for key, p in short.named_parameters())
    assert torch.equal(case.output(twin(**inputs)), before)
    acn.truncate(acn.truncate(twin, 2), 1)
    copy.deepcopy(acn.truncate(twin, 2))


@pytest.mark.parametrize("name", ["hf-bert", "hf-distilbert", "hf-gpt2", "hf-llama", "hf-vit"])
def test_saved_and_loaded_by_transformers(name, tmp_path):
    import_transformers()
    case, model, inputs = build(name)
    for depth in (3, 2):
        twin = acn.truncate(acn.convert(model, 1.0), depth).eval()
        twin.save_pretrained(tmp_path / str(depth))
        loaded = type(model).from_pretrained(tmp_path / str(depth), dtype=torch.float64)
        assert list(loaded.state_dict()) == list(twin.state_dict())
        again = acn.convert(loaded, 1.0).eval()
        assert torch.equal(case.output(again(**inputs)), case.output(twin(**inputs)))


PARALLEL = ["timm-vit", "hf-bert", "hf-gpt2", "torch-post-norm"]


def _parallel_case(name):
    torch.manual_seed(11)
    case, model, inputs = build(name)
    return case, acn.convert(model, 0.37), inputs


def _gradients(case, network, inputs):
    for _ in range(2):  # the second runs on the buckets that DDP rebuilt after the first
        network.zero_grad()
        case.output(network(**inputs)).square().mean().backward()
    named = {n.removeprefix("module."): p.grad for n, p in network.named_parameters()}
    full = {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in named.items()}
    return {name: gradient for name, gradient in full.items() if gradient is not None}


def _replicated(twin):
    return DistributedDataParallel(twin, find_unused_parameters=True)


def _sharded(twin):
    """FSDP2, every block a unit."""
    for module in list(twin.modules()):
        if hasattr(module, "_acn_chain"):
            fully_shard(module)
    return fully_shard(twin)


WRAPPERS = {"ddp": _replicated, "fsdp2": _sharded}


def _worker(rank, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )  # fmt: skip
    found = {}
    for kind, wrap in WRAPPERS.items():
        for name in PARALLEL:
            case, twin, inputs = _parallel_case(name)
            mine = {key: value[rank : rank + 1] for key, value in inputs.items()}
            found[kind, name] = _gradients(case, wrap(twin), mine)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    processes = multiprocessing.spawn(_worker, (str(tmp_path),), 2, join=False)
    deadline = time.monotonic() + 240
    while not processes.join(timeout=1):
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            pytest.fail("the processes are not done after 240 s")
    for name in PARALLEL:
        truth = _gradients(*_parallel_case(name))
        scale = max(float(gradient.abs().max()) for gradient in truth.values())
        for rank in range(2):
            for kind in WRAPPERS:
                found = torch.load(tmp_path / f"{rank}.pt")[kind, name]
                for key, gradient in truth.items():
                    assert_close(found[key], gradient, among=scale, roundings=4, name=key)
