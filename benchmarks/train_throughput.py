"""Measure how fast each recipe trains on this machine, and where the time goes.

    python -m benchmarks.train_throughput [NAME:VARIANT...] [--precision 32-true bf16-mixed] [--steps 10] [--ops 12]
        [--threads 1] [--write FILE...]

Runs real training steps (the recipe's task, batch and optimizer, averaged weights, gradient guard) on the bundled
recordings. The first steps are not counted. A step is divided at the places that Lightning calls back: `data` (drawing
and collating crops), `forward` (the model), `losses` (everything else before the backward pass), `backward`,
`optimizer` (gradient check, clipping and step), `average` (of the weights). Means over the steps; the range is that of
the fastest and the slowest step. On one thread of a CPU it counts the processor's time, so that a busy machine does not
matter; on more threads or a GPU the clock's. `--ops` profiles a few steps more and lists the operations that take most.
`--write` puts the tables between the lines <!-- throughput --> and <!-- /throughput -->.
"""

import argparse
import csv
import dataclasses
import importlib
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from benchmarks.report import table, write_sections
from engine import audio
from engine.errors import SpeechError
from recipes import train
from recipes.harness import loaders, record
from recipes.harness.callbacks import Stop
from recipes.recipe import Recipe
from recipes.tasks import make_task
from speaker.model import SpeakerEncoder

RECORDINGS = Path(audio.__file__).parent / "recordings"
PHASES = ("data", "forward", "losses", "backward", "optimizer", "average")
WARM_UP = 3  # steps: caches, kernels and the allocator settle
PROFILED = 3  # steps
SPEAKERS = 100  # as many names for the few recordings, so that some fall into the validation split


