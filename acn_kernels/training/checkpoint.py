"""The one file from which a training run goes on as if it had never stopped."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from acn_kernels.files import written_whole

CHECKPOINT_FILE = "checkpoint.pt"


class Checkpoint(NamedTuple):
    """A run after ``step`` steps.

    settings: what the run was started with. rows: of the log, one per finished epoch. processes:
    for each process its random states and the sum of its losses in the running epoch.
    """

    settings: dict
    step: int
    rows: list[dict[str, float]]
    model: dict[str, Tensor]
    optimizer: dict
    processes: list[dict]

    def save(self, folder: Path) -> None:
        """Writes the file whole; until it is, the one before it stands."""
        with written_whole(folder / CHECKPOINT_FILE) as path:
            torch.save(self._asdict(), path)

    @classmethod
    def load(cls, folder: Path, settings: dict) -> Checkpoint:
        """The checkpoint in ``folder``, of a run with these ``settings``.

        Raises:
            ValueError: the file is damaged or foreign, or the settings are others.
        """
        path = folder / CHECKPOINT_FILE
        try:
            found = cls(**torch.load(path, map_location="cpu", weights_only=True))
        except (RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{path} is no checkpoint: {error}") from error
        for name, value in settings.items():
            if found.settings.get(name) != value:
                raise ValueError(
                    f"{name} is {value!r}; the run in {folder} has {found.settings.get(name)!r}"
                )
        return found


def random_states() -> dict[str, Tensor]:
    """This process's states of torch's generators."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
