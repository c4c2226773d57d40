"""Write training data from clones of public repositories: python -m recipes.public_speech --clones DIR --out DATA.

Which repositories those are, --list tells. They lie below DIR as owner/name, and need no work tree:

    python -m recipes.public_speech --list | while read repository; do
        git clone --bare --depth 1 https://github.com/$repository DIR/$repository; done

Written are DATA/CORPUS/SPEAKER/*.flac, 16 kHz and mono, silences at both ends cut off, and DATA/manifest.csv. Speakers
and recordings that are in the test split of a --leave-out manifest are left out. Run again with other clones, it
replaces the corpora that it finds and keeps the others.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine import audio
from engine.errors import AudioError, ConfigError, SpeechError
from engine.files import replacing
from recipes.harness.recordings import UNLABELLED
from recipes.public_corpora import CLIENTS, CORPORA, NOBODY, Corpus

RATE = 16_000
SOUND = {".wav", ".flac", ".ogg", ".mp3", ".opus", ".ulaw"}
LEAST, MOST = 0.5, 40.0  # seconds of a recording; of longer ones the beginning is taken
LEAST_JOINED = 0.3
QUIET = 38.0  # dB below the loudest 20 ms: silence
MARGIN = 0.15  # seconds of it that stay
FIELDS = ("path", "split", "corpus", "speaker", "seconds", "sample_rate", "language", "licence")
UNWANTED = {"_silence_", "_unknown_", "_background_noise_"}  # folders of Speech Commands
Wav = NDArray[np.float32]
Row = dict[str, Any]
log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the repositories and end")
    parser.add_argument("--clones", type=Path, help="folder of the clones")
    parser.add_argument("--out", type=Path, help="folder to write to")
    parser.add_argument("--leave-out", action="append", default=[], type=Path, metavar="MANIFEST",
                        help="CSV whose test recordings and test speakers are not to be trained on")  # fmt: skip
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.list:
        print("\n".join(corpus.repository for corpus in CORPORA))
        return 0
    if options.clones is None or options.out is None:
        parser.error("--clones and --out are needed")
    try:
        found = {corpus: git for corpus in CORPORA if (git := git_folder(options.clones / corpus.repository))}
        for corpus in CORPORA:
            if corpus not in found:
                log.info("%s: %s is not among the clones", corpus.name, corpus.repository)
        if not found:
            raise ConfigError(f"no repository of --list lies below {options.clones} as owner/name")
        write(found, options.out, tested(options.leave_out), options.workers)
    except (SpeechError, OSError) as error:
        print(f"public_speech: error: {error}", file=sys.stderr)
        return 2
    return 0


def git_folder(clone: Path) -> Path | None:
    """Where the objects of a clone lie, which may be bare; None where there is none."""
    return next((folder for folder in (clone / ".git", clone) if (folder / "HEAD").is_file()), None)


def tested(manifests: Sequence[Path]) -> set[str]:
    """Stems of recordings, and speakers without their corpus, of the test splits; ConfigError for one without any."""
    names = set[str]()
    for manifest in manifests:
        with manifest.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if missing := {"path", "split", "speaker"} - set(table.fieldnames or ()):
                raise ConfigError(f"{manifest}: --leave-out needs the columns {', '.join(sorted(missing))} too")
            rows = [row for row in table if row["split"] == "test"]
        if not rows:
            raise ConfigError(f"{manifest}: no rows of split 'test' to leave out")
        names |= {PurePosixPath(row["path"]).stem for row in rows}
        names |= {row["speaker"].split("/")[-1] for row in rows} - {NOBODY}
        log.info("%s: %d test recordings are left out, and their speakers", manifest, len(rows))
    return names


def write(found: dict[Corpus, Path], out: Path, left_out: set[str], workers: int) -> None:
    """Write the recordings of these corpora and a manifest of all that lies there then."""
    manifest = out / "manifest.csv"
    rows: list[Row] = []
    if manifest.exists():
        with manifest.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["corpus"] not in {corpus.name for corpus in found}]
    # Spawned, not forked: a child of a process with computing threads may wait for them forever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_quietly) as pool:
        for corpus, written in zip(
            found, pool.map(partial(_write, out=out, left_out=left_out), found.items()), strict=True
        ):
            hours = sum(row["seconds"] for row in written) / 3600
            speakers = len({row["speaker"] for row in written})
            log.info("%s (%s): %.2f h, %d recordings, %d speakers",
                     corpus.name, corpus.repository, hours, len(written), speakers)  # fmt: skip
            rows += written
    rows = sorted(once(rows), key=lambda row: (row["corpus"], row["path"]))
    with replacing(manifest) as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        table.writerows(rows)


def once(rows: Sequence[Row]) -> list[Row]:
    """Leave the rows of a person to the first corpus of the table that knows them.

    Under two names somebody would have to be told from themselves, and might be trained on and held out.
    """
    order = {corpus.name: place for place, corpus in enumerate(CORPORA)}
    people = {corpus.name: corpus.people or corpus.name for corpus in CORPORA}
    known: dict[tuple[str, str], str] = {}
    for row in sorted(rows, key=lambda row: order.get(row["corpus"], len(order))):
        known.setdefault(_person(row, people), row["corpus"])
    return [row for row in rows if row["speaker"].endswith(UNLABELLED) or known[_person(row, people)] == row["corpus"]]


def _person(row: Row, people: dict[str, str]) -> tuple[str, str]:
    corpus = str(row["corpus"])
    return people.get(corpus, corpus), str(row["speaker"]).split("/", 1)[1]


def _quietly() -> None:
    torch.set_num_threads(1)
    logging.getLogger("engine").setLevel(logging.ERROR)  # encoders of MP3 announce a few samples too many


def _write(item: tuple[Corpus, Path], out: Path, left_out: set[str]) -> list[Row]:
    corpus, git = item
    rows: list[Row] = []
    for speaker, name, wav in recordings(corpus, git, left_out):
        path = Path(corpus.name, speaker, f"{name}.flac")
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        audio.save(out / path, torch.from_numpy(wav)[None], RATE, subtype="PCM_16")
        facts = (path.as_posix(), "train", corpus.name, f"{corpus.name}/{speaker}", round(len(wav) / RATE, 3), RATE,
                 corpus.language, corpus.licence)  # fmt: skip
        rows.append(dict(zip(FIELDS, facts, strict=True)))
    return rows


def recordings(corpus: Corpus, git: Path, left_out: set[str]) -> Iterator[tuple[str, str, Wav]]:
    """Speaker, name and samples (N,) of each recording; those of a speaker in a random order, the same every time."""
    speaker_of = clients(git) if corpus.speaker == CLIENTS else None
    chosen = []
    for digest, path in listing(git):
        inside = path.is_relative_to(corpus.folder) and path.suffix.lower() in SOUND
        if inside and not UNWANTED & set(path.parts) and path.stem not in left_out:
            speaker = speaker_of.get(path.name, NOBODY) if speaker_of is not None else _speaker(corpus, path)
            if speaker not in left_out:
                chosen.append((speaker, hashlib.sha1(str(path).encode()).hexdigest(), digest, path))
    chosen.sort()
    sounds = blobs(git, [digest for _, _, digest, _ in chosen])
    seen: set[str] = set()
    for speaker, items in groupby(zip(chosen, sounds, strict=True), key=lambda item: item[0][0]):
        limit = np.inf if speaker == NOBODY else corpus.speaker_seconds
        seconds, parts = 0.0, list[Wav]()
        for (_, _, digest, path), data in items:
            same = {digest, f"{speaker}/{_name(corpus, path)}"}  # bytes, or a recording in two formats
            if seconds >= limit or seen & same:
                continue
            seen |= same
            try:
                wav = trimmed(decoded(data, path.suffix))[: round(MOST * RATE)]
            except AudioError:  # a pointer to elsewhere, or damaged
                continue
            if len(wav) < (LEAST_JOINED if corpus.joined > 1 else LEAST) * RATE:
                continue
            parts.append(wav)
            if len(parts) == corpus.joined:
                seconds += sum(map(len, parts)) / RATE
                yield speaker, _name(corpus, path), np.concatenate(parts)
                parts = []
        if sum(map(len, parts)) >= RATE:
            yield speaker, _name(corpus, path), np.concatenate(parts)


def _speaker(corpus: Corpus, path: PurePosixPath) -> str:
    return corpus.speaker if isinstance(corpus.speaker, str) else corpus.speaker(path)


def _name(corpus: Corpus, path: PurePosixPath) -> str:
    return "_".join(path.relative_to(corpus.folder).with_suffix("").parts)


def clients(git: Path) -> dict[str, str]:
    """File name -> a short name of who contributed it, from the tables of Common Voice. Nobody is identified by it."""
    found: dict[str, str] = {}
    tables = [digest for digest, path in listing(git) if path.suffix == ".tsv"]
    for data in blobs(git, tables):
        lines = io.StringIO(data.decode("utf-8", "replace"))
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            name, client = row.get("path"), row.get("client_id")
            if name and client:
                found.setdefault(PurePosixPath(name).name, hashlib.sha1(client.encode()).hexdigest()[:12])
    return found


def listing(git: Path) -> list[tuple[str, PurePosixPath]]:
    """Object and path of every file of the newest commit."""
    command = ["git", "--git-dir", str(git), "ls-tree", "-r", "-z", "HEAD"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise ConfigError(f"{git} is no whole clone: {done.stderr.decode(errors='replace').strip()}")
    files = []
    for entry in filter(None, done.stdout.split(b"\0")):
        facts, path = entry.split(b"\t", 1)
        files.append((facts.split()[2].decode(), PurePosixPath(path.decode("utf-8", "replace"))))
    return files


def blobs(git: Path, digests: Sequence[str]) -> Iterator[bytes]:
    """The contents of objects; b"" of one that the clone does not hold."""
    command = ["git", "--git-dir", str(git), "cat-file", "--batch", "--buffer"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        # Written beside the reading: git stops when nobody takes what it says.
        threading.Thread(target=_ask, args=(process.stdin, digests), daemon=True).start()
        for _ in digests:
            head = process.stdout.readline().split()
            yield process.stdout.read(int(head[2]) + 1)[:-1] if len(head) == 3 else b""


def _ask(stream: Any, digests: Sequence[str]) -> None:
    with stream:
        stream.write("".join(f"{digest}\n" for digest in digests).encode())


def decoded(data: bytes, suffix: str) -> Wav:
    """Samples (N,) at 16 kHz; AudioError for what is no sound. `.ulaw` is telephone speech without a header."""
    if suffix.lower() == ".ulaw":
        return audio.resample(torch.from_numpy(expanded(data)), 8000, RATE).numpy()
    return audio.load(io.BytesIO(data), RATE, mono=True)[0][0].numpy()


def expanded(data: bytes) -> Wav:
    """Samples in [-1, 1] of mu-law bytes (ITU-T G.711): sign, three bits of exponent and four of mantissa, inverted."""
    code = ~np.frombuffer(data, np.uint8)
    size = (((code & 15).astype(np.int32) << 3) + 132 << (code >> 4 & 7)) - 132
    return np.where(code & 128, -size, size).astype(np.float32) / np.float32(32768)


def trimmed(wav: Wav) -> Wav:
    """Without the silence at both ends."""
    size = RATE // 50
    frames = wav[: len(wav) // size * size].reshape(-1, size)
    power = np.square(frames).mean(1)
    loud = np.flatnonzero(power > power.max(initial=0) * 10 ** (-QUIET / 10))
    if not len(loud):
        return wav[:0]
    margin = round(MARGIN * RATE)
    return wav[max(0, loud[0] * size - margin) : (loud[-1] + 1) * size + margin]


if __name__ == "__main__":
    sys.exit(main())
