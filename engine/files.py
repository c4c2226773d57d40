"""Files that appear whole or not at all, and those below a folder."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file beside `path`, which takes its place when the block ends well and vanishes when not.

    A reader sees the old file or all of the new one, never a part; the mode of a file that is replaced is kept.
    """
    # Not the name of `path` with something added: that may be as long as names can be.
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        partial.touch(exist_ok=False)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        if path.exists():
            partial.chmod(path.stat().st_mode)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def find_files(folder: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    """Yield the files below a folder that have one of the suffixes, in sorted order, hidden ones left out."""
    for path in sorted(folder.rglob("*")):
        # "._a.wav" is what macOS keeps of a.wav on other file systems, and no audio.
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in suffixes and not hidden and path.is_file():
            yield path
