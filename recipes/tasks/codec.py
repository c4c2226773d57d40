"""Training of a codec: reconstruction losses, optional bypass stage, a random number of levels per crop."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

import codec
from codec import metrics
from codec.esc import Esc
from codec.io import make
from codec.live import EscLive
from codec.losses import LoudnessLoss, MelLoss, power_law_error, relative_error
from codec.model import CodecOutput
from codec.quantizers import code_entropy
from codec.start import start_from_data, start_quantizers
from codec.vectors import broadcast_
from engine.errors import ConfigError, SpeechError
from engine.spectral import compress
from recipes.harness.optim import make_optimizer, warmup_stable_decay
from recipes.harness.task import Task
from recipes.recipe import CodecRecipe


class CodecTask(Task):
    """Task contract: `model` is exported, `losses` returns a dict with "total", `metrics` is what validation logs."""

    labels: ClassVar[dict[str, str]] = Task.labels | {
        "pesq": "PESQ-WB (1 to 4.64)", "stoi": "STOI (0 to 1)", "entropy": "entropy of the codes, bits",
        "mel": "log-mel distance, 5 scales", "spectrum": "relative error of the spectrum",
        "loudness": "loudness distance", "commitment": "commitment loss", "codebook": "codebook loss",
    }  # fmt: skip
    number_label: ClassVar[str] = "levels"
    recipe: CodecRecipe

    def __init__(self, recipe: CodecRecipe) -> None:
        super().__init__(recipe)
        weights = recipe.level_weights
        if weights and (len(weights) != recipe.model.levels or min(weights) < 0 or sum(weights) == 0):
            raise ConfigError(f"level_weights needs {recipe.model.levels} numbers from 0 up, not all 0; got {weights}")
        model = make(recipe.model)
        assert isinstance(model, (EscLive, Esc))
        self.model = model
        self.mel_loss = MelLoss(recipe.model.sample_rate)
        self.loudness_loss = LoudnessLoss(recipe.model.sample_rate)
        self.warm = False  # starts from given weights, not from data

    @property
    def monitor(self) -> dict[str, int]:
        """PESQ at all levels, or the mel distance where PESQ is not installed."""
        most = self.recipe.model.levels
        return {f"valid/pesq{most}": 1, f"valid/mel{most}": -1}

    def start_from(self, folder: str | Path) -> None:
        """Take the weights of a trained model of the same shape."""
        model = codec.load(folder)
        if model.config != self.recipe.model:
            raise ConfigError(
                f"the model to start from has another configuration: {_differing(model.config, self.recipe.model)}"
            )
        self.model.load_state_dict(model.state_dict())
        self.warm = True

    def on_train_start(self) -> None:
        # Not in on_fit_start, which comes before the step of a resumed run is known.
        if self.global_step == 0 and not self.warm:
            torch.manual_seed(self.recipe.seed)  # the start, too, is the same on any number of devices
            start_from_data(self.model, self._start_speech())
            broadcast_(*self.model.state_dict().values())  # from the same crops, yet machines may round differently
        super().on_train_start()

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        if self.global_step == self.recipe.bypass_steps > 0:
            start_quantizers(self.model, self._start_speech())

    def _start_speech(self) -> Tensor:
        assert self.crops is not None, "set `crops` before fitting"
        count = int(self.recipe.start_seconds * self.recipe.model.sample_rate / self.crops.num_samples) + 1
        return torch.stack([self.crops[i] for i in range(count)]).to(self.device)

    def draw_levels(self, batch_size: int, step: int) -> Tensor:
        """(B,): levels of each crop, not rising; depends on seed and step alone, as the crops do.

        B is the share of one rank: all ranks draw the same, so that a codebook runs on all of them or on none.
        """
        rng = np.random.default_rng((self.recipe.seed, 1, step))
        weights = np.array(self.recipe.level_weights or [1.0] * self.recipe.model.levels)
        counts = 1 + rng.choice(len(weights), batch_size, p=weights / weights.sum())
        return torch.from_numpy(np.sort(counts)[::-1].copy())

    def losses(self, wav: Tensor, levels: Tensor, bypass: bool) -> tuple[dict[str, Tensor], CodecOutput]:
        """(B, N) -> losses by name, and what the model returned."""
        out = self.model(wav, levels, bypass=bypass)
        decoded, recorded = self.aligned(out.wav, wav)
        parts = {
            "spectrum": self._spectrum_error(out),
            "mel": self.mel_loss(decoded, recorded),
            "loudness": self.loudness_loss(decoded, recorded),
            "commitment": out.commitment_loss,
            "codebook": out.codebook_loss,
        }
        total = sum((getattr(self.recipe, f"{name}_weight") * value for name, value in parts.items()), torch.zeros(()))
        return {"total": total, **parts}, out

    def _spectrum_error(self, out: CodecOutput) -> Tensor:
        decoded, target = out.spectrum, out.spectrum_target
        if self.recipe.spectrum_loss == "components":
            return power_law_error(self.model.linear_spectrum(decoded), self.model.linear_spectrum(target))
        if isinstance(self.model, Esc):  # sees its spectra as they are, not compressed
            decoded, target = (compress(self.model.linear_spectrum(s), 0.5) for s in (decoded, target))
        return relative_error(decoded, target)

    def aligned(self, decoded: Tensor, recorded: Tensor) -> tuple[Tensor, Tensor]:
        """What `model` returned for (B, N), and (B, N) itself, both without the samples that the other lacks."""
        return decoded[:, self.model.lag :], recorded[:, : recorded.shape[1] - self.model.lag]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        bypass = self.global_step < self.recipe.bypass_steps
        parts, _ = self.losses(batch, self.draw_levels(len(batch), self.global_step), bypass)
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
            decoded, recorded = self.aligned(out.wav, batch)
            values |= {f"{k}{levels}": v for k, v in _perceptual(recorded, decoded)}
            if levels == most:
                size = self.recipe.model.codebook_size
                bits = torch.stack([code_entropy(codes, size).mean() for codes in out.codes])
                values |= {"entropy": float(bits.mean()), "entropy_least": float(bits.min())}
        return values

    @torch.no_grad()
    def examples(self, batch: Tensor) -> dict[str, Tensor]:
        """(1, N) -> the reference, and what is decoded from all levels and from one."""
        sounds: dict[str, Tensor] = {}
        for levels in (self.recipe.model.levels, 1):
            decoded, recorded = self.aligned(self.model(batch, levels).wav, batch)
            sounds |= {"reference": recorded[0].cpu(), f"{levels} levels": decoded[0].float().cpu()}
        return sounds

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.model, self.recipe)
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
