"""`make demo`: real recordings become files of a few hundred bytes per second and come back as speech.

python -m codec.demo [--out demo-output]
"""

import argparse
import math
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from codec import metrics
from codec.files import Report, decode_file, encode_file, load_model
from engine import audio
from engine.errors import SpeechError

MODEL = "esc_live"
BITRATES = (3, 9)  # kbit/s
RECORDINGS = Path(audio.__file__).parent / "recordings"


def main() -> None:
    """Run the demonstration; see the module."""
    parser = argparse.ArgumentParser(description="Encode and decode the bundled recordings, print what came of it.")
    parser.add_argument("--out", default="demo-output", help="folder for the decoded files (default: %(default)s)")
    try:
        demonstrate(Path(parser.parse_args().out))
    except SpeechError as error:
        print(f"codec.demo: error: {error}", file=sys.stderr)
        sys.exit(2)


def demonstrate(folder: Path) -> None:
    """Code every bundled recording at each of BITRATES into `folder` and print a table."""
    recordings = sorted(RECORDINGS.glob("*.flac"))
    model = load_model(MODEL)
    folder.mkdir(parents=True, exist_ok=True)
    title = f"Speech through {model.name}, {model.delay * 1000 / model.config.sample_rate:g} ms of delay"
    # Plain and narrow, so that it fits 80 columns, in a log as well as in a terminal.
    table = Table(title=title, box=box.SIMPLE, pad_edge=False, title_justify="left")
    headings = ("recording", "s", "wav bytes", "esc bytes", "kbit/s", "speed", "PESQ-WB", "STOI")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "recording" else "right")
    for recording in recordings:
        for bitrate in BITRATES:
            name = f"{recording.stem}_{bitrate}kbps"
            esc, wav = folder / f"{name}.esc", folder / f"{name}.wav"
            levels = model.config.levels_for(1000 * bitrate)
            encoded = encode_file(model, str(recording), str(esc), levels=levels, force=True)
            decoded = decode_file(str(esc), str(wav), force=True)
            table.add_row(recording.stem, *_row(encoded, decoded, recording, wav))
        table.add_section()
    console = Console()
    console.print(table)
    print("kbit/s: of the file, header and checksums included. speed: both directions, against real time.")
    print(f"Listen: {folder}/*.wav; the originals are {RECORDINGS}/*.flac")


def _row(encoded: Report, decoded: Report, recording: Path, wav: Path) -> list[str]:
    quality = _quality(recording, wav)
    return [
        f"{encoded.seconds:.2f}",
        f"{wav.stat().st_size:,}",
        f"{encoded.bytes:,}",
        f"{8e-3 * encoded.bytes / encoded.seconds:.2f}",
        f"{encoded.seconds / (encoded.elapsed + decoded.elapsed):.0f}x",
        *quality,
    ]


def _quality(recording: Path, decoded: Path) -> tuple[str, str]:
    reference, result = (
        audio.load(path, sample_rate=metrics.SAMPLE_RATE, mono=True)[0] for path in (recording, decoded)
    )
    try:
        scores = metrics.pesq_wb(reference[0], result[0]), metrics.stoi(reference[0], result[0])
    except SpeechError:  # the packages that measure are an extra; the demonstration works without
        scores = math.nan, math.nan
    return f"{scores[0]:.2f}", f"{scores[1]:.3f}"


if __name__ == "__main__":
    main()
