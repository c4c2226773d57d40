"""What sounds are read from: files, standard input, pipes and file objects, made such that they can be seeked."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from engine.errors import AudioError

Source = str | os.PathLike[str] | BinaryIO

STDIN = "-"
named = os.fsencode if os.name == "posix" else os.fspath  # names for libsndfile: as bytes, for not all are text


@dataclass(frozen=True)
class Opened:
    """A source at its beginning, its name for messages, and where the system finds it if it is a file with a name."""

    file: BinaryIO
    name: str
    path: str | bytes | None = None


def held(source: str | os.PathLike[str]) -> str | os.PathLike[str] | io.BytesIO:
    """A path as it is, but the bytes of standard input (`-`) or a pipe, which come only once, as a file in memory.

    Whoever reads a source twice holds it first. Raises AudioError for a pipe that cannot be read or holds nothing.
    """
    if source == STDIN:
        return _in_memory(sys.stdin.buffer.read(), "standard input")
    path = Path(source)
    try:
        if not path.is_fifo():
            return source
        data = path.read_bytes()
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {error.strerror}") from error
    if not data:
        raise AudioError(f"{path} is a pipe that holds nothing; it can be read only once: write it to a file first")
    return _in_memory(data, os.fspath(source))


@contextlib.contextmanager
def opened(source: Source) -> Iterator[Opened]:
    """Open for reading and seeking. Raises AudioError for what is missing, empty, a directory or not readable."""
    found = held(source) if isinstance(source, str | os.PathLike) else source
    if isinstance(found, str | os.PathLike):
        with _file(Path(found)) as file:
            yield Opened(file, os.fspath(found), named(found))
        return
    seekable = found if found.seekable() else io.BytesIO(found.read())
    yield Opened(seekable, str(getattr(found, "name", "the file object")))


def _in_memory(data: bytes, name: str) -> io.BytesIO:
    file = io.BytesIO(data)
    file.name = name
    return file


def _file(path: Path) -> io.BufferedReader:
    """Open a path, and check it with the operating system's own reasons, which libsndfile drops."""
    try:
        if path.is_dir():
            raise AudioError(f"{path} is a directory; give a sound file inside it")
        with contextlib.ExitStack() as on_failure:
            file = on_failure.enter_context(path.open("rb"))
            if not file.peek(1):
                raise AudioError(f"{path} is empty (0 bytes)")
            on_failure.pop_all()
            return file
    except FileNotFoundError as error:
        raise AudioError(f"{path}: no such file") from error
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {error.strerror}") from error
