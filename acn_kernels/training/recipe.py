"""Training one classifier: on one process or, under torchrun or accelerate, on many."""

from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from acn_kernels.alpha_schedule import AlphaSchedule
from acn_kernels.files import check_writable, written_whole
from acn_kernels.inference.probe import right
from acn_kernels.models import PRESETS, ImageClassifier, ImageConfig, Model, create
from acn_kernels.training.batches import Share, ShuffledBatches, check_seed, loader
from acn_kernels.training.checkpoint import (
    CHECKPOINT_FILE,
    Checkpoint,
    random_states,
    set_random_states,
)
from acn_kernels.training.data import ImageData, Samples, load_images
from acn_kernels.training.losses import Loss, SharedHeadLoss, Step, final_loss, rising_weights
from acn_kernels.training.parameter_groups import decayed_apart
from acn_kernels.training.scheduled import ScheduledModel
from acn_kernels.training.schedules import GROWING, warmup_cosine
from acn_kernels.validation import check_size

LOG_FILE = "log.csv"
MODEL_FOLDER = "model"
_BAR_STEPS = 20

# What the training minimises, of a model of so many layers.
LOSSES = {
    "final": lambda layers: final_loss,
    "shared-head": lambda layers: SharedHeadLoss(rising_weights(layers)),
}

# What accelerate's launcher and configuration ask for by these variables, the recipe does not do.
_PARTED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM": "MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """AdamW, a warm-up over the first epoch (at most a tenth of the steps), then a cosine.

    data: what :func:`load_images` takes. model: a preset of :func:`acn_kernels.models.create`.
    depth: layers, None is the preset's. alpha: of an ACN alone, None is 1 throughout. grow: at
    first the lower half of the layers takes part alone, then more, by :data:`GROWING`. loss:
    "final", of the output alone, or "shared-head", for early exit: of every sub-network through
    the one head, with weights that rise with depth. batch_size: of all processes together.
    save_every: steps between checkpoints beside those at the end of every epoch; 0 is none.
    """

    data: str
    model: str
    depth: int | None = None
    wiring: str = "acn"
    alpha: AlphaSchedule | None = None
    grow: bool = False
    loss: str = "final"
    epochs: int = 10
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0
    save_every: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("save_every", 0), ("depth", 1)):
            if name != "depth" or self.depth is not None:
                check_size(name, getattr(self, name), least)
        for name in ("lr", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it takes a finite number of at least 0"
                )
        check_seed(self.seed)
        if not isinstance(self.alpha, AlphaSchedule | None):
            raise TypeError(f"alpha is {self.alpha!r}; it takes None or an AlphaSchedule")
        if self.alpha is not None and self.wiring != "acn":
            raise ValueError(f"alpha is set and wiring is {self.wiring!r}; it goes with 'acn'")
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}; it takes one of {', '.join(LOSSES)}")
        if not isinstance(PRESETS.get(self.model), ImageConfig):
            images = (name for name, config in PRESETS.items() if isinstance(config, ImageConfig))
            raise ValueError(f"model is {self.model!r}; it takes one of {', '.join(images)}")

    def settings(self) -> dict:
        """What a resumed run has to have in common with the one before; data may have moved."""
        settings = dataclasses.asdict(self)
        del settings["data"], settings["save_every"]
        return settings | {"alpha": None if self.alpha is None else list(self.alpha)}


def train(recipe: Recipe, out: Path, resume: bool = False) -> Model:
    """Trains by ``recipe``; into ``out`` go ``log.csv``, ``checkpoint.pt`` and, at the end,
    ``model``, which :meth:`Model.from_pretrained` loads.

    Every file is written whole, so a run killed at any moment goes on from its last checkpoint:
    on the CPU, with as many processes and threads as before, to the same bits.

    Args:
        resume: goes on with the run in ``out``; one without a checkpoint starts.

    Raises:
        ValueError: a setting is not what is accepted, or differs from those of the run in ``out``;
            ``out`` holds a run and ``resume`` is False, or cannot be written into; accelerate is
            set up to shard the model or to train in fp16.
        ModuleNotFoundError: accelerate (extra "train") is not installed.
    """
    if not resume and (out / CHECKPOINT_FILE).exists():
        raise ValueError(f"out is '{out}', which holds a run; resume it or name another folder")
    accelerator = _accelerator()
    if accelerator.is_main_process:
        check_writable(out, "--out")
    config = PRESETS[recipe.model]
    data = load_images(recipe.data, config.image_size, config.channels)
    run = _Run(recipe, out, data, accelerator)
    if resume and (out / CHECKPOINT_FILE).exists():
        run.restore()
    run.to_the_end()
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return run.model


