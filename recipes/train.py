"""Train a model: python -m recipes.train esc_live:base --data MANIFEST [--data ...] --out runs/x [--resume].

The run folder gets recipe.json, run.json (code, data, libraries, machine of each start), data.json, metrics.csv (every
metric of every validation) and checkpoints/ with last.ckpt, best.ckpt and curves.png. `--resume` continues from the
last checkpoint: weights, their average, optimizer, schedule and position in the data; recipe and data are then those
of the run. A run stops with a checkpoint at the end, at --max-hours, on SIGTERM and on SIGINT.

Exit status: 0 trained to the end, to --stop-after or to --max-hours; 2 error; 130 after SIGINT, 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import importlib
import json
import logging
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy

from engine.checkpoint import load_config
from engine.errors import ConfigError, SpeechError
from recipes.export import describe_data
from recipes.harness import loaders, plots, record
from recipes.harness.callbacks import Checkpoints, Ema, Guard, Settings, Stop
from recipes.harness.data import data_digest
from recipes.harness.progress import Progress
from recipes.harness.recordings import UNLABELLED
from recipes.harness.task import Task
from recipes.recipe import Recipe
from recipes.tasks import make_task

log = logging.getLogger("recipes.train")
NO_RECIPES = {
    "__init__",
    "balance",
    "norms",
    "train",
    "recipe",
    "calibrate",
    "diarization",
    "directions",
    "export",
    "cache",
    "public_corpora",
    "public_speech",
    "teach",
    "teachers",
}  # other modules beside the recipes


def find_recipe(name: str) -> Recipe:
    """Return the recipe `module:function`; ConfigError says which there are."""
    module_name, _, function = name.partition(":")
    known = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in NO_RECIPES)
    if module_name not in known:
        raise ConfigError(f"no recipes for {module_name!r}; there are {', '.join(known)}")
    module = importlib.import_module(f"recipes.{module_name}")
    variants = {k: v for k, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__}
    make = variants.get(function or "base")
    if make is None:
        raise ConfigError(f"{module_name} has no variant {function!r}; there are {', '.join(variants)}")
    recipe = make()
    assert isinstance(recipe, Recipe)
    return recipe


def override(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """Apply `field=value` (JSON values; `model.field=value`, `augment.field=value` inside); unknown ones are errors."""
    values = dataclasses.asdict(recipe)
    for setting in settings:
        key, _, text = setting.partition("=")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        part, _, name = key.rpartition(".")
        owner = values.get(part) if part else values
        if not isinstance(owner, dict) or name not in owner:
            known = owner if isinstance(owner, dict) else values
            raise ConfigError(f"no field {key!r}; there are {', '.join(known)}")
        owner[name] = value
    # As it will be read back: a value of the wrong type is an error now, not after hours.
    return load_config(type(recipe), values) if settings else recipe


def keep_memory() -> None:
    """Tell glibc to keep the memory it has been given.

    By default it returns large blocks to the system when they are freed, after every step, and the next step pays for
    them again with a page fault every 4 KB: 5 to 15 % of the time. No effect on other C libraries.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # from malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(mmap_max, 0)  # no block is a mapping of its own
    mallopt(trim_threshold, -1)  # the heap never shrinks
    mallopt(top_pad, 1 << 28)  # and grows by 256 MB at a time


def chosen_recipe(options: argparse.Namespace) -> tuple[str, Recipe, list[str]]:
    """Name of the recipe, its fields with --set applied, and the manifests; of a resumed run what it was begun with."""
    past = record.starts(options.out) if options.resume else []
    name = options.recipe or (past[-1]["recipe"] if past else None)
    data = options.data or (past[-1]["data"] if past else None)
    if name is None or not data:
        raise ConfigError("give a recipe NAME:VARIANT and --data MANIFEST; only a run that is resumed may know them")
    if past and name != past[-1]["recipe"]:
        raise ConfigError(f"{options.out} was begun as {past[-1]['recipe']}, not {name}")
    recipe = find_recipe(name)
    if not options.resume:
        return name, override(recipe, options.set), data
    recipe = record.load_recipe(options.out, type(recipe))
    changed = override(recipe, options.set)
    for part in ("model", "optimizer"):
        if getattr(changed, part) != getattr(recipe, part):
            raise ConfigError(f"the {part} of a run cannot change; begin another run, with --init if the shapes agree")
    return name, changed, data


