"""FSDP2 around a model: what it runs, what it refuses, and what it saves."""

from __future__ import annotations

import functools
import os

import pytest
import torch
import torch.distributed as dist
from processes import results_of
from torch import nn
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from acn_kernels import EarlyExit
from acn_kernels.models import Model, create


def model(name: str = "acn_vit_digits") -> Model:
    torch.manual_seed(1)
    network = create(name, depth=3)
    nn.init.normal_(network.head.weight)
    return network.eval()


def sharded(name: str = "acn_vit_digits", **options) -> Model:
    network = model(name)
    for block in network.blocks:
        fully_shard(block, **options)
    fully_shard(network, **options)
    register_fsdp_forward_method(network, "logits_by_depth")
    return network


def images() -> torch.Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def logits(network: Model) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {
            "full": network(images()),
            "at depth 2": network(images(), depth=2),
            "by depth": network.logits_by_depth(images()),
            "truncated": network.truncate(2)(images()),
            "without exits": EarlyExit(network, [], 0.0)(images()).logits,
        }


def what_exits_say() -> str:
    try:
        EarlyExit(sharded(), [1, 2], 0.5)(images())
    except ValueError as error:
        return str(error)
    return "nothing"


def bfloat16_dtypes() -> list[torch.dtype]:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    network = sharded(mp_policy=policy).train()
    out = network(images())
    out.float().square().mean().backward()
    return [out.dtype, network.blocks[0].attn.qkv.weight.grad.dtype]


def work(folder: str, rank: int) -> dict:
    network = sharded()
    network.save_pretrained(f"{folder}/full")
    network.truncate(2).save_pretrained(f"{folder}/cut")
    for depth in (1, 3, 2):  # steps of several depths, as stochastic depth has them
        sharded().train()(images(), depth=depth).sum().backward()
    dist.barrier()
    return {
        "vit": logits(network),
        "mixer": logits(sharded("acn_mixer_digits")),
        "exits": what_exits_say(),
        "bf16": bfloat16_dtypes(),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def found(folder):
    return results_of(functools.partial(work, str(folder)), folder)


@pytest.mark.parametrize("name", ["vit", "mixer"])
def test_every_part_runs_as_unsharded(found, name):
    truth = logits(model(f"acn_{name}_digits"))
    # A model that is whole leaves in the engine, whose products add in an order of their own.
    truth["without exits"] = truth["full"]
    for rank in (0, 1):
        for way, expected in truth.items():
            torch.testing.assert_close(found[rank][name][way], expected, rtol=1e-6, atol=1e-6)


def test_exits_are_refused_with_the_reason(found):
    for rank in (0, 1):
        assert "exits is [1, 2] and FSDP shards the model" in found[rank]["exits"]
        assert "waiting" in found[rank]["exits"]


def test_exits_of_a_whole_model_work():
    assert EarlyExit(model(), [1, 2], 0.5)(images()).logits.shape == (4, 10)


def test_saved_are_the_same_bytes(found, folder, tmp_path):
    model().save_pretrained(tmp_path / "full")
    model().truncate(2).save_pretrained(tmp_path / "cut")
    for way in ("full", "cut"):
        assert sorted(os.listdir(folder / way)) == ["config.json", "model.safetensors"]
        for name in os.listdir(folder / way):
            assert (folder / way / name).read_bytes() == (tmp_path / way / name).read_bytes()


def test_mixed_precision(found):
    assert found[0]["bf16"] == [torch.bfloat16, torch.float32]
