"""Embed the recordings of manifests with a teacher: python -m recipes.teach campplus --data MANIFEST --out FILE.npz.

Speech that is played faster or slower is another voice, so each recording is embedded at several speeds. What training
with `teacher=FILE.npz` then needs is looked up by the sha256 of the samples; the teacher itself is needed no more.
Recordings of one speaker beyond --speaker-seconds, in a fixed random order, are left out.

What FILE holds already is kept and not embedded again, so a command that was interrupted continues when it is given
again, and more manifests can be added to a file later.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from engine.errors import ConfigError, SpeechError
from engine.files import replacing
from recipes.harness.augment import speed
from recipes.harness.data import Utterance, as_float, build_cache
from recipes.harness.recordings import UNLABELLED
from recipes.harness.workers import on_each
from recipes.teachers import Teacher, load_teacher

RATE = 16_000
MOST_SECONDS = 20.0  # of a recording; more does not change an embedding by much
LEAST_SECONDS = 0.5
SAVE_SECONDS = 120.0  # between two writings of the file


@dataclass(frozen=True)
class Targets:
    """Embeddings (K, S, D) of K recordings at S speeds, and the recording's row by the sha256 of its samples."""

    teacher: str
    speeds: tuple[float, ...]
    rows: dict[str, int]
    embeddings: NDArray[np.float32]


def load_targets(path: str | Path) -> Targets:
    """Read what this command wrote; ConfigError if it is something else."""
    try:
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            values = {name: file[name] for name in ("teacher", "speeds", "sha256", "embeddings")}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{path} holds no embeddings of a teacher ({error}); python -m recipes.teach makes them"
        ) from error
    rows = {str(digest): row for row, digest in enumerate(values["sha256"])}
    speeds = tuple(round(float(factor), 4) for factor in values["speeds"])
    return Targets(str(values["teacher"]), speeds, rows, values["embeddings"].astype(np.float32))


def chosen(utterances: Sequence[Utterance], speaker_seconds: float) -> list[Utterance]:
    """Each recording once, in random order, up to that many seconds of a speaker; all of the unlabelled ones.

    The order is that of the digests, so that it stays when manifests are added.
    """
    heard: dict[str, float] = {}
    kept: dict[str, Utterance] = {}
    for utterance in sorted(utterances, key=lambda u: u.sha256):
        seconds = utterance.num_samples / RATE
        enough = heard.get(utterance.speaker, 0.0) >= speaker_seconds and not utterance.speaker.endswith(UNLABELLED)
        if not enough and seconds >= LEAST_SECONDS and utterance.sha256 not in kept:
            kept[utterance.sha256] = utterance
            heard[utterance.speaker] = heard.get(utterance.speaker, 0.0) + seconds
    return list(kept.values())


def teach(name: str, manifests: Sequence[str], out: Path, speeds: Sequence[float], speaker_seconds: float,
          cache: Path, workers: int = 1) -> None:  # fmt: skip
    """Embed what `out` does not have yet, and write."""
    found = begun(out, name, tuple(round(factor, 4) for factor in speeds))
    load = partial(load_teacher, name, half=has_bfloat16())
    if workers > 1:
        load()  # what is missing is said here, not by a process that breaks off
    samples, utterances = build_cache(list(manifests), cache, RATE)
    picked = [u for u in chosen(utterances, speaker_seconds) if u.sha256 not in found]
    picked.sort(key=lambda u: u.num_samples)  # equal lengths one after the other: no kernel is compiled twice
    started, said = time.monotonic(), time.monotonic()
    total, done = sum(u.num_samples for u in picked), 0
    for number, (u, vectors) in enumerate(
        zip(picked, embedded(load, samples, picked, speeds, workers), strict=True), 1
    ):
        found[u.sha256] = vectors
        done += u.num_samples
        if time.monotonic() > said + SAVE_SECONDS:
            said = time.monotonic()
            save(out, name, speeds, found)
            left = (said - started) / done * (total - done) / 60
            print(f"{number:,} of {len(picked):,}, {left:.0f} min left", file=sys.stderr, flush=True)
    save(out, name, speeds, found)


def embedded(
    load: Callable[[], Teacher],
    samples: np.ndarray,
    utterances: Sequence[Utterance],
    speeds: Sequence[float],
    workers: int,
) -> Iterator[NDArray[np.float16]]:
    """(S, D) of each recording, in order, by so many processes of one thread each."""
    beginnings = (samples[u.start : u.start + min(u.num_samples, int(MOST_SECONDS * RATE))] for u in utterances)
    yield from on_each(load, partial(_embedded, speeds=speeds), map(np.array, beginnings), workers)


def _embedded(embed: Teacher, pcm: NDArray[np.int16], speeds: Sequence[float]) -> NDArray[np.float16]:
    wav = as_float(pcm)
    return np.array([embed(wav if factor == 1 else speed(wav, factor)) for factor in speeds], dtype=np.float16)


def has_bfloat16() -> bool:
    """Whether the processor computes in it; others imitate it, slowly."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def begun(out: Path, name: str, speeds: tuple[float, ...]) -> dict[str, NDArray[np.float16]]:
    """Embeddings (S, D) by the sha256 of the recording, of a file to go on with; ConfigError if it is of another kind.

    Nothing where there is no file.
    """
    if not out.exists():
        return {}
    targets = load_targets(out)
    if (targets.teacher, targets.speeds) != (name, speeds):
        raise ConfigError(
            f"{out} was made by {targets.teacher} at the speeds {targets.speeds}, not by {name} at {speeds}; "
            "choose another --out"
        )
    return {digest: targets.embeddings[row].astype(np.float16) for digest, row in targets.rows.items()}


def save(out: Path, name: str, speeds: Sequence[float], found: dict[str, NDArray[np.float16]]) -> None:
    """Write all or nothing."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial, partial.open("wb") as file:
        np.savez(file, teacher=np.array(name), speeds=np.array(speeds), embeddings=np.array(list(found.values())),
                 sha256=np.array(list(found)))  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m recipes.teach", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("teacher", help="campplus or ge2e")
    parser.add_argument("--data", action="append", required=True, help="manifest; may be repeated")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--speeds", type=float, nargs="+", default=[0.9, 1.0, 1.1])
    parser.add_argument("--speaker-seconds", type=float, default=240.0)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="where decoded audio is kept")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_num_threads(1)
    try:
        teach(
            options.teacher,
            options.data,
            options.out,
            options.speeds,
            options.speaker_seconds,
            options.cache,
            options.workers,
        )
    except SpeechError as error:
        print(f"teach: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
