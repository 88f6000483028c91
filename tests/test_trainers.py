"""The training loops that people have: optimisers, autocast, accumulation, and three trainers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from timm_models import define_torchvision_schemas
from tolerances import assert_close
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.utils.data import DataLoader, TensorDataset

from acn_kernels import FusedACNStack
from acn_kernels.blocks import MixerBlock, TransformerBlock
from acn_kernels.models import Model, create

NAMES = ("acn_vit_digits", "acn_mixer_digits")
BLOCKS = {"transformer": lambda: TransformerBlock(8, 2), "mixer": lambda: MixerBlock(3, 8, 5, 7)}


define_torchvision_schemas()  # transformers and Lightning import torchvision where it is installed


def small(name: str = "acn_mixer_digits") -> Model:
    return create(name, depth=2)


def samples(count: int = 32) -> TensorDataset:
    return TensorDataset(torch.randn(count, 1, 8, 8), torch.randint(10, (count,)))


def loss_of(model: nn.Module, batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def trained(model, data, optimizer, batch_size=8) -> dict[str, torch.Tensor]:
    """The plain loop: one epoch in the order of the data."""
    for batch in DataLoader(data, batch_size):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model.state_dict()


def assert_same_weights(got, truth, **kwargs):
    for (name, weight), true in zip(got.items(), truth.values(), strict=True):
        torch.testing.assert_close(weight, true, rtol=1e-6, atol=1e-6, msg=name, **kwargs)


OPTIONS = [
    {}, {"alpha": 0.5}, {"rows": "first"}, {"scales": "learned"},
    {"granularity": "sublayer", "alpha": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", BLOCKS)
def test_torchs_wrapper_for_activation_checkpointing(kind, options):
    """It calls a layer once more in the backward pass, with the arguments of the first time."""
    stack = FusedACNStack([BLOCKS[kind]() for _ in range(3)], nn.LayerNorm(8), **options).double()
    twin = copy.deepcopy(stack)
    kinds = (TransformerBlock, MixerBlock)
    apply_activation_checkpointing(twin, check_fn=lambda module: isinstance(module, kinds))
    x = torch.randn(2, 3, 8).double()
    losses = [network(x).square().mean() for network in (stack, twin)]
    for _ in range(2):  # a second backward pass runs it a third time
        truth, got = (
            torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
            for loss, network in zip(losses, (stack, twin), strict=True)
        )
        for one, true in zip(got, truth, strict=True):
            assert_close(one, true, among=0.01)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (torch.optim.AdamW, {"lr": 1e-3}),
        (torch.optim.Adam, {"lr": 1e-3}),
        (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_fused_optimisers(name, make, options):
    model, data = small(name).double(), samples()
    data.tensors = (data.tensors[0].double(), data.tensors[1])
    twin = copy.deepcopy(model)
    fused = trained(model, data, make(model.parameters(), fused=True, **options))
    plain = trained(twin, data, make(twin.parameters(), foreach=False, **options))
    assert_same_weights(fused, plain)


@pytest.mark.parametrize("name", NAMES)
def test_accumulated_gradients_are_those_of_the_batch(name):
    model, (images, labels) = small(name).double(), samples(8).tensors
    nn.init.normal_(model.head.weight)
    images = images.double()
    whole = torch.autograd.grad(loss_of(model, (images, labels)), list(model.parameters()))
    for part in zip(images.split(2), labels.split(2), strict=True):
        (loss_of(model, part) / 4).backward()
    for parameter, true in zip(model.parameters(), whole, strict=True):
        assert_close(parameter.grad, true, roundings=10, among=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_autocast_in_training(name):
    """Parameters, their gradients and the loss stay fp32; the gradients are those of fp32."""
    model, batch = small(name), samples(8).tensors
    nn.init.normal_(model.head.weight)
    truth = torch.autograd.grad(loss_of(model, batch), list(model.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, batch)
    assert loss.dtype == torch.float32
    loss.backward()
    largest = max(true.abs().max() for true in truth)  # some vanish, but for their rounding
    for (key, parameter), true in zip(model.named_parameters(), truth, strict=True):
        assert parameter.grad.dtype == torch.float32
        error = (parameter.grad - true).abs().max() / largest
        assert error < 8 * 2**-8, f"{key}: {error}"


def test_accelerate():
    accelerate = pytest.importorskip("accelerate", reason="the loop is accelerate's")
    model, data = small(), samples()
    twin = copy.deepcopy(model)
    truth = trained(twin, data, torch.optim.SGD(twin.parameters(), 0.1), batch_size=8)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    network, optimizer, batches = accelerator.prepare(
        model, torch.optim.SGD(model.parameters(), 0.1), DataLoader(data, 4)
    )
    for batch in batches:
        with accelerator.accumulate(network):
            accelerator.backward(loss_of(network, batch))
            optimizer.step()
            optimizer.zero_grad()
    assert_same_weights(accelerator.get_state_dict(network), truth)


class WithLoss(nn.Module):
    """What Hugging Face's Trainer takes: a model that returns its loss."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images, labels):
        logits = self.model(images)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def test_hugging_face_trainer(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the loop is its Trainer")
    pytest.importorskip("accelerate", reason="the Trainer stands on it")
    model, data = small(), samples()
    twin = copy.deepcopy(model)
    truth = trained(twin, data, torch.optim.SGD(twin.parameters(), 0.1))

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = transformers.TrainingArguments(
        tmp_path, per_device_train_batch_size=8, num_train_epochs=1, use_cpu=True, report_to=[],
        optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", max_grad_norm=0.0,
        save_strategy="epoch", disable_tqdm=True,
    )  # fmt: skip
    rows = [{"images": image, "labels": label} for image, label in data]
    trainer = InOrder(WithLoss(model), arguments, train_dataset=rows)
    trainer.train()
    assert_same_weights(model.state_dict(), truth)
    assert trainer.predict(rows[:3]).predictions.shape == (3, 10)
    assert list(tmp_path.glob("checkpoint-*/model.safetensors"))


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning", reason="the loop is Lightning's")
    model, data = small(), samples()
    twin = copy.deepcopy(model)
    truth = trained(twin, data, torch.optim.SGD(twin.parameters(), 0.1))

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, _):
            return loss_of(self.model, batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Task(), DataLoader(data, 8))
    assert_same_weights(model.state_dict(), truth)
    assert list(tmp_path.glob("**/*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiled_training(name):
    model, data = small(name).double(), samples()
    data.tensors = (data.tensors[0].double(), data.tensors[1])
    twin = copy.deepcopy(model)
    truth = trained(twin, data, torch.optim.SGD(twin.parameters(), 0.1))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    trained(compiled, data, torch.optim.SGD(compiled.parameters(), 0.1))
    assert_same_weights(model.state_dict(), truth)