@dataclass
class Clock(pl.Callback):
    """Adds the time between two marks to the phase that the earlier one named; last in the list of callbacks.

    With `profiler` it starts that after the timed steps.
    """

    steps: int
    now: Callable[[], float]
    profiler: Any = None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    each: list[float] = field(default_factory=list)  # seconds of every step
    phase: str = ""
    since: float = 0.0
    done: int = 0

    def mark(self, phase: str) -> None:
        """Book the time since the last mark, and begin `phase`."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # a GPU works on behind the back of the clock
        now = self.now()
        if self.phase and WARM_UP <= self.done < WARM_UP + self.steps:
            self.seconds[self.phase] += now - self.since
            self.each[-1] += now - self.since
        self.phase, self.since = phase, now

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        first = last = pl_module.model
        if isinstance(first, SpeakerEncoder):  # SpeakerTask calls its parts, the front end in single precision
            first, last = first.front_end, first.backbone
        first.register_forward_pre_hook(lambda *_: self.mark("forward"))
        last.register_forward_hook(lambda *_: self.mark("losses"))
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda *_: self.mark("average"))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.mark("losses")

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Any) -> None:
        self.mark("backward")

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.mark("optimizer")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.mark("data")
        self.done += 1
        self.each.append(0.0)
        if self.profiler and self.done == WARM_UP + self.steps:
            self.profiler.start()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.profiler:
            self.profiler.stop()

    def of_steps(self) -> list[float]:
        """Seconds of each timed step; a step begins with its data."""
        return [seconds for seconds in self.each if seconds][: self.steps]


@dataclass(frozen=True)
class Result:
    """What was measured of one recipe at one precision."""

    recipe: str
    precision: str
    audio_seconds: float  # of a step
    clock: Clock

    def row(self) -> list[str]:
        """A line of the table."""
        each = self.clock.of_steps()
        mean = sum(each) / len(each)
        phases = [f"{1e3 * self.clock.seconds[phase] / len(each):.1f}" for phase in PHASES]
        spread = f"{1e3 * mean:.0f} [{1e3 * min(each):.0f}, {1e3 * max(each):.0f}]"
        return [self.recipe, self.precision, f"{self.audio_seconds / mean:.1f}", spread, *phases]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="NAME:VARIANT", help="default: all")
    parser.add_argument("--precision", nargs="+", default=precisions(), help="default here: %(default)s")
    parser.add_argument("--steps", type=int, default=10, help="timed steps (default: %(default)s)")
    parser.add_argument("--ops", type=int, default=0, metavar="N", help="list the N most expensive operations")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", nargs="+", type=Path, default=[], metavar="FILE")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    train.keep_memory()
    for name in ("recipes", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in ("The .*dataloader.* does not have many workers", ".* have no `val_dataloader`"):
        warnings.filterwarnings("ignore", message=message)
    try:
        results = [
            measure(name, precision, options.steps, options.ops)
            for name in options.recipes or all_recipes()
            for precision in options.precision
        ]
        text = to_markdown(results, options.ops)
        print(text)
        for path in options.write:
            write_sections(path, {"throughput": text})
    except SpeechError as error:
        print(f"train_throughput: error: {error}", file=sys.stderr)
        return 2
    return 0


def precisions() -> list[str]:
    """Single precision, and bfloat16 where the processor computes with it rather than pretends to."""
    listing = Path("/proc/cpuinfo")
    flags = listing.read_text(errors="replace") if listing.exists() else ""
    has_bf16 = torch.cuda.is_available() or any(flag in flags for flag in ("avx512_bf16", "amx_bf16"))
    return ["32-true", "bf16-mixed"] if has_bf16 else ["32-true"]


def all_recipes() -> list[str]:
    """NAME:VARIANT of every recipe there is."""
    names = []
    for path in sorted(Path(train.__file__).parent.glob("*.py")):
        if path.stem not in train.NO_RECIPES:
            module = importlib.import_module(f"recipes.{path.stem}")
            own = [k for k, v in vars(module).items() if callable(v) and v.__module__ == module.__name__]
            names += [f"{path.stem}:{variant}" for variant in own if not variant.startswith("_")]
    return names


def measure(name: str, precision: str, steps: int, ops: int) -> Result:
    """Train for a few steps, as `recipes.train` does, with a clock."""
    recipe = prepared(train.find_recipe(name), precision)
    profiler = torch.profiler.profile() if ops else None
    one_thread = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock = Clock(steps, time.process_time if one_thread else time.perf_counter, profiler)
    total = WARM_UP + steps + (PROFILED if ops else 1)
    with tempfile.TemporaryDirectory() as folder:
        given = ["--out", folder, "--fast-dev-run", "--stop-after", str(total)]
        options = train.make_parser().parse_args(given)
        pl.seed_everything(recipe.seed, verbose=False)
        task = make_task(recipe)
        callbacks = [*train.make_callbacks(recipe, options, task, Stop(None)), clock]
        trainer = train.make_trainer(recipe, options, callbacks)
        batches, _ = loaders.make_loaders(task, [write_manifest(Path(folder))], Path(folder))
        trainer.fit(task, batches)
    if clock.done < total:  # a signal: `Stop` ends a training as if it were whole, figures would be of a part
        raise SpeechError(f"{name}, {precision}: stopped after {clock.done} of {total} steps; measure again")
    return Result(name, precision, task.seconds_per_step, clock)


def prepared(recipe: Recipe, precision: str) -> Recipe:
    """The recipe at the precision, in the state of its steady part: no bypass, all networks at work, no validation."""
    wanted = {"precision": precision, "start_seconds": 10.0, "bypass_steps": 0, "discriminator_steps": 0}
    known = {f.name for f in dataclasses.fields(recipe)}
    return dataclasses.replace(recipe, max_steps=10_000, **{k: v for k, v in wanted.items() if k in known})  # type: ignore[arg-type]


def write_manifest(folder: Path) -> str:
    """A manifest of the bundled recordings, under as many speakers' names as it takes."""
    recordings = sorted(RECORDINGS.glob("*.flac"))
    path = folder / "manifest.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "corpus", "speaker", "seconds", "language", "licence"])
        for i in range(SPEAKERS):
            recording = recordings[i % len(recordings)]
            seconds = audio.probe(recording).num_samples / audio.probe(recording).sample_rate
            writer.writerow([recording, "train", "bundled", f"bundled/{i}", f"{seconds:.3f}", "", ""])
    return str(path)


def to_markdown(results: list[Result], ops: int) -> str:
    """The table of all, the machine, and the operations of each."""
    heading = ["recipe", "precision", "audio s per s", "ms a step", *(f"{phase} ms" for phase in PHASES)]
    parts = [table(heading, [result.row() for result in results])]
    facts = record.machine()
    device = ", ".join(facts["accelerators"]) or f"{facts['cpu']}, {facts['threads']} of {facts['cores']} cores"
    counted = "processor time" if results[0].clock.now is time.process_time else "time by the clock"
    parts.append(
        f"{device}; torch {torch.__version__}; {counted}, mean over {results[0].clock.steps} steps [fastest, slowest]."
    )
    for result in results if ops else []:
        averages = result.clock.profiler.key_averages()
        total = sum(event.self_cpu_time_total for event in averages)
        most = sorted(averages, key=lambda event: -event.self_cpu_time_total)[:ops]
        rows = [
            [f"`{e.key}`", f"{100 * e.self_cpu_time_total / total:.1f} %", f"{e.count / PROFILED:.0f}"] for e in most
        ]
        parts.append(table([f"operations of {result.recipe}, {result.precision}", "time", "calls a step"], rows))
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
