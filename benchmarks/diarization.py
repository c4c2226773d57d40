"""Diarization error rate on conversations mixed from the test speakers of a manifest, known truth.

    python -m benchmarks.diarization --data MANIFEST [--split test] [--held-out PERCENT] [--speakers 2 3 4 6 8]
        [--overlap 0 0.1 0.2] [--num 4] [--seconds 90] [--noise] [--write FILE...]

DER by pyannote.metrics: missed + false + confused time over the time that speakers speak, overlap scored, without and
with a collar of 0.25 s to either side of each boundary. Intervals are 95 %, bootstrap over conversations, which share
speakers. Every system gets the same conversations; embeddings are computed once for each kind of voice activity.
`--split train --held-out 10` measures on the training speakers that training has held out: what is chosen, is chosen
there.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import speaker
from benchmarks import report
from benchmarks.conversations import RATE, Conversation, converse, recordings
from engine.errors import SpeechError
from speaker import activity, windows
from speaker.diarize import BackEnd, DiarizationConfig, back_end, speakers_of, timeline
from speaker.model import SpeakerEncoder
from speaker.rttm import Segment

# Name of a row -> voice activity, clustering, resegmentation, whether the number of speakers is told.
SYSTEMS = {
    "energy, spectral": ("energy", "spectral", False, False),
    "energy, spectral, VBx": ("energy", "spectral", True, False),
    "energy, ahc": ("energy", "ahc", False, False),
    "energy, ahc, VBx": ("energy", "ahc", True, False),
    "silero, spectral": ("silero", "spectral", False, False),
    "true speech, spectral": ("true", "spectral", False, False),
    "energy, spectral, number told": ("energy", "spectral", False, True),
    "energy, ahc, number told": ("energy", "ahc", False, True),
    "true speech, spectral, number told": ("true", "spectral", False, True),
}
SNR = (5.0, 20.0)
Parts = NDArray[np.float64]  # missed, false, confused, total seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--held-out", type=float, help="percent of the speakers")
    parser.add_argument("--model", default="ecapa")
    parser.add_argument("--speakers", nargs="+", type=int, default=[2, 3, 4, 6, 8])
    parser.add_argument("--overlap", nargs="+", type=float, default=[0.0, 0.1, 0.2])
    parser.add_argument("--num", type=int, default=4, help="conversations of each number of speakers and overlap")
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--least", type=float, default=12.0, help="seconds that a speaker must have")
    parser.add_argument("--noise", action="store_true", help="noise at 5 to 20 dB under every second conversation")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS), metavar="NAME")
    parser.add_argument("--write", nargs="+", type=Path, default=[], metavar="FILE")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        encoder = speaker.load(options.model)
        if encoder.config.front_end.sample_rate != RATE:
            raise SpeechError(f"the conversations are mixed at {RATE} Hz; {encoder.name} takes "
                              f"{encoder.config.front_end.sample_rate}: measure an encoder of {RATE} Hz")  # fmt: skip
        models = back_end(encoder, Path(options.model) if Path(options.model).is_dir() else None)
        voices = recordings(options.data, options.split, options.held_out, options.least)
        cells = [(k, o) for k in options.speakers for o in options.overlap for _ in range(options.num)]
        errors: dict[tuple[str, float], list[Parts]] = {}
        counted: dict[str, list[int]] = {}
        spoken: dict[str, list[Parts]] = {}
        lengths: list[float] = []
        for seed, (count, overlap) in enumerate(cells):
            rng = np.random.default_rng(seed)
            snr = rng.uniform(*SNR) if options.noise and seed % 2 else None
            made = converse(voices, rng, count, overlap, options.seconds, snr)
            lengths.append(len(made.wav) / RATE)
            run(made, count, options.systems, encoder, models, errors, counted, spoken)
            print(f"{seed + 1}/{len(cells)}", file=sys.stderr, flush=True)
        text = tables(cells, options, errors, counted, spoken, lengths)
        print(text)
        for path in options.write:
            report.write_sections(path, {"diarization": text})
    except SpeechError as error:
        print(f"diarization: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(
    made: Conversation, count: int, systems: Sequence[str], encoder: SpeakerEncoder, models: BackEnd,
    errors: dict[tuple[str, float], list[Parts]], counted: dict[str, list[int]], spoken: dict[str, list[Parts]],
) -> None:  # fmt: skip
    """Add what each system does on a conversation."""
    duration, config = len(made.wav) / RATE, DiarizationConfig()
    ready = {}
    for name in systems:
        vad, cluster, resegment, told = SYSTEMS[name]
        if vad not in ready:
            active = truth_frames(made) if vad == "true" else activity.speech_activity(made.wav, RATE, vad)
            stretches = activity.segments(active, config.min_silence, config.min_speech, 0 if vad == "true" else 0.05)
            if vad != "true":
                spoken.setdefault(vad, []).append(activity_errors(made, stretches))
            cuts = windows.cut(stretches, config.window, config.hop, 0.5, duration)
            blocks = torch.from_numpy(made.wav)[None].split(30 * RATE, dim=1)
            ready[vad] = stretches, cuts, windows.embed(encoder, blocks, cuts)
        stretches, cuts, vectors = ready[vad]
        chosen = DiarizationConfig(cluster=cluster, resegment=resegment)
        labels = speakers_of(vectors, cuts, chosen, models, count if told else None)
        found = [Segment(a, b, str(label)) for a, b, label in timeline(stretches, cuts, labels)]
        counted.setdefault(name, []).append(len(set(labels.tolist())) - len({s.speaker for s in made.truth}))
        for collar in (0.0, 0.25):
            errors.setdefault((name, collar), []).append(error_parts(made.truth, found, duration, collar))


def error_parts(truth: list[Segment], found: list[Segment], duration: float, collar: float) -> Parts:
    """Missed, false, confused and total seconds, by pyannote.metrics; `collar` to either side of a boundary."""
    try:
        from pyannote.core import Annotation, Timeline
        from pyannote.core import Segment as Span
        from pyannote.metrics.diarization import DiarizationErrorRate
    except ModuleNotFoundError as error:
        raise SpeechError("the error rate needs pyannote.metrics; `pip install 'voxcode[dev]'`") from error
    sides = []
    for segments in (truth, found):
        side = Annotation()
        for track, segment in enumerate(segments):
            side[Span(segment.start, segment.end), track] = segment.speaker
        sides.append(side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = DiarizationErrorRate(collar=2 * collar)
        told = metric(*sides, uem=Timeline([Span(0, duration)]), detailed=True)
    return np.array([told["missed detection"], told["false alarm"], told["confusion"], told["total"]])


def truth_frames(made: Conversation) -> NDArray[np.bool_]:
    """(T,) whether anybody speaks."""
    frames = np.zeros(activity.frames_in(len(made.wav), RATE), dtype=bool)
    for segment in made.truth:
        frames[round(segment.start * activity.FRAME_RATE) : round(segment.end * activity.FRAME_RATE)] = True
    return frames


def activity_errors(made: Conversation, stretches: NDArray[np.float64]) -> Parts:
    """Seconds of speech that is missed, of pauses taken for speech, of speech, of pauses."""
    true, found = truth_frames(made), np.zeros(activity.frames_in(len(made.wav), RATE), dtype=bool)
    for start, end in np.round(stretches * activity.FRAME_RATE).astype(int):
        found[start:end] = True
    parts = [(true & ~found).sum(), (found & ~true).sum(), true.sum(), (~true).sum()]
    return np.array(parts) / activity.FRAME_RATE


def rate(parts: Sequence[Parts], seed: int = 0) -> str:
    """Pooled error in % with its 95 % interval over conversations; of one conversation there is none."""
    all_, rng = np.stack(parts), np.random.default_rng(seed)
    drawn = all_[rng.integers(len(all_), size=(1000, len(all_)))].sum(1)
    low, high = np.percentile(100 * drawn[:, :3].sum(1) / drawn[:, 3], (2.5, 97.5))
    total = all_.sum(0)
    if len(all_) == 1:
        return f"{100 * total[:3].sum() / total[3]:.1f}"
    return f"{100 * total[:3].sum() / total[3]:.1f} [{low:.1f}, {high:.1f}]"


def tables(
    cells: list[tuple[int, float]], options: argparse.Namespace, errors: dict[tuple[str, float], list[Parts]],
    counted: dict[str, list[int]], spoken: dict[str, list[Parts]], lengths: list[float],
) -> str:  # fmt: skip
    """All systems over all conversations; DER by number of speakers and overlap; voice activity."""
    rows = []
    for name in options.systems:
        total = np.stack(errors[name, 0.0]).sum(0)
        shares = [f"{100 * part / total[3]:.1f}" for part in total[:3]]
        right = np.mean(np.array(counted[name]) == 0)
        rows.append([name, rate(errors[name, 0.0]), *shares, rate(errors[name, 0.25]), f"{100 * right:.0f}"])
    heading = ["system", "DER % [95 %]", "missed", "false", "confused", "DER %, collar 0.25 s", "number right, %"]
    first = options.systems[0]
    grid = []
    for count in options.speakers:
        own = [f"{count}"]
        for overlap in options.overlap:
            these = [e for e, cell in zip(errors[first, 0.0], cells, strict=True) if cell == (count, overlap)]
            own.append(f"{rate(these)} ({len(these)})")
        grid.append(own)
    of = f"DER % of {first!r} [95 %] (conversations) by number of speakers and overlap:"
    columns = ["speakers", *(f"overlap {overlap:.0%}" for overlap in options.overlap)]
    heard = []
    for vad, parts in spoken.items():
        missed, false, speech, pause = np.stack(parts).sum(0)
        heard.append([vad, f"{100 * missed / speech:.1f}", f"{100 * false / pause:.1f}"])
    told = f"{len(cells)} conversations of {np.mean(lengths):.0f} s on average, {min(lengths):.0f} s at least, "
    told += f"split {options.split}"
    told += ", every second one with noise at 5 to 20 dB." if options.noise else "."
    parts = [report.table(heading, rows), of, report.table(columns, grid)]
    if heard:
        parts += ["Voice activity, % of speech missed and of pauses taken for speech:",
                  report.table(["detector", "missed", "false alarms"], heard)]  # fmt: skip
    return "\n\n".join([*parts, told])


if __name__ == "__main__":
    sys.exit(main())
