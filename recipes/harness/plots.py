"""Pictures and sounds of a run: learning curves as PNG, and TensorBoard where it is installed.

matplotlib and tensorboard are optional; without matplotlib there are no pictures, without tensorboard no sounds.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from engine.errors import ConfigError
from engine.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3
EXAMPLES = 3


def installed(package: str) -> bool:
    """True where `package` can be imported; it is not imported yet."""
    return importlib.util.find_spec(package) is not None


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path, labels: Mapping[str, str], number_label: str) -> None:
    """Draw every metric of the rows of metrics.csv, one panel for each name, over steps (below) and hours (above).

    `labels` and `number_label` as in `Task`. Nothing happens without matplotlib.
    """
    if not rows or not installed("matplotlib"):
        return
    from matplotlib.figure import Figure

    panels = group(dict.fromkeys(name for row in rows for name in row if "/" in name), labels)
    steps, hours = _column(rows, "step"), _column(rows, "hours_seen")
    lines = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(5 * COLUMNS, 3.8 * lines))
    # In inches from the edges; an automatic layout would take most of the time.
    figure.subplots_adjust(0.04, 0.6 / 3.8 / lines, 0.99, 1 - 0.5 / 3.8 / lines, wspace=0.2, hspace=0.45)
    for place, (stem, names) in enumerate(panels.items()):
        axes = figure.add_subplot(lines, COLUMNS, place + 1)
        for name, label, style in _styles(stem, names, number_label):
            axes.plot(steps, _column(rows, name), label=label, marker="." if len(rows) < 40 else "", **style)
        axes.set_ylabel(labels.get(stem, stem))
        axes.set_xlabel("steps")
        axes.set_xlim(0, steps[-1] * 1.02)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        if len(rows) > 1:
            above = axes.secondary_xaxis("top", functions=_scale(steps, hours))
            above.set_xlabel("hours of audio heard")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=80)


def group(names: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, list[str]]:
    """Metrics by panel: the longest label that a name begins with, or the name without the number at its end.

    What is validated comes first.
    """
    panels: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (not name.startswith("valid/"), name)):
        bare = name.partition("/")[2]
        known = [label for label in labels if bare.startswith(label)]
        stem = max(known, key=len) if known else re.sub(r"\d+$", "", bare)
        panels.setdefault(stem, []).append(name)
    return panels


def _styles(stem: str, names: Sequence[str], number_label: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(metric, legend, line style): validation in colours by number, training in grey."""
    styles = []
    numbers = sorted({int(m[1]) for name in names if (m := re.search(r"(\d+)$", name))})
    for name in names:
        part, _, bare = name.partition("/")
        rest = bare.removeprefix(stem)
        if part == "train":
            styles.append((name, f"training {rest}".strip(), {"color": "0.6", "linewidth": 1}))
        elif rest.isdigit():
            colour = 0.15 + 0.75 * numbers.index(int(rest)) / max(1, len(numbers) - 1)
            styles.append((name, f"{number_label} {rest}".strip(), {"color": _viridis(colour)}))
        else:
            styles.append((name, rest.strip("_") or "validation", {}))
    return styles


def _viridis(share: float) -> Any:
    import matplotlib

    return matplotlib.colormaps["viridis"](share)


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """One metric over the rows, NaN where it was not measured."""
    return np.array([float(row.get(name) or "nan") for row in rows])


def _scale(steps: np.ndarray, hours: np.ndarray) -> tuple[Any, Any]:
    """Steps to hours and back, straight lines through the rows, prolonged beyond them at the mean rate."""
    rate = max((hours[-1] - hours[0]) / (steps[-1] - steps[0]), 1e-12)
    ends = np.array([-1e3, 1e3]) * (steps[-1] - steps[0])
    x = np.concatenate([steps[:1] + ends[0], steps, steps[-1:] + ends[1]])
    y = np.concatenate([hours[:1] + rate * ends[0], hours, hours[-1:] + rate * ends[1]])
    return lambda v: np.interp(v, x, y), lambda v: np.interp(v, y, x)


def spectrograms(sounds: Mapping[str, Tensor], sample_rate: int) -> Figure:
    """Short-time spectra of sounds (N,) in dB, one under the other, on one scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.2 * len(sounds)), layout="constrained")
    window = torch.hann_window(512)
    pictures = {}
    for name, sound in sounds.items():
        spectrum = torch.stft(sound.float(), 512, 128, window=window, return_complex=True, pad_mode="constant")
        pictures[name] = (20 * spectrum.abs().clamp_min(1e-5).log10()).numpy()
    loudest = max(float(picture.max()) for picture in pictures.values())
    axes = figure.subplots(len(sounds), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (name, picture) in zip(axes, pictures.items(), strict=True):
        seconds = picture.shape[1] * 128 / sample_rate
        panel.imshow(picture, origin="lower", aspect="auto", vmin=loudest - 80, vmax=loudest,
                     extent=(0, seconds, 0, sample_rate / 2000))  # fmt: skip
        panel.set_title(name, fontsize="small")
        panel.set_ylabel("kHz")
    axes[-1].set_xlabel("seconds")
    return figure


class Board(pl.Callback):
    """TensorBoard in RUN/tensorboard: every metric, and at each validation a few decoded examples to hear and see."""

    def __init__(self, out: Path) -> None:
        if not installed("tensorboard"):
            raise ConfigError("TensorBoard is not installed: pip install tensorboard, or --no-tensorboard")
        self.folder = out / "tensorboard"
        self.writer: Any = None
        self.sounds: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            from torch.utils.tensorboard import SummaryWriter

            # Events past the checkpoint that is resumed are hidden.
            self.writer = SummaryWriter(str(self.folder), purge_step=pl_module.batches_done + 1)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        step = pl_module.batches_done
        if self.writer is not None and step % max(1, pl_module.recipe.validate_every // 20) == 0:
            self._scalars(trainer, "train/", step)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # Here and not at the end, where the weights are no longer the averaged ones.
        if self.writer is not None and batch_idx == 0:
            items = range(min(EXAMPLES, len(batch)))
            self.sounds = [pl_module.examples(batch[i : i + 1]) for i in items]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.writer is None:
            return
        step, rate = pl_module.batches_done, pl_module.recipe.sample_rate
        self._scalars(trainer, "valid/", step)
        for number, sounds in enumerate(self.sounds):
            for name, sound in sounds.items():
                self.writer.add_audio(f"example {number}/{name}", sound[None], step, rate)
            if sounds and installed("matplotlib"):
                self.writer.add_figure(f"example {number}", spectrograms(sounds, rate), step)
        self.writer.flush()

    def _scalars(self, trainer: pl.Trainer, part: str, step: int) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.startswith(part):
                self.writer.add_scalar(name, float(value), step)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.writer is not None:
            self.writer.close()
