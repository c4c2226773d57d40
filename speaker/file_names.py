"""What names of files tell: who speaks, and text, where their bytes are none.

Of a name that is no text Python keeps the bytes as lone surrogates, which no UTF-8 can hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath


def text_of(name: str) -> str:
    """A name as files and databases hold it, bytes that are no UTF-8 as \\xNN; others stay as they are."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def people(names: Sequence[str]) -> list[str]:
    """Who speaks in recordings of these names, each a person's folder; several in one folder alone are each somebody.

    Of two who lie in one folder the mean would be a voice that nobody has.
    """
    folders = {PurePath(name).parent for name in names}
    flat = len(folders) == 1 and len(names) > 1
    return [PurePath(name).stem if flat else PurePath(name).parent.name or PurePath(name).stem for name in names]
