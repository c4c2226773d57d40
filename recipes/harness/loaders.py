"""Where a run is in its data: numbered crops, dealt out to the ranks, from the present step on."""

from __future__ import annotations

import copy
import logging
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from engine.errors import ConfigError
from recipes.harness.data import SpeechCrops, Utterance, build_cache
from recipes.harness.task import Task

log = logging.getLogger(__name__)


def batch_numbers(task: Task) -> range:
    """Crop numbers of the present step on this rank.

    Step s of all ranks together takes crops s B .. (s + 1) B - 1, whatever the number of ranks W; rank r has every
    W-th of them from the r-th on. So a run may be resumed on another number of devices.
    """
    size, rank, world = task.recipe.batch_size, task.trainer.global_rank, task.trainer.world_size
    return range(task.batches_done * size + rank, (task.batches_done + 1) * size, world)


class ResumableOrder(Sampler[int]):
    """This rank's crop numbers from the present step on, each once."""

    def __init__(self, task: Task, world_size: int) -> None:
        self.task, self.world_size = task, world_size
        self.total = task.recipe.max_steps * task.recipe.batch_size

    def __iter__(self) -> Iterator[int]:
        present = batch_numbers(self.task)
        return iter(range(present.start, self.total, present.step))

    def __len__(self) -> int:
        return self.total // self.world_size  # of the whole run: Lightning counts the batches before a resume too


class ResumableLoader(DataLoader[Any]):
    """A loader whose position is the trainer's step (see `ResumableOrder`): it has no state to save."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the position is in the trainer's step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept what `state_dict` returned."""


class ValidationOrder(Sampler[int]):
    """All validation crops on rank 0 and none elsewhere: figures do not depend on the number of ranks.

    Entropy and means over crops are then those of one process; the other ranks wait.
    """

    def __init__(self, task: Task, count: int) -> None:
        self.task, self.count = task, count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count if self.task.trainer.is_global_zero else 0))

    def __len__(self) -> int:
        return self.count


def make_loaders(
    task: Task, manifests: Sequence[str], cache: Path, workers: int = 0, world_size: int = 1
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Training and validation loaders; validation speakers are never trained on. Sets `task.crops`.

    The recipe's batch size is that of all ranks together, so that steps, schedule and hours mean the same on any
    number of them; ConfigError if it cannot be divided.
    """
    recipe = task.recipe
    if recipe.batch_size % world_size:
        raise ConfigError(f"a batch of {recipe.batch_size} crops cannot be dealt to {world_size} devices; "
                          f"change their number or --set batch_size")  # fmt: skip
    samples, utterances = build_cache(list(manifests), cache, recipe.sample_rate)
    train, held_out = task.split(utterances)
    hours = sum(u.num_samples for u in train) / recipe.sample_rate / 3600
    log.warning("training on %.2f h, %d recordings; validating on %d", hours, len(train), len(held_out))
    if not held_out:
        raise ConfigError(f"no speaker falls into the validation split of {recipe.validation_percent} %; raise it, or "
                          "give more speakers (a speaker encoder validates on those with a name alone)")  # fmt: skip
    valid = task.prepare(samples, train, held_out)
    assert task.crops is not None
    # Generators of their own: a loader draws a seed when it starts, and a resumed run starts one more.
    return (
        ResumableLoader(
            task.crops, recipe.batch_size // world_size, sampler=ResumableOrder(task, world_size), num_workers=workers,
            worker_init_fn=_leave_interrupts_to_the_parent, generator=torch.Generator(),
            pin_memory=torch.cuda.is_available(),
        ),
        DataLoader(
            valid, recipe.validation_crops, sampler=ValidationOrder(task, len(valid)), generator=torch.Generator()
        ),
    )  # fmt: skip


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches the whole process group; a dead worker would end the run before its checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def sources(crops: SpeechCrops, number: int) -> list[str]:
    """Recordings and sample offsets that crop `number` is read from, silent ones that are drawn again included."""
    return [f"{found.path} from sample {offset}" for found, offset in places(crops, number)]


def places(crops: SpeechCrops, number: int) -> list[tuple[Utterance, int]]:
    """What `sources` tells, as recordings and offsets."""
    watched = copy.copy(crops)
    watched.samples = reads = _Reads(crops.samples)  # type: ignore[assignment]
    watched[number]
    return [_place(crops.utterances, start) for start in reads.starts]


class _Reads:
    """Samples that remember where slices of them were taken."""

    def __init__(self, samples: np.ndarray) -> None:
        self.samples, self.starts = samples, list[int]()

    def __getitem__(self, part: slice) -> np.ndarray:
        self.starts.append(part.start)
        return self.samples[part]


def _place(utterances: Sequence[Utterance], position: int) -> tuple[Utterance, int]:
    """The recording at a position of the cache, and how far into it that is."""
    found = next(u for u in utterances if u.start <= position < u.start + u.num_samples)
    return found, position - found.start
