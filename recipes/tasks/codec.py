"""Training of the live codec: reconstruction losses, optional bypass stage, a random number of levels per crop."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from codec import metrics
from codec.live import EscLive
from codec.losses import LoudnessLoss, MelLoss, relative_error
from codec.model import Codec, CodecOutput
from codec.quantizers import code_entropy
from codec.start import start_from_data, start_quantizers
from engine.errors import ConfigError, SpeechError
from recipes.harness.data import SpeechCrops
from recipes.harness.optim import decay_groups, warmup_stable_decay
from recipes.recipe import Recipe


class CodecTask(pl.LightningModule):
    """Task contract: `model` is exported, `losses` returns a dict with "total", `metrics` is what validation logs."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.model = EscLive(recipe.model)
        self.mel_loss = MelLoss(recipe.model.sample_rate)
        self.loudness_loss = LoudnessLoss(recipe.model.sample_rate)
        self.crops: SpeechCrops | None = None  # set by the trainer script; the data-driven start reads from it
        self.random_state: Tensor | None = None  # of the checkpoint that is resumed
        self.warm = False  # starts from given weights, not from data

    def start_from(self, model: Codec) -> None:
        """Take the weights of a trained model of the same shape."""
        if model.config != self.recipe.model:
            raise ConfigError(f"the model to start from has another configuration: {_differing(model.config, self.recipe.model)}")
        self.model.load_state_dict(model.state_dict())
        self.warm = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_state"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.random_state = checkpoint["random_state"]

    def on_train_start(self) -> None:
        if self.global_step == 0 and not self.warm:  # not in on_fit_start, which comes before the step of a resumed run is known
            start_from_data(self.model, self._start_speech())
        if self.random_state is not None:
            torch.set_rng_state(self.random_state)

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        if self.global_step == self.recipe.bypass_steps > 0:
            start_quantizers(self.model, self._start_speech())

    def _start_speech(self) -> Tensor:
        assert self.crops is not None, "set `crops` before fitting"
        count = int(self.recipe.start_seconds * self.recipe.model.sample_rate / self.crops.num_samples) + 1
        return torch.stack([self.crops[i] for i in range(count)]).to(self.device)

    def draw_levels(self, batch_size: int, step: int) -> Tensor:
        """(B,): levels of each crop, not rising; depends on seed and step alone, as the crops do."""
        rng = np.random.default_rng((self.recipe.seed, 1, step))
        most = self.recipe.model.levels
        counts = rng.integers(1, most + 1, batch_size)
        counts[rng.random(batch_size) < self.recipe.full_probability] = most
        return torch.from_numpy(np.sort(counts)[::-1].copy())

    def losses(self, wav: Tensor, levels: Tensor, bypass: bool) -> tuple[dict[str, Tensor], CodecOutput]:
        """(B, N) -> losses by name, and what the model returned."""
        out = self.model(wav, levels, bypass=bypass)
        lag = self.model.istft.delay
        parts = {
            "spectrum": relative_error(out.spectrum, out.spectrum_target),
            "mel": self.mel_loss(out.wav[:, lag:], wav[:, :-lag]),
            "loudness": self.loudness_loss(out.wav[:, lag:], wav[:, :-lag]),
            "commitment": out.commitment_loss,
            "codebook": out.codebook_loss,
        }
        total = sum((getattr(self.recipe, f"{name}_weight") * value for name, value in parts.items()), torch.zeros(()))
        return {"total": total, **parts}, out

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        bypass = self.global_step < self.recipe.bypass_steps
        parts, _ = self.losses(batch, self.draw_levels(len(batch), self.global_step), bypass)
        if not torch.isfinite(parts["total"]):
            raise FloatingPointError(f"step {self.global_step}: the loss is {float(parts['total'])}; crops from "
                                     f"{self.global_step * len(batch)} on of seed {self.recipe.seed}")  # fmt: skip
        self.log_dict({f"train/{name}": value.detach() for name, value in parts.items()})
        return parts["total"]

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log_dict({f"valid/{name}": value for name, value in self.metrics(batch).items()}, batch_size=len(batch))

    @torch.no_grad()
    def metrics(self, batch: Tensor) -> dict[str, float]:
        """(B, N) -> figures at all levels, a third of them and one; PESQ and STOI where they are installed."""
        values: dict[str, float] = {}
        most = self.recipe.model.levels
        bypass = self.global_step < self.recipe.bypass_steps
        for levels in sorted({most, max(1, most // 3), 1}, reverse=True):
            with torch.autocast(batch.device.type, enabled=False):  # measured as users decode, whatever it trains in
                parts, out = self.losses(batch, torch.full((len(batch),), levels), bypass)
            values |= {f"spectrum{levels}": float(parts["spectrum"]), f"mel{levels}": float(parts["mel"])}
            lag = self.model.istft.delay
            values |= {f"{k}{levels}": v for k, v in _perceptual(batch[:, :-lag], out.wav[:, lag:])}
            if levels == most:
                size = self.recipe.model.codebook_size
                bits = torch.stack([code_entropy(codes, size).mean() for codes in out.codes])
                values |= {"entropy": float(bits.mean()), "entropy_least": float(bits.min())}
        return values

    def configure_optimizers(self) -> Any:
        groups = decay_groups(self.model, self.recipe.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.recipe.learning_rate, betas=self.recipe.betas)
        schedule = warmup_stable_decay(
            optimizer, self.recipe.warmup_steps, self.recipe.max_steps, self.recipe.decay_steps
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _differing(found: object, expected: object) -> str:
    """Field by field, what two configurations do not share."""
    pairs = {f.name: (getattr(found, f.name, None), getattr(expected, f.name)) for f in dataclasses.fields(expected)}  # type: ignore[arg-type]
    return ", ".join(f"{name} {a} instead of {b}" for name, (a, b) in pairs.items() if a != b)


def _perceptual(reference: Tensor, decoded: Tensor) -> Iterator[tuple[str, float]]:
    """Means over (B, N) of PESQ-WB and STOI, items where they are undefined left out; nothing without `eval`."""
    for name, metric in {"pesq": metrics.pesq_wb, "stoi": metrics.stoi}.items():
        try:
            scores = [metric(r, d) for r, d in zip(reference.cpu(), decoded.cpu(), strict=True)]
        except SpeechError:  # the packages that measure are not installed
            return
        yield name, float(np.mean([score for score in scores if score == score] or [float("nan")]))
