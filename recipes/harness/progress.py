"""What a run tells while it goes on: lines and tables on the terminal, metrics.csv, curves."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from recipes.harness import plots, record


class Progress(pl.Callback):
    """A line every `seconds`, a table and a row of metrics.csv after each validation, curves beside the checkpoint.

    Training figures are means since the row (or line) before. Only rank 0 writes.
    """

    def __init__(self, out: Path, deadline: float | None, seconds: float = 30.0) -> None:
        self.path, self.pictures = out / "metrics.csv", out / "checkpoints" / "curves.png"
        self.deadline, self.seconds = deadline, seconds
        self.audio_seconds: float | None = None  # heard in the whole run
        self.machine_seconds = 0.0  # spent in the whole run, up to `self.clock`
        self.clock = time.monotonic()
        self.line, self.row = Window(), Window()
        self.begun = self.first_step = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.clock = self.begun = time.monotonic()
        self.first_step = pl_module.batches_done
        self.line, self.row = Window(), Window()
        if self.audio_seconds is None:  # a new run, or one from before this was counted
            self.audio_seconds = pl_module.batches_done * pl_module.seconds_per_step
        if trainer.is_global_zero:
            record.write_metrics(self.path, pl_module.batches_done)
            say(f"training from step {pl_module.batches_done:,} to {trainer.max_steps:,}")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        assert self.audio_seconds is not None
        self.audio_seconds += pl_module.seconds_per_step
        self._count_time()
        if not trainer.is_global_zero:
            return
        metrics = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("train/")}
        for window in (self.line, self.row):
            window.add(metrics, pl_module.seconds_per_step)
        if self.clock - self.line.begun >= self.seconds:
            say(self._describe(trainer, pl_module))
            self.line = Window()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._count_time()
        if not trainer.is_global_zero:
            return
        assert self.audio_seconds is not None
        valid = {k: float(v) for k, v in sorted(trainer.callback_metrics.items()) if k.startswith("valid/")}
        step = pl_module.batches_done
        facts = {
            "step": step,
            "hours_seen": self.audio_seconds / 3600,
            "audio_seconds_per_second": self.row.speed(),
            "machine_hours": self.machine_seconds / 3600,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
        }
        rows = record.write_metrics(self.path, step, {**facts, **self.row.means(), **valid})
        say(f"validation at step {step:,}, {self.audio_seconds / 3600:.2f} h of audio heard")
        say(table(valid, pl_module.number_label))
        plots.draw_curves(rows, self.pictures, pl_module.labels, pl_module.number_label)
        self.line, self.row = Window(), Window()

    def _describe(self, trainer: pl.Trainer, pl_module: Any) -> str:
        assert self.audio_seconds is not None
        step, most = pl_module.batches_done, trainer.max_steps
        left = (self.clock - self.begun) / max(1, step - self.first_step) * (most - step)
        if self.deadline is not None:
            left = min(left, self.deadline - self.clock)
        losses = "  ".join(f"{k.removeprefix('train/')} {v:.4g}" for k, v in self.line.means().items())
        return (
            f"step {step:,}/{most:,}  heard {self.audio_seconds:,.0f} s, {self.line.speed():.1f} s/s  {losses}  "
            f"{duration(left)} left"
        )

    def _count_time(self) -> None:
        now = time.monotonic()
        self.machine_seconds += now - self.clock
        self.clock = now

    def state_dict(self) -> dict[str, Any]:
        return {"audio_seconds": self.audio_seconds, "machine_seconds": self.machine_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.audio_seconds = state_dict.get("audio_seconds")
        self.machine_seconds = state_dict.get("machine_seconds", 0.0)


class Window:
    """Means of training figures, and speed, over the steps since it was made."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.steps, self.audio_seconds = 0, 0.0
        self.sums: dict[str, Tensor] = {}

    def add(self, metrics: Mapping[str, Tensor], audio_seconds: float) -> None:
        """Take in a step."""
        self.steps += 1
        self.audio_seconds += audio_seconds
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()  # on its device: reading it would wait for it

    def means(self) -> dict[str, float]:
        """Means by name."""
        return {name: float(value) / max(1, self.steps) for name, value in sorted(self.sums.items())}

    def speed(self) -> float:
        """Audio seconds per second."""
        return self.audio_seconds / max(time.monotonic() - self.begun, 1e-9)


def say(text: str) -> None:
    """Progress goes to standard error, at once."""
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`2 h 05 min`, `12 min`, `40 s`."""
    minutes = int(max(0.0, seconds)) // 60
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min" if minutes else f"{max(0.0, seconds):.0f} s"


def table(metrics: Mapping[str, float], number_label: str) -> str:
    """Metrics as text: one row for each name, one column for each number that names end with."""
    split = [re.fullmatch(r"(?:.*/)?(.*?)(\d*)", name) for name in metrics]
    cells = {(m[1], m[2]): value for m, value in zip(split, metrics.values(), strict=True) if m}
    columns = sorted({number for _, number in cells if number}, key=int)
    names = list(dict.fromkeys(name for name, number in cells if number))
    width = max((len(text) for text in (*names, number_label)), default=0)
    head = [f"  {number_label:{width}}" + "".join(f"{number:>9}" for number in columns)] if columns else []
    rows = [
        f"  {name:{width}}" + "".join(f"{cells[name, n]:9.4g}" if (name, n) in cells else " " * 9 for n in columns)
        for name in names
    ]
    plain = [f"{name} {value:.4g}" for (name, number), value in cells.items() if not number]
    return "\n".join([*head, *rows, *(["  " + "  ".join(plain)] if plain else [])])
