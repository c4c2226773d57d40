"""What commands check of their options before hours of work, and how they print numbers for machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.errors import ScoreError, SpeechError


def writable(out: Path, force: bool, inputs: Sequence[Path | None]) -> None:
    """Said before hours of work: that the file exists, is read too, or has no folder."""
    if any(each is not None and out.resolve() == each.resolve() for each in inputs):
        raise ScoreError(f"{out} is read by this command too; write to another file")
    if out.exists() and not force:
        raise ScoreError(f"{out} exists; --force overwrites it")
    if not out.resolve().parent.is_dir():
        raise ScoreError(f"{out.parent}: no such folder to write {out.name} to")


def creatable(folder: Path, force: bool) -> None:
    """SpeechError for a folder that has something in it already, or a file of that name."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())) and not force:
        raise SpeechError(f"{folder} exists; --force overwrites it")


def probability(prior: float) -> None:
    if not 0 < prior < 1:
        raise ScoreError(f"--prior {prior:g}: it lies between 0 and 1, neither of them included")


def finite(value: Any) -> Any:
    """JSON knows no NaN: null."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and value != value else value
