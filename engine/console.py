"""What commands share: they end cleanly when told to, print any file name, and show how far they are."""

from __future__ import annotations

import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


def set_up() -> None:
    """Let SIGTERM and SIGHUP end the program as SystemExit, so that what it began to write is removed.

    Python's default ends it on the spot. Of a program's main thread alone; a signal that is ignored stays so (nohup).
    File names that are no text are printed with each of their bytes as Python holds it, \\udcNN.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _leave)


@contextmanager
def progress(total: float) -> Iterator[Callable[[float], None]]:
    """A bar on a terminal's error output, and nothing elsewhere; yields a function to tell how much is done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
