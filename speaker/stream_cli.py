"""`speaker stream`: who is speaking, live: samples through a pipe, a line every hop."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.errors import SpeechError
from speaker.checks import duration

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from speaker.collections import Collection
    from speaker.evidence import Evidence
    from speaker.stream import LiveEmbeddings


def stream(
    enrolled: Annotated[
        list[str] | None,
        typer.Option(help="Compare with these alone; may be given more than once.", show_default="all"),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="File of voiceprints.", show_default="VOXCODE_STORE, or the user's own")
    ] = None,
    prints: Annotated[
        Path | None, typer.Option(help="Instead of a store: what `speaker embed` wrote; the file names are the names.")
    ] = None,
    hop: Annotated[float, typer.Option(help="Seconds between two lines.")] = 0.5,
    false_accept: Annotated[float, typer.Option(help="Allowed probability of taking a wrong speaker.")] = 0.001,
    false_reject: Annotated[float, typer.Option(help="Allowed probability of rejecting the right one.")] = 0.01,
    until_decided: Annotated[bool, typer.Option("--until-decided", help="Stop at the decision.")] = False,
    gate: Annotated[bool, typer.Option(help="Leave silence out.")] = True,
    rate: Annotated[int, typer.Option(help="Sample rate of raw input in Hz; wav says its own.")] = 16000,
    channels: Annotated[int, typer.Option(min=1, help="Channels of raw input, mixed to one.")] = 1,
    model: Annotated[str | None, typer.Option(help="Name or folder of an encoder.", show_default="ecapa")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line, for machines.")] = False,
) -> None:
    """PCM (raw 16 bit, or wav) on stdin -> every hop: time, speech, the best match, its log-likelihood ratio, decision.

    The decision is that of a sequential test for each enrolled speaker. Exit status with --until-decided: 0 one of
    them speaks, 1 none of them does, 2 no decision before the end, or trouble.
    """
    import torch

    from engine import checkpoint
    from engine.pcm import PcmFormat, open_stream
    from engine.pipeline import Resample, run
    from speaker.evidence import evidence_of
    from speaker.live import LiveEncoder
    from speaker.model import default, load
    from speaker.stream import EmbedStage

    duration("--hop", hop)
    if not 1000 <= rate <= 768_000:
        raise SpeechError(f"--rate is a sample rate in Hz from 1000 to 768000, not {rate}")
    if os.isatty(sys.stdin.fileno()):
        raise SpeechError("stdin is the terminal; redirect it: ... < FILE, or arecord ... | speaker stream")
    torch.set_num_threads(1)  # a hop is too small to share
    folder = checkpoint.find(model or default())
    encoder = load(folder)
    evidence = evidence_of(folder, encoder)
    if evidence is None:
        raise SpeechError(f"{folder} has no calibration; `python -m recipes.calibrate` makes one")
    digest = encoder.identity
    voices = _known(store, digest) if prints is None else _read(prints, digest)
    matcher = Matcher(_chosen(voices, enrolled), evidence, false_accept, false_reject)
    form, chunks = open_stream(sys.stdin.buffer, PcmFormat(rate, channels))  # type: ignore[arg-type]
    stage = EmbedStage(LiveEncoder(encoder), hop, gate=gate)
    line, heard = None, False
    for found in run(chunks, Resample(form.sample_rate, stage.rate), stage):
        line = matcher.update(found)
        heard = heard or line.speech > 0
        print(json.dumps(asdict(line)) if as_json else line.as_text(), flush=True)
        if until_decided and line.decision != "undecided":
            break
    if line is None:
        raise SpeechError("nothing came in; is the microphone on?")
    if not heard:
        raise SpeechError(f"{line.seconds:.1f} s of silence came in, no speech; is the microphone on?")
    if until_decided and line.decision != "same":
        raise typer.Exit(1 if line.decision == "different" else 2)


def _known(path: Path | None, model: str) -> Collection:
    """Every speaker of a store of voiceprints, by the mean direction of the prints."""
    import numpy as np

    from speaker.collections import Collection
    from speaker.store import Store, default_key

    with Store.open(path, model=model, key=default_key()) as opened:
        gallery = opened.gallery()
        return Collection(gallery.names, gallery.means.astype(np.float64), gallery.seconds, opened.model)


def _read(path: Path, model: str) -> Collection:
    """Ready embeddings; SpeechError if another model made them."""
    from speaker.collections import read
    from speaker.store import same_model

    prints = read(path)
    if not same_model(prints.model, model):
        raise SpeechError(f"the prints are embeddings of {prints.model}, not of {model}; embed the recordings again")
    return prints


def _chosen(prints: Collection, names: list[str] | None) -> Collection:
    """The prints of these names (default: all); SpeechError for an unknown name."""
    from speaker.collections import Collection

    missing = [name for name in names or [] if name not in prints.names]
    if missing:
        raise SpeechError(f"nobody is enrolled as {missing[0]}; there are {', '.join(prints.names[:20])}")
    rows = [i for i, name in enumerate(prints.names) if not names or name in names]
    if (prints.seconds[rows] != prints.seconds[rows]).any():
        raise SpeechError("the prints do not say how much speech they rest on; `speaker embed` writes it with them")
    return Collection([prints.names[i] for i in rows], prints.vectors[rows], prints.seconds[rows], prints.model)


@dataclass(frozen=True)
class Line:
    """What is known after `seconds`: of the best match, None before there is enough speech; natural logarithm."""

    seconds: float
    speech: float
    speaker: str | None
    llr: float | None
    decision: str

    def as_text(self) -> str:
        """For people."""
        best = "" if self.speaker is None else f"  {self.speaker}  {self.llr:+.2f}"
        what = {"same": f"it is {self.speaker}", "different": "nobody enrolled"}.get(self.decision, self.decision)
        return f"{self.seconds:7.2f} s  {self.speech:6.2f} s of speech{best}  {what}"


class Matcher:
    """Compares live embeddings with enrolled ones; a sequential test for each of these."""

    def __init__(self, prints: Collection, evidence: Evidence, false_accept: float, false_reject: float) -> None:
        """`false_accept` is shared among the enrolled speakers, so that it holds for all of them together."""
        from speaker.scoring import unit
        from speaker.sequential import SequentialTest

        self.prints, self.evidence = prints, evidence
        self.units = unit(prints.vectors)
        # A store has directions alone: then nothing is known of lengths on either side.
        self.directions = bool(abs((prints.vectors**2).sum(1) - 1).max() < 1e-3)
        if self.directions:
            evidence.calibration.check_quality("seconds", "cohort")
        self.sides = evidence.side(prints.vectors, prints.seconds, directions=self.directions)
        self.tests = [SequentialTest(false_accept / len(prints.names), false_reject) for _ in prints.names]

    def update(self, found: LiveEmbeddings) -> Line:
        """The state of the first channel after one more hop."""
        speech, vector = found.speech[0], found.vectors[0]
        if vector is None or speech < self.evidence.calibration.shortest:
            return Line(found.seconds, speech, None, None, "undecided")
        ratios = self._ratios(vector, speech)
        decisions = [test.update(float(llr)) for test, llr in zip(self.tests, ratios, strict=True)]
        # Several may be accepted in one hop: the one that fits best is meant.
        accepted = [row for row, decision in enumerate(decisions) if decision == "same"]
        best = max(accepted or range(len(ratios)), key=lambda row: float(ratios[row]))
        nobody = all(decision == "different" for decision in decisions)
        decision = "same" if accepted else "different" if nobody else "undecided"
        return Line(found.seconds, speech, self.prints.names[best], round(float(ratios[best]), 4), decision)

    def _ratios(self, vector: NDArray[np.float32], speech: float) -> NDArray[np.float64]:
        import numpy as np

        from speaker.scoring import unit

        scores = self.units @ unit(vector[None].astype(np.float64))[0]
        live = self.evidence.side(vector[None], speech, directions=self.directions)
        return self.evidence.llr(scores, self.sides, live)
