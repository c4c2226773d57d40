"""What the commands need of the file system: which input goes to which output, and writing without half files."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from engine.errors import AudioError, SpeechError
from engine.files import find_files, replacing

STDIO = "-"
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64", ".caf"})
CODED_SUFFIX = ".esc"


@dataclass(frozen=True)
class Job:
    """One file to read and one to write; either may be `-`."""

    source: str
    target: str
    in_folder: bool = False  # the output is a folder, to be created where it is missing


def plan_jobs(inputs: Sequence[str], output: str, *, source_suffixes: frozenset[str], target_suffix: str) -> list[Job]:
    """Pair inputs with outputs: one to one file, or any number (folders too) into a folder that keeps their tree.

    Raises SpeechError for two inputs with the same output, an output that is its own input, and an empty folder.
    """
    into_folder = len(inputs) > 1 or output.endswith(os.sep) or Path(output).is_dir() or Path(inputs[0]).is_dir()
    if not into_folder:
        jobs = [Job(inputs[0], output)]
    else:
        if output == STDIO or Path(output).is_file():
            raise SpeechError(f"several inputs need a folder to go to, and {output} is not one")
        jobs = []
        for source, name in _expand(inputs, source_suffixes):
            jobs.append(Job(source, str(Path(output, name).with_suffix(target_suffix)), in_folder=True))
    _check_jobs(jobs)
    return jobs


def make_folder(job: Job) -> None:
    """Create the folder of a job whose output was given as a folder."""
    if job.in_folder:
        Path(job.target).parent.mkdir(parents=True, exist_ok=True)


def check_target(target: str, force: bool) -> None:
    """Raise SpeechError if writing to `target` would destroy something, or if it can't be a file."""
    path = Path(target)
    if target == STDIO:
        if sys.stdout.isatty():
            raise SpeechError("binary output is not written to a terminal; redirect it: ... - > FILE")
    elif path.is_dir():
        raise SpeechError(f"{target} is a directory; name a file in it")
    elif path.is_file() and not force:
        raise SpeechError(f"{target} exists; --force overwrites it")
    elif not path.parent.is_dir():
        raise SpeechError(f"no such folder: {path.parent}; create it first")


def read_bytes(source: str) -> bytes:
    """Read a whole file, or stdin for `-`."""
    if source == STDIO:
        return sys.stdin.buffer.read()
    path = Path(source)
    if path.is_dir():
        raise SpeechError(f"{source} is a directory; name a file in it")
    if not path.exists():
        raise SpeechError(f"no such file: {source}")
    return path.read_bytes()


@contextlib.contextmanager
def open_output(target: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing and seeking; a reader sees the old file or all of the new one, never a part.

    What goes to stdout (`-`) or into a pipe is held until it is complete, because neither can be seeked.
    """
    path = Path(target)
    if str(target) != STDIO and (path.is_file() or not path.exists()):
        # The new file goes beside a link's target, so that a link stays a link.
        with replacing(path.resolve()) as partial, partial.open("rb+") as file:
            yield file
        return
    held = io.BytesIO()
    yield held
    if str(target) != STDIO:
        path.write_bytes(held.getbuffer())
        return
    sys.stdout.buffer.write(held.getbuffer())
    sys.stdout.buffer.flush()


def write_bytes(target: str | Path, data: bytes) -> None:
    """Write a whole file, or stdout for `-`."""
    with open_output(target) as file:
        file.write(data)


def _expand(inputs: Sequence[str], suffixes: frozenset[str]) -> Iterator[tuple[str, Path]]:
    """Yield each file with its place relative to the output folder."""
    for entry in inputs:
        path = Path(entry)
        if entry == STDIO:
            raise SpeechError("stdin (-) has no name to save under; give it alone, with a file as output")
        if not path.is_dir():
            yield entry, Path(path.name)
            continue
        files = list(find_files(path, suffixes))
        if not files:
            raise AudioError(f"no {', '.join(sorted(suffixes))} file below {entry}")
        for file in files:
            yield str(file), file.relative_to(path)


def _check_jobs(jobs: Sequence[Job]) -> None:
    source_of: dict[str, str] = {}
    for job in jobs:
        if job.target == STDIO:
            continue
        if job.target in source_of:
            raise SpeechError(f"{source_of[job.target]} and {job.source} would both become {job.target}; rename one")
        source_of[job.target] = job.source
        if job.source != STDIO and os.path.realpath(job.source) == os.path.realpath(job.target):
            raise SpeechError(f"{job.source} is input and output at once")
