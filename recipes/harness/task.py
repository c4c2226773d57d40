"""What the trainer must know of a task besides Lightning's own steps: the base class of the tasks of both models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor

from engine.errors import ConfigError
from recipes.harness.data import SpeechCrops
from recipes.recipe import Recipe


class Task(pl.LightningModule):
    """A task defines `model` (what is exported), Lightning's steps, and whatever of the following differs for it.

    `labels` says how a plot names what it measures: the beginning of a metric's name -> title with unit. The number at
    the end of a name (`pesq6`) counts `number_label`.
    """

    labels: ClassVar[dict[str, str]] = {"total": "loss, weighted sum", "gradient_norm": "gradient norm"}
    number_label: ClassVar[str] = ""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.crops: SpeechCrops | None = None  # training crops, set by the trainer
        self.random_state: dict[str, Tensor] = {}  # of the checkpoint that is resumed

    @property
    def batches_done(self) -> int:
        """Batches trained on so far; also the number of the present one. It decides crops, levels and progress."""
        return self.global_step

    @property
    def crop_samples(self) -> int:
        """Samples of a training crop."""
        return self.recipe.crop_frames * self.recipe.model.samples_per_frame

    @property
    def validation_samples(self) -> int:
        """Samples of a validation crop."""
        return self.recipe.validation_frames * self.recipe.model.samples_per_frame

    @property
    def seconds_per_step(self) -> float:
        """Seconds of audio in a step, over all devices."""
        return self.recipe.batch_size * self.crop_samples / self.recipe.model.sample_rate

    @property
    def monitor(self) -> dict[str, int]:
        """Metrics that decide which checkpoint is the best: the first that is measured counts.

        1: larger is better, -1: smaller.
        """
        return {}

    def examples(self, batch: Any) -> dict[str, Tensor]:
        """Sounds (N,) worth listening to of a validation batch, by name; called with the averaged weights."""
        return {}

    def start_from(self, folder: Path) -> None:
        """Start from a trained model instead of from nothing."""
        raise ConfigError(f"{type(self).__name__} does not start from a trained model; leave --init out")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the random state: codebooks draw from it."""
        checkpoint["random_state"] = torch.get_rng_state()
        if self.device.type == "cuda":
            checkpoint["cuda_random_state"] = torch.cuda.get_rng_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the random state for `on_train_start`: what comes before it draws too."""
        self.random_state = {k: v for k, v in checkpoint.items() if k in ("random_state", "cuda_random_state")}

    def on_train_start(self) -> None:
        """Draw on from where the checkpoint was. Every rank takes rank 0's state, so their number may change."""
        if "random_state" in self.random_state:
            torch.set_rng_state(self.random_state["random_state"])
        if "cuda_random_state" in self.random_state and self.device.type == "cuda":
            torch.cuda.set_rng_state(self.random_state["cuda_random_state"], self.device)
