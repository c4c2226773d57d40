"""What a run writes while it goes on."""

from __future__ import annotations

import csv
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch import Tensor


class Ema(WeightAveraging):
    """Exponential moving average of the weights; what is validated and exported.

    The decay is (1 + n) / (10 + n) until it reaches `decay`, so that the average of a young run is not mostly its
    first weights.
    """

    def __init__(self, decay: float) -> None:
        def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
            rate = min(decay, (1 + int(count)) / (10 + int(count)))
            for mean, value in zip(averaged, current, strict=True):
                if mean.is_floating_point():
                    mean.lerp_(value.to(mean.dtype), 1 - rate)
                else:
                    mean.copy_(value)

        super().__init__(use_buffers=True, multi_avg_fn=torch.no_grad()(update))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the model as it is: the parent puts the average in its place, and a resumed run would start there."""


class LastCheckpoint(ModelCheckpoint):
    """`last.ckpt`, every few minutes, when a run is interrupted, and at its end.

    The parent saves at the end only what it has never saved before: up to `minutes` of training would be lost.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        super().__init__(
            folder,
            filename="{step}",
            train_time_interval=timedelta(minutes=minutes),
            save_last=True,
            save_on_exception=True,
            enable_version_counter=False,  # the newest is `last.ckpt`, also after a run folder was copied
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(Path(str(self.dirpath)) / "last.ckpt")


class Progress(pl.Callback):
    """One line a validation to the terminal and to metrics.csv: steps, hours of audio seen, speed, every metric."""

    def __init__(self, out: Path) -> None:
        self.path = out / "metrics.csv"
        self.clock = time.monotonic()
        self.step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.clock, self.step = time.monotonic(), trainer.global_step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        recipe: Any = pl_module.recipe
        seconds_per_step = recipe.batch_size * recipe.crop_frames / recipe.model.frame_rate
        now = time.monotonic()
        speed = (trainer.global_step - self.step) * seconds_per_step / max(now - self.clock, 1e-9)
        self.clock, self.step = now, trainer.global_step
        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        row = {
            "step": trainer.global_step,
            "hours_seen": trainer.global_step * seconds_per_step / 3600,
            "audio_seconds_per_second": speed,
            **metrics,
        }
        self._append(row)
        shown = "  ".join(f"{name.removeprefix('valid/')} {value:.4g}" for name, value in row.items())
        print(shown, file=sys.stderr, flush=True)

    def _append(self, row: dict[str, float]) -> None:
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
