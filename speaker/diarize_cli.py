"""`speaker diarize`: who spoke when in a recording."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.errors import SpeechError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def diarize(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Recording; channels are mixed to one.")],
    num_speakers: Annotated[
        int | None, typer.Option(min=1, help="How many there are.", show_default="found out")
    ] = None,
    rttm: Annotated[Path | None, typer.Option(help="File of segments to write.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of the timeline to write, .png.")] = None,
    enrolled: Annotated[
        Path | None, typer.Option(help="Embeddings of `speaker embed`: speakers like these get their names.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Cosine from which one is an enrolled speaker.")] = 0.5,
    vad: Annotated[str, typer.Option(help="Voice activity: energy, or silero with the extra vad.")] = "energy",
    cluster: Annotated[str, typer.Option(help="ahc or spectral.")] = "ahc",
    plda: Annotated[
        Path | None, typer.Option(help="PLDA of the encoder, for --resegment.", show_default="the model's")
    ] = None,
    resegment: Annotated[bool, typer.Option("--resegment", help="Refine the clusters by VBx.")] = False,
    model: Annotated[str | None, typer.Option(help="Name or folder of an encoder.", show_default="ecapa")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite what exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the segments as JSON, for machines.")] = False,
) -> None:
    """Find out who spoke when; segments go to stdout, and to --rttm and --plot."""
    from rich.console import Console
    from rich.progress import Progress

    from engine import audio, checkpoint
    from speaker import plda as backends
    from speaker.diarize import DiarizeConfig, name_speakers
    from speaker.diarize import diarize as find
    from speaker.model import default, load

    for out in (rttm, plot):
        if out is not None and out.exists() and not force:
            raise SpeechError(f"{out} exists; --force overwrites it")
    folder = checkpoint.find(model or default())
    encoder = load(folder)
    names = {} if enrolled is None else _prints(enrolled, f"{encoder.name}@{encoder.digest}")
    backend = None
    if resegment:
        path = plda or folder / "plda.npz"
        if not path.is_file():
            raise SpeechError(
                f"--resegment needs a PLDA of {encoder.name}; {path} is not there: `speaker plda` trains one"
            )
        backend = backends.load(path)
    wav, _ = audio.load(file, encoder.config.front_end.sample_rate, mono=True)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        config = DiarizeConfig(vad=vad, method=cluster)
        found = find(encoder, wav[0], config, num_speakers, backend,
                     progress=lambda share: bar.update(task, completed=share))  # fmt: skip
    found = name_speakers(found, names, threshold)
    if rttm is not None:
        found.write_rttm(rttm, file.stem)
    if plot is not None:
        from speaker.timeline import save

        save(plot, found, file.name)
    if as_json:
        segments = [{"start": round(s.start, 3), "end": round(s.end, 3), "speaker": s.speaker} for s in found.segments]
        print(json.dumps({"seconds": round(found.seconds, 3), "speakers": found.speakers, "segments": segments}))
        return
    for segment in found.segments:
        print(f"{_clock(segment.start)}  {_clock(segment.end)}  {segment.speaker}")
    print(f"{len(found.speakers)} speaker{'s' if len(found.speakers) > 1 else ''}", file=sys.stderr)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:05.2f}"


def _prints(path: Path, model: str) -> dict[str, NDArray[np.float64]]:
    """{name: embedding}; SpeechError if another model made them."""
    from speaker.collections import read

    prints = read(path)
    if prints.model.rpartition("@")[2] != model.rpartition("@")[2]:
        raise SpeechError(f"{path} holds embeddings of {prints.model}, not of {model}; embed the recordings again")
    return dict(zip(prints.names, prints.vectors, strict=True))
