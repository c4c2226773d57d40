"""Test signals, and the coders that are compared on them: our model at each of its rates, Opus, Lyra v2.

A coder takes a signal of 16 kHz and gives back what a listener would hear, with the bytes and bits that it cost.
"""

import csv
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from codec import bitstream, files, metrics
from codec.model import Codec
from codec.paths import AUDIO_SUFFIXES
from engine import audio
from engine.errors import SpeechError
from engine.files import find_files

RATE = metrics.SAMPLE_RATE
# kbit/s that opusenc is asked for. It goes no lower than 6; 12 shows what a little more than our highest rate buys.
OPUS_RATES = (6, 7.5, 9, 12)

Signal = NDArray[np.float32]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Sample:
    """One test signal (N,) at 16 kHz as it comes back from 16 bits; `group` is the folder it was found below."""

    name: str
    group: str
    wav: Signal


class Coded(NamedTuple):
    """What a coder makes of a signal: the decoded one, bytes of the file, bits that are payload."""

    wav: Signal
    size: int
    payload_bits: int


@dataclass(frozen=True)
class Coder:
    """A coder at several rates: names lowest rate first, and a function that codes one signal at all of them.

    `align`: the coder delays, and one delay per rate is to be found and removed.
    """

    names: list[str]
    code: Callable[[Signal], list[Coded]]
    align: bool


def audio_files(folders: Sequence[Path]) -> list[tuple[Path, Path]]:
    """All sound files below the folders, each with the folder it was found in; SpeechError if there are none."""
    found = [(folder, path) for folder in folders for path in find_files(folder, AUDIO_SUFFIXES)]
    if not found:
        raise SpeechError(f"no audio file below {', '.join(map(str, folders))}")
    return found


def load_samples(folders: Sequence[Path], limit: int | None = None, excerpts: Path | None = None) -> list[Sample]:
    """Read the test files, or parts of them, mixed to mono at 16 kHz."""
    found = audio_files(folders)
    parts: list[tuple[Path, Path, int, int | None]] = [(folder, path, 0, None) for folder, path in found]
    if excerpts:
        parts = _excerpts(excerpts, found)
    samples = []
    for folder, path, start, count in evenly(parts, limit):
        wav = audio.load(path, sample_rate=RATE, mono=True)[0][0]
        part = wav[start:][:count]
        if not len(part):
            raise SpeechError(f"{excerpts}: {path} has {len(wav)} samples at 16 kHz, no excerpt from {start} on")
        samples.append(Sample(path.stem, folder.resolve().name, rounded(part)))
    return samples


def _excerpts(listing: Path, found: list[tuple[Path, Path]]) -> list[tuple[Path, Path, int, int | None]]:
    """Where the excerpts of a CSV are; by name without suffix, since the same corpus comes as wav and as FLAC."""
    by_stem: dict[str, list[tuple[Path, Path]]] = {}
    for folder, path in found:
        by_stem.setdefault(path.stem, []).append((folder, path))
    with listing.open(newline="") as file:
        rows = list(csv.DictReader(file))
    there = [row for row in rows if Path(row["source"]).stem in by_stem]
    if not there:
        raise SpeechError(f"none of the sources of {listing} is below the folders given")
    if len(there) < len(rows):
        print(f"{len(rows) - len(there)} of {len(rows)} excerpts are not below the folders given", file=sys.stderr)
    parts: list[tuple[Path, Path, int, int | None]] = []
    for row in there:
        candidates = by_stem[Path(row["source"]).stem]
        if len(candidates) > 1:
            paths = ", ".join(str(path) for _, path in candidates)
            raise SpeechError(
                f"{row['source']} of {listing} may be any of {paths}; give folders where a name is there once"
            )
        parts.append((*candidates[0], int(row["start_sample_16k"]), round(float(row["seconds"]) * RATE)))
    return parts


def evenly(items: list[Item], limit: int | None) -> list[Item]:
    """At most `limit` of the items, evenly spread."""
    if not limit or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def rounded(wav: torch.Tensor) -> Signal:
    """What 16 bits leave of a signal."""
    return audio.from_pcm16(audio.to_pcm16(wav)).numpy()


def ours(model: Codec, levels: Sequence[int] | None = None) -> Coder:
    """A model of this project at the numbers of levels given, else at all."""
    chosen = list(levels or range(1, model.config.levels + 1))

    def code(signal: Signal) -> list[Coded]:
        """Encode once, cut the file down to each rate, decode."""
        codes = files.encode_channels(model, torch.from_numpy(signal)[None])
        data = bitstream.pack(files.make_header(model, RATE, len(signal), codes.shape), codes)
        coded = []
        for count in chosen:
            cut = bitstream.truncate(data, count)
            header, kept, _ = bitstream.unpack(cut)
            decoded = files.decode_channels(model, header, kept)[0]
            coded.append(Coded(rounded(decoded), len(cut), header.payload_bits))
        return coded

    return Coder([model.name] * len(chosen), code, align=False)


def opus(rates: Sequence[float] = OPUS_RATES) -> Coder | None:
    """Opus with opus-tools at their best complexity; None (and a line on stderr) where they are not installed."""
    if not (shutil.which("opusenc") and shutil.which("opusdec")):
        print("opusenc and opusdec are not installed: no comparison with Opus", file=sys.stderr)
        return None
    names = [f"Opus VBR {rate:g}" for rate in rates]
    return Coder(names, lambda signal: [code_with_opus(signal, rate) for rate in rates], align=True)


def code_with_opus(signal: Signal, rate: float) -> Coded:
    """Encode and decode one signal."""
    with tempfile.TemporaryDirectory() as folder:
        wav, coded, out = (str(Path(folder, name)) for name in ("in.wav", "x.opus", "out.wav"))
        audio.save(wav, torch.from_numpy(signal), RATE)
        run("opusenc", "--quiet", "--bitrate", f"{rate:g}", "--comp", "10", wav, coded)
        run("opusdec", "--quiet", "--rate", str(RATE), coded, out)
        data = Path(coded).read_bytes()
        decoded = audio.load(out, sample_rate=RATE, mono=True)[0][0].numpy()
        return Coded(decoded, len(data), 8 * opus_payload_bytes(data))


def run(*command: str) -> None:
    """Run a command, or show what it said."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SpeechError(f"{' '.join(command)}: {done.stderr.strip()}")


def opus_payload_bytes(data: bytes) -> int:
    """Bytes of the audio packets of an Ogg Opus file (RFC 3533, RFC 7845): all pages after the two header packets."""
    position, packets, payload = 0, 0, 0
    while position < len(data):
        if data[position : position + 4] != b"OggS":
            raise SpeechError("opusenc wrote something that is not Ogg")
        count = data[position + 26]
        lacing = data[position + 27 : position + 27 + count]
        for size in lacing:
            if packets >= 2:
                payload += size
            packets += size < 255
        position += 27 + count + sum(lacing)
    return payload


def aligned(pairs: list[tuple[Signal, Signal]], align: bool) -> list[tuple[Signal, Signal]]:
    """Pairs of equal length, the one delay that fits all of them best removed if `align`."""
    delay = metrics.estimate_delay(pairs) if align else 0
    result = []
    for ref, dec in pairs:
        moved = dec[delay:] if delay >= 0 else np.pad(dec, (-delay, 0))
        result.append((ref, np.pad(moved[: len(ref)], (0, max(0, len(ref) - len(moved))))))
    return result


def progress(items: list[Item], what: str) -> Iterator[Item]:
    """Show on a terminal how far a loop has come."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, what, console=console, disable=not console.is_terminal, transient=True)
