"""What the trainer must know of a task besides Lightning's own steps: the base class of the tasks of both models."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from engine.errors import ConfigError
from recipes.harness.augment import Augment, AugmentConfig
from recipes.harness.data import SpeechCrops, Utterance, is_validation
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
        self.facts: dict[str, str] = {}  # for run.json: what the weights and the targets come from
        self.random_state: dict[str, Tensor] = {}  # of the checkpoint that is resumed

    @property
    def batches_done(self) -> int:
        """Batches trained on so far; also the number of the present one. It decides crops, levels and progress."""
        return self.global_step

    @property
    def seconds_per_step(self) -> float:
        """Seconds of audio in a step, over all devices."""
        return self.recipe.batch_size * self.recipe.crop_samples / self.recipe.sample_rate

    def holds_out(self, utterance: Utterance) -> bool:
        """Whether a recording is for validation and never trained on: decided by who speaks."""
        return is_validation(utterance.speaker, self.recipe.validation_percent)

    def split(self, utterances: list[Utterance]) -> tuple[list[Utterance], list[Utterance]]:
        """Recordings to train on, and those held out for validation."""
        held_out = [u for u in utterances if self.holds_out(u)]
        return [u for u in utterances if not self.holds_out(u)], held_out

    def prepare(self, samples: np.ndarray, train: list[Utterance], held_out: list[Utterance]) -> SpeechCrops:
        """Set `crops`, those to train on, and return those to validate on; called once, before the optimizer is made.

        `samples` (N,) int16 are those of all recordings.
        """
        recipe = self.recipe
        total = recipe.max_steps * recipe.batch_size
        self.crops = self.training_crops(samples, train, total)
        return SpeechCrops(
            samples, held_out, recipe.validation_samples, recipe.validation_crops, seed=0, levels=recipe.crop_levels
        )

    def training_crops(self, samples: np.ndarray, utterances: list[Utterance], total: int) -> SpeechCrops:
        """Crops as the recipe wants them drawn, augmented where it asks for any effect."""
        recipe, read, augment = self.recipe, self.recipe.crop_samples, None
        if recipe.augment != AugmentConfig():
            voices = [samples[u.start : u.start + u.num_samples] for u in utterances]
            chain = Augment(recipe.augment, recipe.sample_rate, babble=voices)
            read, augment = chain.source_length(read), partial(chain, num_samples=read)
        return SpeechCrops(
            samples, utterances, recipe.crop_samples, total, recipe.seed, augment=augment, levels=recipe.crop_levels,
            speaker_exponent=recipe.speaker_exponent, join_short=recipe.join_short, read_samples=read,
        )  # fmt: skip

    def keep_beginning(self, folder: Path) -> None:
        """Write to `folder` what training begins from, where the export of the run may need it; after `prepare`."""

    @property
    def monitor(self) -> dict[str, int]:
        """Metrics that decide which checkpoint is the best: the first that is measured counts.

        1: larger is better, -1: smaller.
        """
        return {}

    def examples(self, batch: Any) -> dict[str, Tensor]:
        """Sounds (N,) worth listening to of a validation batch, by name; called with the averaged weights."""
        return {}

    def start_from(self, folder: str | Path) -> None:
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