def _accelerator():
    from accelerate import Accelerator, DistributedType
    from accelerate.utils import parse_flag_from_env

    # First, because on a CPU accelerate leaves FSDP out without a word, and where DeepSpeed is
    # not installed it would ask for that.
    for variable, kind in _PARTED.items():
        if parse_flag_from_env(variable):
            raise _parted(kind)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    kinds = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in kinds:
        raise _parted(accelerator.distributed_type.value)
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ValueError(
            f"mixed precision is {accelerator.mixed_precision!r}; the recipe takes 'no' or 'bf16'"
        )
    return accelerator


def _parted(kind: str) -> ValueError:
    return ValueError(
        f"accelerate is set up for {kind}; the recipe takes one process, or several with the whole "
        "model in each (torchrun, or accelerate launch --multi_gpu); to shard a model, write the "
        "loop: docs/train.md"
    )


class _Objective(nn.Module):
    """The loss of a batch, as one module: DDP and autocast follow what is called."""

    def __init__(self, model: ImageClassifier, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, images: Tensor, labels: Tensor, step: Step) -> Tensor:
        return self.loss(self.model, images, labels, step)


class _Run:
    """Model, optimiser and the place in the training."""

    def __init__(self, recipe: Recipe, out: Path, data: ImageData, accelerator) -> None:
        self.recipe, self.out, self.data, self.accelerator = recipe, out, data, accelerator
        self.share = Share(accelerator.process_index, accelerator.num_processes)
        if recipe.batch_size % self.share.processes:
            raise ValueError(
                f"batch_size is {recipe.batch_size}; it takes a multiple of the "
                f"{self.share.processes} processes"
            )
        self.steps_per_epoch = len(data.train) // recipe.batch_size
        if not self.steps_per_epoch:
            raise ValueError(
                f"batch_size is {recipe.batch_size}; there are {len(data.train)} training images"
            )
        self.total_steps = recipe.epochs * self.steps_per_epoch
        torch.manual_seed(recipe.seed)
        changes = {} if recipe.depth is None else {"depth": recipe.depth}
        model = create(recipe.model, wiring=recipe.wiring, classes=len(data.classes), **changes)
        self.model = model.to(accelerator.device)
        self.scheduled = ScheduledModel(self.model, recipe.alpha, GROWING if recipe.grow else None)
        self.network = None  # that of the layers which take part; none before the first step
        groups = decayed_apart(self.model, recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, recipe.lr, fused=True)
        self.step, self.rows = 0, []
        self.loss = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        self.settings = recipe.settings() | {"training images": len(data.train)}

    def to_the_end(self) -> None:
        bar = tqdm(
            total=self.total_steps, initial=self.step, desc="training", leave=False,
            disable=not self.accelerator.is_main_process,
        )  # fmt: skip
        with bar:
            while len(self.rows) < self.recipe.epochs:
                self._epoch(bar)
        self.model.eval()
        if self.accelerator.is_main_process:
            self.model.save_pretrained(self.out / MODEL_FOLDER)
            print(self.out / MODEL_FOLDER)

    def _epoch(self, bar: tqdm) -> None:
        started, epoch = time.perf_counter(), len(self.rows)
        first = self.step - epoch * self.steps_per_epoch
        batches = ShuffledBatches(
            len(self.data.train), self.recipe.batch_size, self.recipe.seed, epoch, first, self.share
        )
        self._follow_schedules()
        self.objective.train()
        for images, labels in self._read(self.data.train, batches):
            self._update(images.to(self.loss.device), labels.to(self.loss.device))
            bar.update()
            if self.step % _BAR_STEPS == 0:
                done = self.step - epoch * self.steps_per_epoch
                bar.set_postfix(epoch=epoch + 1, loss=f"{self.loss.item() / done:.3f}")
            if self.recipe.save_every and self.step % self.recipe.save_every == 0:
                self._save()
        self.rows.append(self._row(time.perf_counter() - started))
        self.loss.zero_()
        self._save()
        if self.accelerator.is_main_process:
            self._write_log()

    def _read(self, samples: Samples, batches: object) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            yield from loader(samples, batches, self.share)
        except ValueError as error:
            # Out of a loader's process comes its whole traceback as the message. The error's own
            # would keep the loader, and so its processes, in a cycle.
            last = str(error).splitlines()[-1].removeprefix("ValueError: ")
            raise ValueError(last) from error.with_traceback(None)

    def _update(self, images: Tensor, labels: Tensor) -> None:
        factor = warmup_cosine(
            self.step, min(self.steps_per_epoch, self.total_steps // 10), self.total_steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * factor
        self._follow_schedules()
        loss = self.objective(images, labels, Step(self.step, self.total_steps))
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.scheduled.gather_gradients()
        self.optimizer.step()
        self.loss += loss.detach()
        self.step += 1

    def _follow_schedules(self) -> None:
        self.scheduled.follow(self.step / self.total_steps)
        if self.network is not self.scheduled.network:
            self.network = self.scheduled.network
            loss = LOSSES[self.recipe.loss](len(self.network.blocks))
            # Wrapped anew, as DDP waits for the gradients of all that it was given.
            self.objective = self.accelerator.prepare_model(_Objective(self.network, loss)).train()

    def _row(self, seconds: float) -> dict[str, float]:
        """The log's line on the epoch that has ended: "accuracy_k" is that of sub-network k."""
        self._follow_schedules()
        loss = self.accelerator.reduce(self.loss, "mean").item() / self.steps_per_epoch
        return {
            "epoch": len(self.rows) + 1,
            "step": self.step,
            "alpha": self.model.blocks.alpha,
            "loss": loss,
            "seconds": round(seconds, 3),
            **{f"accuracy_{k}": share for k, share in enumerate(self._accuracy_by_depth())},
        }

    def _accuracy_by_depth(self) -> list[float]:
        self.model.eval()
        device, count = self.loss.device, len(self.data.test)
        correct = torch.zeros(len(self.model.blocks) + 1, dtype=torch.int64, device=device)
        mine = torch.arange(self.share.rank, count, self.share.processes)
        for images, labels in self._read(self.data.test, mine.split(self.recipe.batch_size)):
            logits = self.model.logits_by_depth(images.to(device))
            correct += right(logits, labels.to(device)).sum(1)
        return (self.accelerator.reduce(correct, "sum").double() / count).tolist()

    def _save(self) -> None:
        """Every process gives its part; the main one writes."""
        from accelerate.utils import gather_object

        own = {"random": random_states(), "loss": self.loss.item()}
        processes = gather_object([own])
        if self.accelerator.is_main_process:
            Checkpoint(
                self.settings, self.step, self.rows, self.model.state_dict(),
                self.optimizer.state_dict(), processes,
            ).save(self.out)  # fmt: skip

    def restore(self) -> None:
        """Goes to where the checkpoint in ``out`` is."""
        found = Checkpoint.load(self.out, self.settings)
        if len(found.processes) != self.share.processes:
            raise ValueError(
                f"there are {self.share.processes} processes; the run in {self.out} has "
                f"{len(found.processes)}"
            )
        self.step, self.rows = found.step, found.rows
        self.model.load_state_dict(found.model)
        self.optimizer.load_state_dict(found.optimizer)
        self.scheduled.follow(self.step / self.total_steps)
        own = found.processes[self.share.rank]
        self.loss.fill_(own["loss"])
        set_random_states(own["random"])
        if self.rows and self.accelerator.is_main_process:
            self._write_log()

    def _write_log(self) -> None:
        with (
            written_whole(self.out / LOG_FILE) as path,
            path.open("w", newline="", encoding="utf-8") as file,
        ):
            log = csv.DictWriter(file, self.rows[0])
            log.writeheader()
            log.writerows(self.rows)
