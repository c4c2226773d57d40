"""What commands check of their options before hours of work, and how they print numbers for machines."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from engine.errors import ScoreError, SpeechError


def writable(out: Path, force: bool, inputs: Sequence[Path | None]) -> None:
    """Said before hours of work: that the file exists, is read too, or has no folder."""
    if any(each is not None and out.resolve() == each.resolve() for each in inputs):
        raise ScoreError(f"{out} is read by this command too; write to another file")
    if out.is_dir():
        raise ScoreError(f"{out} is a folder; name a file")
    if out.exists() and not force:
        raise ScoreError(f"{out} exists; --force overwrites it")
    if not out.resolve().parent.is_dir():
        raise ScoreError(f"{out.parent}: no such folder to write {out.name} to")
    try:
        tempfile.TemporaryFile(dir=out.resolve().parent).close()
    except OSError as error:
        raise ScoreError(f"{out.name} cannot be written to {out.parent} ({error.strerror})") from error


def creatable(folder: Path, force: bool) -> None:
    """SpeechError for a file of that name, which is never replaced, or a folder that has something in it already."""
    if folder.exists() and not folder.is_dir():
        raise SpeechError(f"{folder} is a file; name a folder")
    if folder.exists() and any(folder.iterdir()) and not force:
        raise SpeechError(f"{folder} exists; --force overwrites it")


def probability(prior: float) -> None:
    if not 0 < prior < 1:
        raise ScoreError(f"--prior {prior:g}: it lies between 0 and 1, neither of them included")


def number(option: str, value: float | None, what: str) -> None:
    """ScoreError for NaN and infinity, which parse as numbers; `what` says what the option takes."""
    if value is not None and not isfinite(value):
        raise ScoreError(f"{option} {value:g}: it is {what}")


def duration(option: str, seconds: float | None) -> None:
    if seconds is not None and not (isfinite(seconds) and seconds > 0):
        raise ScoreError(f"{option} {seconds:g}: it is a number of seconds, above 0")


def warn(sentence: str) -> None:
    """To the error output, like all that is not the result."""
    print(f"speaker: warning: {sentence}", file=sys.stderr)


def finite(value: Any) -> Any:
    """JSON knows no NaN: null."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and value != value else value
