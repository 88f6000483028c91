"""Training on tasks one after the other, for Table 3."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from acn_kernels.files import written_whole
from acn_kernels.models import create
from acn_kernels.training.continual import SynapticIntelligence, average_accuracy, forgetting
from acn_kernels.training.datasets import of_classes
from acn_kernels.training.digits import Split
from acn_kernels.training.trainer import Trainer
from benchmarks.paper.spec import Metrics, Training
from benchmarks.paper.trained import Context, OutOfTime, batches


def learn(
    context: Context, training: Training, tasks: list[tuple[int, ...]], strength: float
) -> Metrics:
    """Trains on ``tasks`` (tuples of classes) in turn, each through its own rows of the head. Where
    the time is over, the tasks that are done are kept.

    strength: of Synaptic Intelligence; 0 is naive fine-tuning.
    """
    data = context.data(training.data)
    torch.manual_seed(context.seed)
    model = create(training.model, **{**dict(training.changes), "classes": data.classes})
    model = model.to(context.device)
    parts = [
        [Split(*(t.to(context.device) for t in of_classes(_on_cpu(part), task))) for task in tasks]
        for part in (data.train, data.test)
    ]
    # Decay would wear down the head rows of tasks that are over.
    recipe = replace(training.recipe, seed=context.seed, weight_decay=0.0)
    si = SynapticIntelligence(model.parameters(), strength)
    accuracy = torch.zeros(len(tasks), len(tasks), dtype=torch.float64)
    file, done = context.file("continual", recipe, training, tasks, strength), 0
    if file.is_file():
        kept = torch.load(file, map_location=context.device)
        model.load_state_dict(kept["model"])
        si.load_state_dict(kept["si"])
        accuracy, done = kept["accuracy"].cpu(), kept["tasks"]
    replay = torch.device(context.device).type == "cuda"
    for t, (task, train) in list(enumerate(zip(tasks, parts[0], strict=True)))[done:]:

        def loss(model, images, labels, step, task=task):
            own = model(images)[:, task[0] : task[-1] + 1]
            return F.cross_entropy(own, labels) + (si.penalty() if strength else 0.0)

        trainer = Trainer(
            model, recipe, len(train.labels), loss, after_backward=si.before_step, replay=replay
        )
        trainer.optimizer.register_step_post_hook(lambda *_: si.after_step())
        while not trainer.done:
            if context.is_over:
                raise OutOfTime
            trainer.train_epoch(train)
        si.end_task()
        for j, (other, test) in enumerate(zip(tasks, parts[1], strict=True)):
            accuracy[t, j] = _accuracy(model, test, other)
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as path:
            torch.save({
                "model": model.state_dict(), "si": si.state_dict(), "accuracy": accuracy,
                "tasks": t + 1,
            }, path)  # fmt: skip
    return {
        "average_accuracy": average_accuracy(accuracy),
        "forgetting": forgetting(accuracy),
        "accuracy_by_task": accuracy.tolist(),
    }


def _on_cpu(part: Split) -> Split:
    return Split(*(t.cpu() for t in part))


@torch.no_grad()
def _accuracy(model, test: Split, task: tuple[int, ...]) -> float:
    model.eval()
    own = [model(images)[:, task[0] : task[-1] + 1].argmax(-1) for images, _ in batches(test)]
    return (torch.cat(own) == test.labels).double().mean().item()
