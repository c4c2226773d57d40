"""The command diarize: who spoke when."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.console import progress
from engine.errors import ScoreError, SpeechError
from speaker.checks import number, writable

if TYPE_CHECKING:
    from speaker.diarize import Diarization
    from speaker.gallery import Gallery


def diarize(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A recording of any length.")],
    num_speakers: Annotated[int | None, typer.Option(help="If known.", show_default="counted")] = None,
    rttm: Annotated[Path | None, typer.Option(help="RTTM file to write.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of the timeline to write, .png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, for machines.")] = False,
    model: Annotated[str | None, typer.Option(help="Name or folder of an encoder.", show_default="ecapa")] = None,
    vad: Annotated[str, typer.Option(help="Voice activity: energy or silero.")] = "energy",
    cluster: Annotated[
        str | None, typer.Option(help="spectral or ahc.", show_default="spectral; with a threshold, ahc")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="ahc: two speakers below it. Log-likelihood ratio, or cosine if uncalibrated."),
    ] = None,
    resegment: Annotated[bool, typer.Option("--resegment", help="Refine by the Bayesian HMM of VBx.")] = False,
    enrolled: Annotated[
        Path | None,
        typer.Option(
            help="What `speaker embed` wrote: name those who are in it, by the folders of their recordings, or by the "
            "files where all lie in one."
        ),
    ] = None,
    store: Annotated[Path | None, typer.Option(help="File of voiceprints: name those who are in it.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, ...")] = "cpu",
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Half precision: twice as fast on newer CPUs.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite what exists.")] = False,
) -> None:
    """Tell who spoke when: start, end (seconds) and speaker of each segment."""
    for path in (rttm, plot):
        if path is not None:
            writable(path, force, [source, enrolled, store])
    if plot is not None and plot.suffix != ".png":
        raise SpeechError(f"{plot}: the name must end in .png")
    if num_speakers is not None and num_speakers < 1:
        raise ScoreError(f"--num-speakers {num_speakers}: there is at least 1")
    number("--threshold", threshold, "a log-likelihood ratio, or a cosine where the model has no calibration")
    if cluster is None:
        cluster = "spectral" if threshold is None else "ahc"
    if threshold is not None and num_speakers is not None:
        raise ScoreError("--threshold tells how many speakers there are, and so does --num-speakers; leave one out")
    if threshold is not None and cluster == "spectral":
        raise ScoreError("--threshold is for --cluster ahc; leave either out")
    options: dict[str, Any] = {"vad": vad, "cluster": cluster, "resegment": resegment, "bfloat16": bfloat16}
    if threshold is not None:
        options |= {"threshold": threshold, "cosine_threshold": threshold}
    if enrolled is not None and store is not None:
        raise SpeechError("give either --enrolled, embeddings, or --store, voiceprints")
    found = _found(source, model, device, options, num_speakers, enrolled, store)
    if rttm is not None:
        found.write_rttm(rttm)
    if plot is not None:
        from speaker.timeline import save

        save(plot, found)
    for path in (rttm, plot):
        if path is not None:
            print(path, file=sys.stderr)
    if as_json:
        print(json.dumps(as_dict(found)))
    elif rttm is None:
        print(as_text(found))


def as_text(found: Diarization) -> str:
    """A table for people."""
    lines = ["   start      end  speaker"]
    lines += [f"{s.start:8.2f} {s.end:8.2f}  {s.speaker}" for s in found.segments]
    return "\n".join(lines)


def as_dict(found: Diarization) -> dict[str, Any]:
    """For JSON."""
    segments = [{"start": round(s.start, 3), "end": round(s.end, 3), "speaker": s.speaker} for s in found.segments]
    return {"name": found.name, "duration": found.duration, "speakers": found.speakers, "segments": segments,
            "log_likelihood_ratios": found.ratios}  # fmt: skip


def _found(
    source: Path, model: str | None, device: str, options: dict[str, Any], num_speakers: int | None,
    enrolled: Path | None, store: Path | None,
) -> Diarization:  # fmt: skip
    from engine import checkpoint
    from speaker.diarize import DiarizationConfig, back_end
    from speaker.diarize import diarize as run
    from speaker.model import default, load

    config = DiarizationConfig(**options)
    folder = checkpoint.find(model or default())
    encoder = load(folder, device)
    gallery = None if enrolled is None else _enrolled(enrolled, encoder.identity)
    if store is not None:
        from speaker.store import Store, default_key

        with Store.open(store, model=encoder.identity, key=default_key()) as voices:
            gallery = voices.gallery()
    known = None if gallery is None else dict(zip(gallery.names, gallery.means, strict=True))
    spoken = None if gallery is None else dict(zip(gallery.names, gallery.seconds.tolist(), strict=True))
    with progress(1.0) as told:
        return run(
            encoder, source, num_speakers, config=config, models=back_end(encoder, folder), enrolled=known,
            enrolled_seconds=spoken, progress=told,
        )  # fmt: skip


def _enrolled(path: Path, model: str) -> Gallery:
    """Speakers (`file_names.people`) of a file of embeddings."""
    from speaker import collections
    from speaker.file_names import people
    from speaker.gallery import Gallery
    from speaker.store import same_model

    found = collections.read(path, model)
    if not same_model(found.model, model):
        raise ScoreError(f"{path} is of {found.model}, the model is {model}; embed it again")
    return Gallery(people(found.names), found.vectors, found.seconds)
