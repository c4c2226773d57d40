"""Memory and speed of `codec encode` and `codec decode` by the length of the file, each in a process of its own.

    python -m benchmarks.stream_memory SPEECH.wav [--seconds 10 3600 36000] [--write docs/streaming.md]

The speech is repeated to the lengths wanted (as FLAC, in a temporary folder). "At once": the model on a waveform that
is in memory already, 60 s of it, in this process: what reading, resampling and writing piece by piece add to that.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import codec
from benchmarks import report
from engine import audio, checkpoint
from engine.errors import SpeechError

# What a child reports of itself: getrusage would count the memory of the parent that it was forked from. Linux only.
PROGRAM = """
from codec.cli import main
try:
    main()
finally:
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
COMMAND = [sys.executable, "-c", PROGRAM]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--seconds", nargs="+", type=int, default=[10, 3600, 36000])
    parser.add_argument("--model", default="esc_live")
    parser.add_argument("--write", type=Path, help="document to write the table into")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    made = partial(measure, options.speech, options.seconds, options.model)
    return report.publish("stream_memory", "memory", made, [options.write])


def measure(speech: Path, lengths: list[int], name_or_folder: str) -> str:
    """A table, a row for each length."""
    wav = audio.load(speech, 16000, mono=True)[0]
    model = codec.load(name_or_folder)
    minute = wav.repeat(1, 60 * 16000 // wav.shape[1] + 1)[:, : 60 * 16000]
    start = time.process_time()
    codes = model.encode(minute)
    encoded = time.process_time()
    model.decode(codes)
    at_once = 60 / (encoded - start), 60 / (time.process_time() - encoded)
    rows = [["60 s, at once", "", f"{at_once[0]:.0f}", "", f"{at_once[1]:.0f}"]]
    chosen = ["--model", elsewhere(name_or_folder), "--force"]
    with tempfile.TemporaryDirectory() as name:
        for seconds in lengths:
            folder = Path(name)
            audio.save(folder / "long.flac", _repeated(wav, seconds * 16000), 16000)
            sizes = []
            for what in (["encode", "long.flac", "long.esc"], ["decode", "long.esc", "back.flac"]):
                memory, cpu = _run([*COMMAND, *what, *chosen], folder)
                sizes += [f"{memory / 1e6:.0f} MB", f"{seconds / cpu:.0f}"]
            rows.append([_length(seconds), *sizes])
            print(*rows[-1], sep="\t", file=sys.stderr)
    heading = ["length", "encode: peak memory", "times real time", "decode: peak memory", "times real time"]
    told = "CPU time of the whole process, start of Python and torch included; one thread."
    return f"{report.table(heading, rows)}\n\n{told}"


def elsewhere(model: str) -> str:
    """What names the same model in a process with another working folder: of a folder its full path."""
    if model in checkpoint.shipped() or model.startswith(checkpoint.HUB):
        return model
    return str(Path(model).resolve())


def _repeated(wav: Tensor, num_samples: int) -> Iterator[Tensor]:
    while num_samples > 0:
        yield wav[:, :num_samples]
        num_samples -= wav.shape[1]


def _length(seconds: int) -> str:
    return f"{seconds // 3600} h" if seconds % 3600 == 0 else f"{seconds} s"


def _run(command: list[str], folder: Path) -> tuple[float, float]:
    """Peak memory in bytes and CPU seconds of a command."""
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    before = os.times()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    after = os.times()
    if done.returncode:
        raise SpeechError(f"{' '.join(command[len(COMMAND) :])} failed: {done.stderr}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return 1024 * int(done.stdout.split()[-1]), cpu


if __name__ == "__main__":
    sys.exit(main())
