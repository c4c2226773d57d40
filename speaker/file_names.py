"""File names that are no text: Python keeps their bytes as lone surrogates, which no UTF-8 can hold."""

from __future__ import annotations


def text_of(name: str) -> str:
    """A name as files and databases hold it, bytes that are no UTF-8 as \\xNN; others stay as they are."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