def make_strategy(options: argparse.Namespace) -> Any:
    """One process, or synchronous gradients on several.

    A step that leaves out the finest levels leaves their parameters without a gradient: hence "unused". Buffers need
    not be sent: those of codebooks are equal on all ranks by what they do, statistics of a batch normalization are each
    rank's own, and those of rank 0 are kept.
    """
    if options.strategy == "auto" and options.devices * options.num_nodes == 1:
        return "auto"
    return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)


def make_trainer(recipe: Recipe, options: argparse.Namespace, callbacks: list[pl.Callback]) -> pl.Trainer:
    """Trainer for the recipe on the devices asked for; everything else is in the callbacks."""
    return pl.Trainer(
        max_steps=min(recipe.max_steps, options.stop_after or recipe.max_steps),
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=make_strategy(options),
        use_distributed_sampler=False,  # the loaders deal out the crops themselves, by number
        precision=recipe.precision,  # type: ignore[arg-type]
        logger=False,
        callbacks=callbacks,
        gradient_clip_val=recipe.clip_norm,
        val_check_interval=recipe.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_checkpointing=not options.fast_dev_run,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def make_callbacks(recipe: Recipe, options: argparse.Namespace, task: Task, stop: Stop) -> list[pl.Callback]:
    """Averaging, guard and clean stop; checkpoints and reports unless it is a --fast-dev-run."""

    def batch_sources() -> list[str]:
        assert task.crops is not None
        return [place for number in loaders.batch_numbers(task) for place in loaders.sources(task.crops, number)]

    callbacks: list[pl.Callback] = [
        Settings(),
        Ema(recipe.ema_decay),
        Guard(recipe.skip_bad_batches, batch_sources),
        stop,
    ]
    if options.fast_dev_run:
        return callbacks
    callbacks += [
        Progress(options.out, stop.deadline),
        Checkpoints(options.out / "checkpoints", recipe.checkpoint_minutes),
    ]
    if options.tensorboard or (options.tensorboard is None and plots.installed("tensorboard")):
        callbacks.append(plots.Board(options.out))
    return callbacks


def data_facts(task: Task, manifests: Sequence[str]) -> dict[str, Any]:
    """What a model card says of the data: hours trained on, and a table of the corpora."""
    assert task.crops is not None
    samples = sum(u.num_samples for u in task.crops.utterances)
    speakers = len({u.speaker for u in task.crops.utterances if not u.speaker.endswith(UNLABELLED)})
    hours = samples / task.recipe.sample_rate / 3600
    return {"hours": hours, "speakers": speakers, "table": describe_data(manifests)}


def check_resumed(task: Task, past: dict[str, Any], trained: dict[str, Any]) -> None:
    """ConfigError if a run cannot go on with the task: `past` is its last start, `trained` its checkpoint.

    Warns where the data are others.
    """
    assert task.crops is not None
    other = "or begin another run with --init"
    for fact, what in (
        # Its mean and its directions are those of all that is in the file: others would be another space to learn.
        ("teacher_sha256", "the teacher's embeddings are not those that it has learned from so far; bring that file "
                           "back (--set teacher=FILE)"),
        ("labels_sha256", "its classes are not the speakers that these data give; give the data and the share of "
                          "validation that it had"),
    ):  # fmt: skip
        if past.get(fact) and past[fact] != task.facts.get(fact):
            raise ConfigError(f"the run cannot be resumed so: {what}, {other}")
    shapes = {name: tuple(value.shape) for name, value in task.state_dict().items()}
    had = {name: tuple(value.shape) for name, value in trained["state_dict"].items()}
    if differing := sorted(name for name in shapes.keys() | had.keys() if shapes.get(name) != had.get(name)):
        name = differing[0]
        raise ConfigError(
            f"the run cannot be resumed so: its {name} has the shape {had.get(name)}, with these data and settings it "
            f"would have {shapes.get(name)}; leave what changes it as it was, {other}"
        )
    if past["data_digest"] != data_digest(task.crops.utterances):
        log.warning("the data differ from those that this run has seen so far; run.json has the digests")


def write_records(options: argparse.Namespace, task: Task, name: str, data: list[str], step: int) -> None:
    """Write recipe.json, data.json and run.json; of a start that never came to a checkpoint nothing is kept."""
    assert task.crops is not None
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.resume:
        for stale in ("recipe.json", "run.json"):
            (options.out / stale).unlink(missing_ok=True)
    digest = data_digest(task.crops.utterances)
    record.save_recipe(options.out, task.recipe, step)
    record.write_json(options.out / "data.json", data_facts(task, data))
    ranks = options.devices * options.num_nodes
    facts = {"recipe": name, "data": data, "data_digest": digest, "step": step, "ranks": ranks, **task.facts}
    record.add_start(options.out, **facts)


def run(options: argparse.Namespace) -> int:
    """Train as the options say; return the exit status."""
    deadline = None if options.max_hours is None else time.monotonic() + 3600 * options.max_hours
    last = options.out / "checkpoints" / "last.ckpt"
    if options.resume and not last.exists():
        raise ConfigError(f"nothing to resume: {last} does not exist")
    if options.resume and options.fast_dev_run:
        raise ConfigError("--fast-dev-run begins anew and keeps nothing; leave --resume out")
    if options.resume and options.init:
        raise ConfigError("a run that is resumed goes on from its own weights; leave --init or --resume out")
    if last.exists() and not options.resume and not options.fast_dev_run:
        raise ConfigError(f"{options.out} holds a run already; add --resume or choose another folder")
    name, recipe, data = chosen_recipe(options)
    recipe = recipe.shortened() if options.fast_dev_run else recipe
    pl.seed_everything(recipe.seed, verbose=False)
    task = make_task(recipe)
    if options.init:
        task.start_from(options.init)
    stop = Stop(deadline)
    trainer = make_trainer(recipe, options, make_callbacks(recipe, options, task, stop))
    if not trainer.is_global_zero:
        logging.getLogger("recipes").setLevel(logging.ERROR)  # one process speaks for all
    train, valid = loaders.make_loaders(task, data, options.cache, options.workers, trainer.world_size)
    step = 0
    if options.resume:
        trained = torch.load(last, map_location="cpu", weights_only=True, mmap=True)
        check_resumed(task, record.starts(options.out)[-1], trained)
        step = int(trained["global_step"])
    if trainer.is_global_zero and not options.fast_dev_run:
        write_records(options, task, name, data, step)
        if not options.resume:
            shutil.rmtree(options.out / record.BEGINNING, ignore_errors=True)
            task.keep_beginning(options.out / record.BEGINNING)
    trainer.fit(task, train, valid, ckpt_path=str(last) if options.resume else None, weights_only=True)
    if options.fast_dev_run and trainer.is_global_zero:
        log.warning("a start, three steps and a validation went well; nothing was kept")
    if stop.signal:
        log.warning("stopped by a signal at step %d, with a checkpoint; --resume continues", task.batches_done)
    # Lightning takes another status than 0 of a process that it has started for a failure and kills the others.
    return 128 + stop.signal if stop.signal and trainer.is_global_zero else 0


def make_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m recipes.train", description=__doc__.split("\n")[0])
    parser.add_argument("recipe", nargs="?", help="NAME:VARIANT, for example esc_live:base; --resume knows it")
    parser.add_argument("--data", action="append", help="manifest; may be repeated; --resume knows it")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--resume", action="store_true", help="continue from the run folder's last checkpoint")
    parser.add_argument("--init", help="model whose weights to start from: a folder, or a name that is shipped; with "
                        "the seed of its own run the same crops would come again (--set seed=2)")  # fmt: skip
    parser.add_argument("--max-hours", type=float, help="stop after this time, counted anew at each start")
    parser.add_argument("--stop-after", type=int, help="stop with a checkpoint at this step, before the recipe's end")
    parser.add_argument("--fast-dev-run", action="store_true", help="try everything in a few steps, write nothing")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="where decoded audio is kept")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a recipe field")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--devices", type=int, default=1, help="processes on this machine; they share the batch")
    parser.add_argument(
        "--num-nodes", type=int, default=1, help="machines, each started with its NODE_RANK or torchrun"
    )
    parser.add_argument("--strategy", choices=("auto", "ddp"), default="auto", help="auto is ddp on several devices")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare crops")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--tensorboard", action=argparse.BooleanOptionalAction, help="default: where it is installed")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(options.threads)
    keep_memory()
    warnings.filterwarnings("ignore", message="The .*dataloader.* does not have many workers")  # crops are cheap
    warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist")  # rank 0 alone validates
    try:
        return run(options)
    except SpeechError as error:
        print(f"train: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
