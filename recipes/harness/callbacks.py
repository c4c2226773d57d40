"""What keeps a run safe between its steps: averaging, checkpoints, guard, clean stop."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from engine.errors import SpeechError

log = logging.getLogger(__name__)


class BadBatch(SpeechError):
    """A batch gave a gradient that is not finite, and the recipe does not let it pass."""


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

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Average a copy of the task without its data: copying a memory map would read all of it into memory."""
        crops, pl_module.crops = pl_module.crops, None
        super().setup(trainer, pl_module, stage)
        pl_module.crops = crops

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the model as it is: the parent puts the average in its place, and a resumed run would start there."""


class Settings(pl.Callback):
    """Puts the recipe's learning rate, decay and betas in force after a resume.

    A checkpoint brings those it was saved with: what --set changes, and a schedule prolonged, would have no effect.
    """

    def __init__(self) -> None:
        self.groups: list[list[dict[str, Any]]] = []
        self.rates: list[list[float]] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Optimizers are made, but the checkpoint's state is not in them yet.
        self.groups = [
            [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]
        self.rates = [[float(rate) for rate in config.scheduler.base_lrs] for config in trainer.lr_scheduler_configs]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for optimizer, groups in zip(trainer.optimizers, self.groups, strict=True):
            for group, values in zip(optimizer.param_groups, groups, strict=True):
                group.update(values)
        for config, rates in zip(trainer.lr_scheduler_configs, self.rates, strict=True):
            schedule = config.scheduler
            assert isinstance(schedule, LambdaLR), "schedules are factors, see harness/optim.py"
            schedule.base_lrs = [*rates]
            for group, rate, factor in zip(schedule.optimizer.param_groups, rates, schedule.lr_lambdas, strict=True):
                group["lr"] = rate * factor(schedule.last_epoch)


class Checkpoints(Checkpoint):
    """`last.ckpt` every few minutes and at the end, `best.ckpt` after the best validation by the task's `monitor`.

    Saved between steps only, or with the state before a bad batch: an error in the midst of a step leaves the file as
    it is.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.minutes = folder, minutes
        self.clock = time.monotonic()
        self.best: dict[str, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.clock = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        due = time.monotonic() - self.clock >= 60 * self.minutes
        if agreed(trainer, int(due)):  # saving takes all ranks, and their clocks differ
            self.clock = time.monotonic()
            trainer.save_checkpoint(self.folder / "last.ckpt")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        metric, better = self._score(trainer, pl_module.monitor)
        if agreed(trainer, int(better)):
            if metric:
                self.best = metric
            trainer.save_checkpoint(self.folder / "best.ckpt")

    def _score(self, trainer: pl.Trainer, monitor: Mapping[str, int]) -> tuple[dict[str, Any], bool]:
        """The first metric of `monitor` that was measured (on rank 0), and whether it is better than the best."""
        values = trainer.callback_metrics
        name = next((name for name in monitor if name in values and torch.isfinite(values[name])), None)
        if name is None:
            return {}, False
        score = monitor[name] * float(values[name])
        better = self.best.get("metric") != name or score > self.best["score"]
        return {"metric": name, "score": score}, better

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.folder / "last.ckpt")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, BadBatch):
            trainer.save_checkpoint(self.folder / "last.ckpt")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


class Guard(pl.Callback):
    """Passes over a batch whose gradient is not finite, `allowed` times in a run; then raises BadBatch.

    The gradient is the same on all ranks after its reduction, so all of them decide alike. By then the buffers
    (codebook statistics) have taken the batch in; they are put back, so that what is left is the state before it.
    A batch that is passed over still counts as a step, which keeps crops and schedule in place.
    """

    def __init__(self, allowed: int, sources: Callable[[], Iterable[str]]) -> None:
        self.allowed, self.sources = allowed, sources
        self.passed = 0
        self.buffers: list[Tensor] = []
        self.loss = torch.tensor(math.nan)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.buffers = [buffer.clone() for buffer in pl_module.buffers()]

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self.loss = loss.detach()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if torch.isfinite(norm):
            pl_module.log("train/gradient_norm", norm)
            return
        for buffer, before in zip(pl_module.buffers(), self.buffers, strict=True):
            buffer.copy_(before)
        optimizer.zero_grad(set_to_none=True)  # an optimizer leaves parameters without a gradient alone
        message = (
            f"step {pl_module.batches_done}: the gradient is not finite (loss here {float(self.loss):g}). Crops of "
            f"this batch on rank {trainer.global_rank} are from\n  " + "\n  ".join(self.sources())
        )
        if self.passed >= self.allowed:
            raise BadBatch(
                f"{message}\nStopped before it, with a checkpoint. Mend or remove the recording, or pass over the "
                f"batch: --resume --set skip_bad_batches={self.allowed + 1}"
            )
        self.passed += 1
        log.error("%s\nPassed over; %d of %d allowed", message, self.passed, self.allowed)

    def state_dict(self) -> dict[str, Any]:
        return {"passed": self.passed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.passed = state_dict["passed"]


class Stop(pl.Callback):
    """Ends the run between two steps: on SIGTERM or SIGINT at once, at the deadline after a last validation.

    `signal` is then what ended it, the same on all ranks, or 0. A second signal acts as if there were no handler.
    """

    CLOCK = 1  # as an agreed reason; signals to catch have other numbers

    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline  # of time.monotonic()
        self.caught = self.signal = 0
        self.before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Here and not earlier, to take the place of Lightning's handler, which would end the run without a checkpoint
        # and, on several ranks, communicate from within the handler. Lightning puts the old ones back in the end.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._catch)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.caught:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
            signal.raise_signal(number)
        self.caught = number

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        late = self.deadline is not None and time.monotonic() >= self.deadline
        reason = agreed(trainer, self.caught or (self.CLOCK if late else 0))
        if reason:
            trainer.should_stop = True
        if reason > self.CLOCK:
            self.signal = reason
            trainer.limit_val_batches = 0  # whoever sends a signal may not wait for a validation


def agreed(trainer: pl.Trainer, value: int) -> int:
    """The largest value of any rank, on all ranks."""
    if trainer.world_size == 1:
        return value
    return int(trainer.strategy.reduce(torch.tensor(value, device=trainer.strategy.root_device), reduce_op="max"))
