"""Train a model: python -m recipes.train esc_live:base --data MANIFEST [--data ...] --out runs/x [--resume].

The run folder gets recipe.json, metrics.csv (every metric of every validation), checkpoints/last.ckpt. `--resume`
continues from the last checkpoint: weights, their average, optimizer, schedule and position in the data.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Sampler

import codec
from engine.errors import ConfigError, SpeechError
from recipes.export import describe_data
from recipes.harness.callbacks import Ema, LastCheckpoint, Progress
from recipes.harness.data import SpeechCrops, build_cache, is_validation
from recipes.recipe import Recipe
from recipes.tasks.codec import CodecTask

log = logging.getLogger("recipes.train")


def find_recipe(name: str) -> Recipe:
    """Return the recipe `module:function`; ConfigError says which there are."""
    module_name, _, function = name.partition(":")
    known = sorted(
        p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in {"__init__", "train", "recipe", "export"}
    )
    if module_name not in known:
        raise ConfigError(f"no recipes for {module_name!r}; there are {', '.join(known)}")
    module = importlib.import_module(f"recipes.{module_name}")
    make = getattr(module, function or "base", None)
    if make is None or not callable(make):
        variants = [
            k for k, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__
        ]
        raise ConfigError(f"{module_name} has no variant {function!r}; there are {', '.join(variants)}")
    recipe = make()
    assert isinstance(recipe, Recipe)
    return recipe


class ResumableOrder(Sampler[int]):
    """Crop numbers from the trainer's present step on, each once."""

    def __init__(self, task: CodecTask, total: int) -> None:
        self.task, self.total = task, total

    def __iter__(self) -> Any:
        return iter(range(self.task.global_step * self.task.recipe.batch_size, self.total))

    def __len__(self) -> int:
        return self.total  # of the whole run, since Lightning counts the batches before a resume too


class ResumableLoader(DataLoader[Any]):
    """A loader whose position is the trainer's step (see `ResumableOrder`): it has no state to save."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the position is in the trainer's step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept what `state_dict` returned."""


def loaders(task: CodecTask, manifests: Sequence[str], cache: Path) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Training and validation loaders; validation speakers are never trained on."""
    recipe = task.recipe
    size = recipe.model.samples_per_frame
    samples, utterances = build_cache(list(manifests), cache, recipe.model.sample_rate)
    held_out = [u for u in utterances if is_validation(u.speaker, recipe.validation_percent)]
    train = [u for u in utterances if not is_validation(u.speaker, recipe.validation_percent)]
    hours = sum(u.num_samples for u in train) / recipe.model.sample_rate / 3600
    log.warning("training on %.2f h, %d recordings; validating on %d", hours, len(train), len(held_out))
    if not held_out:
        raise ConfigError(f"no speaker falls into the validation split of {recipe.validation_percent} %; raise it")
    total = recipe.max_steps * recipe.batch_size
    task.crops = SpeechCrops(samples, train, recipe.crop_frames * size, total, recipe.seed)
    valid = SpeechCrops(samples, held_out, recipe.validation_frames * size, recipe.validation_crops, seed=0)
    # Generators of their own: a loader draws a seed when it starts, and a resumed run starts one more.
    return (
        ResumableLoader(
            task.crops, recipe.batch_size, sampler=ResumableOrder(task, total), generator=torch.Generator()
        ),
        DataLoader(valid, recipe.validation_crops, generator=torch.Generator()),
    )


def data_facts(task: CodecTask, manifests: Sequence[str]) -> dict[str, Any]:
    """What a model card says of the data: hours trained on, and a table of the corpora."""
    assert task.crops is not None
    samples = sum(u.num_samples for u in task.crops.utterances)
    return {"hours": samples / task.recipe.model.sample_rate / 3600, "table": describe_data(manifests)}


def make_trainer(recipe: Recipe, out: Path, max_hours: float | None, stop_after: int | None = None) -> pl.Trainer:
    """Trainer with weight averaging and a checkpoint every few minutes."""
    checkpoint = LastCheckpoint(out / "checkpoints", recipe.checkpoint_minutes)
    return pl.Trainer(
        max_steps=min(recipe.max_steps, stop_after or recipe.max_steps),
        max_time=None if max_hours is None else timedelta(hours=max_hours),
        accelerator="auto",
        devices=1,
        precision=recipe.precision,
        logger=False,
        callbacks=[Ema(recipe.ema_decay), checkpoint, Progress(out)],
        gradient_clip_val=recipe.clip_norm,
        val_check_interval=recipe.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def override(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """Apply `field=value` (JSON values; `model.field=value` for the model); unknown fields are errors."""
    for setting in settings:
        key, _, text = setting.partition("=")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        value = tuple(value) if isinstance(value, list) else value
        owner: Any = recipe.model if key.startswith("model.") else recipe
        name = key.removeprefix("model.")
        if name not in {f.name for f in dataclasses.fields(owner)}:
            raise ConfigError(f"no field {key!r}; there are {', '.join(f.name for f in dataclasses.fields(owner))}")
        changed = dataclasses.replace(owner, **{name: value})
        recipe = dataclasses.replace(recipe, model=changed) if owner is recipe.model else changed
    return recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m recipes.train", description=__doc__.split("\n")[0])
    parser.add_argument("recipe", help="NAME:VARIANT, for example esc_live:base")
    parser.add_argument("--data", action="append", required=True, help="manifest CSV; may be repeated")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--resume", action="store_true", help="continue from the run folder's last checkpoint")
    parser.add_argument("--init", type=Path, help="checkpoint folder whose weights to start from")
    parser.add_argument("--max-hours", type=float, help="stop with a checkpoint after this time")
    parser.add_argument("--stop-after", type=int, help="stop with a checkpoint at this step, before the recipe's end")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="where decoded audio is kept")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a recipe field")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_num_threads(options.threads)
    last = options.out / "checkpoints" / "last.ckpt"
    try:
        if options.resume and not last.exists():
            raise ConfigError(f"nothing to resume: {last} does not exist")
        if not options.resume and last.exists():
            raise ConfigError(f"{options.out} holds a run already; add --resume or choose another folder")
        recipe = override(find_recipe(options.recipe), options.set)
        pl.seed_everything(recipe.seed)
        task = CodecTask(recipe)
        if options.init and not options.resume:
            task.start_from(codec.load(options.init))
        train, valid = loaders(task, options.data, options.cache)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe), indent=2) + "\n")
        (options.out / "data.json").write_text(json.dumps(data_facts(task, options.data), indent=2) + "\n")
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists")  # checked above, better
        warnings.filterwarnings("ignore", message="The .*dataloader.* does not have many workers")  # crops are cheap
        trainer = make_trainer(recipe, options.out, options.max_hours, options.stop_after)
        trainer.fit(task, train, valid, ckpt_path=str(last) if options.resume else None, weights_only=False)
    except SpeechError as error:
        print(f"train: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
