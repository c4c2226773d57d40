"""Embedding many recordings so that a run that is killed continues where it was.

What is done is saved beside the output every half minute, as `OUT.partial.npz`, whole or not at all. The same command
given again takes from there all recordings that have not changed since (path, size, time of change), embeds the others,
and replaces the partial file by the output. Recordings are batched in the same way as in an uninterrupted run, so that
the numbers are the same too; one that could not be read is tried again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.errors import ScoreError
from engine.files import replacing
from speaker import embedding_files
from speaker.embed import READ_AHEAD, embed_files
from speaker.embedding_files import EmbeddingFile
from speaker.model import SpeakerEncoder
from speaker.recordings import Recording

__all__ = ["embed_resumably", "partial_path"]

SAVE_SECONDS = 30.0
SAVE_SHARE = 0.05  # of the time at most goes into saving, which takes longer the more there is


@dataclass
class _Done:
    """By name: embeddings, seconds of speech, and the state of the file that they are of."""

    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    stamps: dict[str, str] = field(default_factory=dict)


def partial_path(out: Path) -> Path:
    """Where what is done is kept until `out` is complete."""
    return out.with_name(f"{out.name}.partial.npz")


def embed_resumably(
    encoder: SpeakerEncoder, recordings: Sequence[Recording], out: Path, force: bool = False, bfloat16: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[EmbeddingFile, dict[str, str]]:  # fmt: skip
    """Embed what is not done yet, write `out`, return it and what failed, name -> reason.

    Raises ScoreError where `out` exists, or was begun with another model or other options, without `force`.
    """
    embedding_files.check_format(out)
    if out.exists() and not force:
        raise ScoreError(f"{out} exists; --force overwrites it")
    model = encoder.identity
    origin = f"{model}{', bfloat16' if bfloat16 else ''}"
    partial = partial_path(out)
    done = _resume(partial, origin, recordings, force)
    failed: dict[str, str] = {}
    saved_at, pause, unsaved = time.monotonic(), SAVE_SECONDS, False
    try:
        for start in range(0, len(recordings), READ_AHEAD):
            window = recordings[start : start + READ_AHEAD]
            missing = [each for each in window if each.name not in done.vectors]
            if missing:
                failed |= _embed(encoder, missing, done, bfloat16)
                unsaved = True
            progress(start + len(window))
            if unsaved and time.monotonic() - saved_at >= pause:
                begin = time.monotonic()
                _save(partial, origin, done)
                saved_at, unsaved = time.monotonic(), False
                pause = max(SAVE_SECONDS, (saved_at - begin) / SAVE_SHARE)
        names = [each.name for each in recordings if each.name in done.vectors]
        if not names:
            name, reason = next(iter(failed.items()))
            raise ScoreError(f"none of {len(recordings)} recordings can be embedded, the first is {name}: {reason}")
        vectors = np.array([done.vectors[name] for name in names], dtype=np.float32)
        file = EmbeddingFile(names, vectors.reshape(len(names), encoder.embedding_dim),
                             np.array([done.seconds[name] for name in names]), model)  # fmt: skip
        embedding_files.write(out, file)
    except BaseException:  # interrupted, or the disk is full: keep what has been computed
        if unsaved and done.vectors:
            _save(partial, origin, done)
        raise
    partial.unlink(missing_ok=True)
    return file, failed


def _embed(encoder: SpeakerEncoder, recordings: list[Recording], done: _Done, bfloat16: bool) -> dict[str, str]:
    stamps = {each.name: _stamp(each.path) for each in recordings}  # before the file is read, should it change now
    found = embed_files(encoder, [each.path for each in recordings], bfloat16=bfloat16)
    rows = {name: row for row, name in enumerate(found.names)}
    for each in recordings:
        row = rows.get(str(each.path))
        if row is not None:
            done.vectors[each.name] = found.vectors[row]
            done.seconds[each.name] = found.quality[row].seconds
            done.stamps[each.name] = stamps[each.name]
    reasons = {each.name: found.failed.get(str(each.path)) for each in recordings}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _resume(partial: Path, origin: str, recordings: Sequence[Recording], force: bool) -> _Done:
    if not partial.exists():
        return _Done()
    try:
        with partial.open("rb") as source, np.load(source, allow_pickle=False) as parts:
            made_by = str(parts["origin"])
            columns = zip(*(parts[name] for name in ("names", "embeddings", "seconds", "stamps")), strict=True)
            rows = {str(name): row for name, *row in columns}
    except embedding_files.BROKEN as error:
        raise ScoreError(f"{partial} is no unfinished run ({embedding_files.reason(error)}); remove it") from error
    if made_by != origin:
        if force:
            return _Done()
        raise ScoreError(f"{partial} is the beginning of a run with {made_by}, this one is with {origin}; give the "
                         "same model and options, or --force to begin anew")  # fmt: skip
    done = _Done()
    for each in recordings:
        if each.name in rows and str(rows[each.name][2]) == _stamp(each.path):
            vector, seconds, stamp = rows[each.name]
            done.vectors[each.name], done.seconds[each.name], done.stamps[each.name] = (
                vector,
                float(seconds),
                str(stamp),
            )
    return done


def _stamp(path: Path) -> str:
    """Tells a file from another one, and from itself before it was changed."""
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def _save(partial: Path, origin: str, done: _Done) -> None:
    with replacing(partial) as file, file.open("wb") as target:
        np.savez(
            target,
            names=np.array(list(done.vectors), dtype=str),
            embeddings=np.array(list(done.vectors.values()), dtype=np.float32),
            seconds=np.array(list(done.seconds.values())),
            stamps=np.array(list(done.stamps.values()), dtype=str),
            origin=np.array(origin),
        )
