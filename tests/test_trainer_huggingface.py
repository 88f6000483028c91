"""Hugging Face's Trainer on ACN GPT and ACN BERT: it trains, saves and resumes."""

from __future__ import annotations

import pytest
import torch
from language_models import WORDS, huggingface, small_bert, small_gpt

pytest.importorskip("accelerate")
from transformers import Trainer, TrainingArguments

pytestmark = pytest.mark.slow


class Counting(torch.utils.data.Dataset):
    """Texts that count upwards: each word follows from the one before it."""

    def __init__(self, masked: bool) -> None:
        self.masked = masked

    def __len__(self) -> int:
        return 64

    def __getitem__(self, i: int) -> dict:
        ids = (torch.arange(8) + i) % (WORDS - 2) + 2
        if not self.masked:
            return {"input_ids": ids, "labels": ids.clone()}
        labels = torch.full_like(ids, -100)
        labels[i % 8], ids[i % 8] = int(ids[i % 8]), 1
        return {"input_ids": ids, "labels": labels}


def trainer(model, folder, **options):
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=8, learning_rate=1e-2, report_to=[],
        use_cpu=True, disable_tqdm=True, save_steps=8, logging_steps=8, seed=0, **options,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=Counting("Bert" in type(model).__name__))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("make", [small_gpt, small_bert])
def test_it_learns_saves_and_resumes(make, checkpointing, tmp_path):
    model = type(make())(make().config)
    run = trainer(model, tmp_path, num_train_epochs=6, activation_checkpointing=checkpointing)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3
    assert model.is_activation_checkpointing == checkpointing
    kept = tmp_path / "checkpoint-48"
    loaded = type(model).from_pretrained(kept)
    ids = Counting(False)[0]["input_ids"][None]
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
    again = trainer(loaded, tmp_path, num_train_epochs=7)
    again.train(resume_from_checkpoint=str(kept))
    assert again.state.global_step == 56


def test_a_cut_model_is_trained_further(tmp_path):
    model = huggingface.ACNGPTForCausalLM(small_gpt().config).truncate(2)
    run = trainer(model, tmp_path, num_train_epochs=2)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
