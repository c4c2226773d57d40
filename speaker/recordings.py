"""What to embed, named: sound files, folders of them, and lists of recordings.

A list is a .csv whose heading has a column `path` (relative to the list; the path is the name, other columns are not
read), a .tsv of the same, or Kaldi's `wav.scp` (`key path` a line; the key is the name; a folder that holds one stands
for it). Nothing that a list says is run: pipes are refused.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import AudioError, ConfigError
from engine.files import find_files

__all__ = ["SUFFIXES", "Recording", "find_recordings", "list_recordings"]

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"})
SEPARATORS = {".csv": ",", ".tsv": "\t"}
SCP = "wav.scp"


@dataclass(frozen=True)
class Recording:
    """A file, and what it is called in the output."""

    name: str
    path: Path


def list_recordings(paths: Sequence[Path]) -> list[Recording]:
    """Files, folders and lists -> recordings in that order.

    Raises AudioError for a folder without any, ConfigError for a list that is none, or a name that stands twice.
    """
    found: list[Recording] = []
    for path in paths:
        if path.suffix.lower() in SEPARATORS:
            found += _read_table(path)
        elif path.suffix.lower() == ".scp":
            found += _read_scp(path)
        elif (path / SCP).is_file():
            found += _read_scp(path / SCP)
        else:
            found += [Recording(str(file), file) for file in find_recordings([path])]
    seen: set[str] = set()
    for recording in found:
        if recording.name in seen:
            raise ConfigError(f"{recording.name} is listed twice; an embedding is found by its name, so give each once")
        seen.add(recording.name)
    return found


def find_recordings(paths: Sequence[Path]) -> list[Path]:
    """Files as given and, of folders, all recordings below them but hidden ones; AudioError if a folder has none."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = list(find_files(path, SUFFIXES))
        if not inside:
            raise AudioError(f"no {', '.join(sorted(SUFFIXES))} file below {path}")
        found += inside
    return found


def _read_table(manifest: Path) -> list[Recording]:
    reader = csv.DictReader(_lines(manifest), delimiter=SEPARATORS[manifest.suffix.lower()], strict=True)
    found = []
    try:
        if "path" not in (reader.fieldnames or ()):
            raise ConfigError(f"{manifest}: a list of recordings needs a column `path`; its first line has "
                              f"{', '.join(reader.fieldnames or ()) or 'nothing'}")  # fmt: skip
        for row in reader:
            if not row["path"]:
                raise ConfigError(f"{manifest}, line {reader.line_num}: path is empty; fill it in or remove the row")
            found.append(Recording(row["path"], manifest.parent / row["path"]))
    except csv.Error as error:
        raise ConfigError(f"{manifest}, after line {reader.line_num}: {error}") from error
    return _some(found, manifest)


def _read_scp(scp: Path) -> list[Recording]:
    if scp.with_name("segments").exists():
        raise ConfigError(f"{scp}: `segments` beside it names parts of the recordings, which are not cut here; make "
                          "files of them, or copy wav.scp elsewhere to embed whole recordings")  # fmt: skip
    found = []
    for number, line in enumerate(_lines(scp), 1):
        if not line.strip():
            continue
        key, *rest = line.strip().split(maxsplit=1)
        where = f"{scp}, line {number}"
        if not rest:
            raise ConfigError(f"{where}: expected `key path`, got {key!r} alone")
        target = rest[0]
        if target == "-" or target.startswith("|") or target.endswith("|"):
            raise ConfigError(f"{where}: {key} is a pipe, and commands are not run here; write its output to a file")
        if re.search(r":\d+$", target):
            raise ConfigError(f"{where}: {key} lies in a Kaldi archive; copy it to wav files (wav-copy) first")
        beside = scp.parent / target
        # Kaldi itself reads paths from the working directory.
        found.append(Recording(key, beside if beside.exists() else Path(target)))
    return _some(found, scp)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no list of recordings can be read from it ({error})") from error


def _some(found: list[Recording], path: Path) -> list[Recording]:
    if not found:
        raise ConfigError(f"{path} lists no recordings")
    return found
