"""Measure a codec model on a folder of speech at every rate it has, Opus beside it where its tools are installed.

    python benchmarks/quality.py TESTDIR... [--model esc_live] [--limit N] [--excerpts CSV] [--json] [--write FILE...]

`--write` puts the table between the lines <!-- quality --> and <!-- /quality --> of the files, such as README.md.
Every file is mixed to mono and brought to 16 kHz; that signal is the reference, and what the coders are given. Our
files go all the way through bytes and 16 bit samples. Rates are those of the files, headers and checksums included
("on disk"), and of the codes alone. Opus loses its container (Ogg costs about 1 kbit/s in files of a few seconds) in
the second figure; one delay per Opus rate is found by correlation and removed, ours has none. Intervals: 95 %
bootstrap over files.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from codec import bitstream, files, metrics
from codec.evaluate import DIGITS
from codec.model import Codec
from codec.paths import AUDIO_SUFFIXES, find_files
from engine import audio
from engine.errors import SpeechError

RATE = metrics.SAMPLE_RATE
OPUS_RATES = (6, 7.5, 9)  # kbit/s; the encoder goes no lower than 6

Signal = NDArray[np.float32]
# what a coder makes of a signal: the decoded one, bytes of the file, bits that are payload
Coded = tuple[Signal, int, int]


@dataclass(frozen=True)
class Row:
    """One line of the table: a coder at a rate, over all files."""

    coder: str
    on_disk: float  # kbit/s
    payload: float  # kbit/s
    n: int
    metrics: dict[str, metrics.Interval]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--model", default="esc_live", help="name or folder (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="only this many files, evenly spread")
    parser.add_argument("--excerpts", type=Path, help="CSV with source, start_sample_16k, seconds: only these parts")
    parser.add_argument("--no-opus", action="store_true")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a Markdown table")
    parser.add_argument("--write", nargs="+", type=Path, default=[], metavar="FILE", help="replace the table in these")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        signals = load_signals(arguments.folders, arguments.limit, arguments.excerpts)
        rows = measure_all(files.load_model(arguments.model), signals, with_opus=not arguments.no_opus)
        print(to_json(rows) if arguments.json else to_markdown(rows))
        for path in arguments.write:
            write_between_marks(path, to_markdown(rows))
    except SpeechError as error:
        sys.exit(f"quality.py: error: {error}")


def write_between_marks(path: Path, table: str) -> None:
    """Replace what a file has between its marks."""
    text = path.read_text()
    head, start, rest = text.partition("<!-- quality -->\n")
    _, end, tail = rest.partition("<!-- /quality -->")
    if not (start and end):
        raise SpeechError(f"{path} has no lines <!-- quality --> and <!-- /quality --> to write between")
    path.write_text(f"{head}{start}{table}\n{end}{tail}")


def load_signals(folders: Sequence[Path], limit: int | None, excerpts: Path | None) -> list[Signal]:
    """Read the test files, or parts of them, at 16 kHz as they come back from 16 bits."""
    paths = [path for folder in folders for path in find_files(folder, AUDIO_SUFFIXES)]
    if not paths:
        raise SpeechError(f"no audio file below {', '.join(map(str, folders))}")
    parts: list[tuple[Path, int, int | None]] = [(path, 0, None) for path in paths]
    if excerpts:
        by_name = {path.name: path for path in paths}
        with excerpts.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["source"] in by_name]
        if not rows:
            raise SpeechError(f"none of the sources of {excerpts} is below the folders given")
        parts = [(by_name[r["source"]], int(r["start_sample_16k"]), round(float(r["seconds"]) * RATE)) for r in rows]
    if limit and limit < len(parts):
        parts = [parts[i * len(parts) // limit] for i in range(limit)]
    signals = []
    for path, start, count in parts:
        wav = audio.load(path, sample_rate=RATE, mono=True)[0][0, start:]
        signals.append(rounded(wav[:count]))
    return signals


def rounded(wav: torch.Tensor) -> Signal:
    """What 16 bits leave of a signal."""
    return audio.from_pcm16(audio.to_pcm16(wav)).numpy()


def measure_all(model: Codec, signals: list[Signal], *, with_opus: bool) -> list[Row]:
    """Measure all rates of the model, then those of Opus."""
    rows = []
    coded = [list(code_at_all_rates(model, signal)) for signal in progress(signals, "encode and decode")]
    for level in range(model.config.levels):
        rows.append(measure(model.name, signals, [rates[level] for rates in coded], align=False))
    if not with_opus:
        return rows
    if not (shutil.which("opusenc") and shutil.which("opusdec")):
        print("opusenc and opusdec are not installed: no comparison with Opus", file=sys.stderr)
        return rows
    for rate in OPUS_RATES:
        made = [code_with_opus(signal, rate) for signal in progress(signals, f"Opus {rate}")]
        rows.append(measure(f"Opus VBR {rate:g}", signals, made, align=True))
    return rows


def code_at_all_rates(model: Codec, signal: Signal) -> Iterator[Coded]:
    """Encode once, cut the file down to each rate, decode; lowest rate first."""
    codes = files.encode_channels(model, torch.from_numpy(signal)[None])
    data = bitstream.pack(files.make_header(model, RATE, len(signal), codes), codes)
    for levels in range(1, model.config.levels + 1):
        cut = bitstream.truncate(data, levels)
        header, kept, _ = bitstream.unpack(cut)
        decoded = files.decode_channels(model, header, kept)[0]
        yield rounded(decoded), len(cut), header.payload_bits


def code_with_opus(signal: Signal, rate: float) -> Coded:
    """Encode and decode with opus-tools at their best complexity."""
    with tempfile.TemporaryDirectory() as folder:
        wav, opus, out = (str(Path(folder, name)) for name in ("in.wav", "x.opus", "out.wav"))
        audio.save(wav, torch.from_numpy(signal), RATE)
        run("opusenc", "--quiet", "--bitrate", f"{rate:g}", "--comp", "10", wav, opus)
        run("opusdec", "--quiet", "--rate", str(RATE), opus, out)
        data = Path(opus).read_bytes()
        return audio.load(out, sample_rate=RATE, mono=True)[0][0].numpy(), len(data), 8 * opus_payload_bytes(data)


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


def measure(coder: str, signals: list[Signal], coded: list[Coded], *, align: bool) -> Row:
    """Compare all files of one coder at one rate."""
    pairs = [(ref, dec) for ref, (dec, _, _) in zip(signals, coded, strict=True)]
    delay = metrics.estimate_delay(pairs) if align else 0
    scores = []
    for ref, dec in progress(pairs, f"measure {coder}"):
        moved = dec[delay:] if delay >= 0 else np.pad(dec, (-delay, 0))
        moved = np.pad(moved[: len(ref)], (0, max(0, len(ref) - len(moved))))
        scores.append(metrics.measure(ref, moved))
    seconds = sum(map(len, signals)) / RATE
    return Row(
        coder=coder,
        on_disk=8e-3 * sum(size for _, size, _ in coded) / seconds,
        payload=1e-3 * sum(bits for _, _, bits in coded) / seconds,
        n=len(signals),
        metrics={name: metrics.bootstrap_interval([score[name] for score in scores]) for name in metrics.METRICS},
    )


def to_markdown(rows: list[Row]) -> str:
    """A table with mean [95 % interval] in each cell."""
    heading = ["coder", "kbit/s of codes", "kbit/s on disk", "PESQ-WB", "STOI", "SI-SDR dB", "mel distance", "n"]
    lines = ["| " + " | ".join(heading) + " |", "|---" * len(heading) + "|"]
    for row in rows:
        cells = [
            f"{i.mean:.{DIGITS[name]}f} [{i.low:.{DIGITS[name]}f}, {i.high:.{DIGITS[name]}f}]"
            for name, i in row.metrics.items()
        ]
        first = [row.coder, f"{row.payload:.2f}", f"{row.on_disk:.2f}"]
        lines.append("| " + " | ".join([*first, *cells, str(row.n)]) + " |")
    return "\n".join(lines)


def to_json(rows: list[Row]) -> str:
    """The same as a list of objects."""
    return json.dumps(
        [{**vars(row), "metrics": {k: v._asdict() for k, v in row.metrics.items()}} for row in rows], indent=1
    )


def progress(items: list, what: str) -> Iterator:
    """Show on a terminal how far a loop has come."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, what, console=console, disable=not console.is_terminal, transient=True)


if __name__ == "__main__":
    main()
