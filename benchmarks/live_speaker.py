"""Live embeddings: how near they are to the whole file's, and how soon a speaker is known.

    python -m benchmarks.live_speaker --data MANIFEST [--split test] [--model ecapa] [--seconds 20] [--write FILE...]

Every speaker's recordings, joined, are one stream; the recordings up to `--enrol` seconds are the enrolment and no
part of it. Speakers with less than half of `--seconds` left are left out.

1. Cosine between the embedding after so many seconds of a stream and that of the same seconds as a file (no gate).
2. The sequential test (`speaker.sequential`) of every stream against every enrolment of its corpus, a look every half
   second of gated speech: false accepts, right ones accepted, the median seconds of speech until then (speakers who
   are never accepted count as never). At Wald's bound for 0.1 % false accepts, and at the bound that gives 0.1 % here.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import speaker
from benchmarks import report
from engine import audio, checkpoint
from engine.errors import SpeechError
from engine.pipeline import run
from recipes.harness.recordings import UNLABELLED
from speaker.evidence import Evidence, evidence_of
from speaker.live import LiveEncoder
from speaker.quality import assess
from speaker.scoring import unit
from speaker.sequential import SequentialTest
from speaker.stream import EmbedStage

HOP = 0.5
LOOKS = (2, 4, 6, 8, 10, 15, 20, 30)
FALSE_ACCEPTS = 0.001


@dataclass(frozen=True)
class Stream:
    """One speaker: what is enrolled, and what comes in live."""

    corpus: str
    speaker: str
    enrolment: Tensor  # (N,)
    live: Tensor


@dataclass(frozen=True)
class Paths:
    """Log-likelihood ratios (streams, enrolments, looks), nan after a stream's end, and the speech at every look."""

    ratios: NDArray[np.float64]
    speech: NDArray[np.float64]  # (streams, looks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="manifest: path, split, corpus, speaker, seconds")
    parser.add_argument("--split", default="test")
    parser.add_argument("--model", default="ecapa")
    parser.add_argument("--seconds", type=float, default=20.0, help="of every stream")
    parser.add_argument("--enrol", type=float, default=10.0, help="seconds of enrolment")
    parser.add_argument("--write", nargs="+", type=Path, default=[], metavar="FILE")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        rate = speaker.load(options.model).config.front_end.sample_rate
        streams = read_streams(options.data, options.split, options.seconds, options.enrol, rate)
        sections = {
            "live_cosine": cosine_table(options.model, streams),
            "sequential": sequential_table(options.model, streams),
        }
        print("\n\n".join(sections.values()))
        for path in options.write:
            report.write_sections(path, sections)
    except SpeechError as error:
        print(f"live_speaker: error: {error}", file=sys.stderr)
        return 2
    return 0


def read_streams(manifest: Path, split: str, seconds: float, enrol: float, sample_rate: int = 16_000) -> list[Stream]:
    """Streams of all known speakers of a split who have enough recordings, in the order of the manifest."""
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["split"] == split and not r["speaker"].endswith(UNLABELLED)]
    by_speaker: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        by_speaker.setdefault((row["corpus"], row["speaker"]), []).append(row["path"])
    streams = []
    for (corpus, name), paths in by_speaker.items():
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        lengths = [0, 0]
        for path in paths:
            side = int(lengths[0] >= enrol * sample_rate)
            if lengths[1] >= seconds * sample_rate:
                break
            parts[side].append(audio.load(manifest.parent / path, sample_rate, mono=True)[0][0])
            lengths[side] += len(parts[side][-1])
        if lengths[1] >= seconds / 2 * sample_rate:
            live = torch.cat(parts[1])[: round(seconds * sample_rate)]
            streams.append(Stream(corpus, name, torch.cat(parts[0]), live))
    if not streams:
        raise SpeechError(f"{manifest}: no speaker of the split {split!r} has {enrol:g} + {seconds / 2:g} s")
    return streams


@torch.inference_mode()
def cosine_table(model: str, streams: Sequence[Stream], per_corpus: int = 8) -> str:
    """Mean and least cosine to the file, for several lengths of the exact beginning."""
    encoder = speaker.load(model)
    rate = encoder.config.front_end.sample_rate
    counts: dict[str, int] = {}
    chosen = []
    for stream in streams:
        counts[stream.corpus] = counts.get(stream.corpus, 0) + 1
        if counts[stream.corpus] <= per_corpus:
            chosen.append(stream)
    rows = []
    for warm in (2.0, 4.0, 8.0):
        found: dict[int, list[float]] = {}
        for stream in chosen:
            stage = EmbedStage(LiveEncoder(encoder, warm_seconds=warm), HOP, gate=False)
            for each in run([stream.live[None]], stage):
                if each.seconds in LOOKS and each.vectors[0] is not None:
                    whole = encoder(stream.live[None, : round(each.seconds * rate)])[0]
                    cosine = torch.cosine_similarity(torch.from_numpy(each.vectors[0]), whole, dim=0)
                    found.setdefault(int(each.seconds), []).append(float(cosine))
        rows.append([f"{warm:g} s", *(f"{np.mean(v):.3f} ({min(v):.3f})" for t in LOOKS if (v := found.get(t)))])
    looks = [f"after {t} s" for t in LOOKS if t in found]
    lines = report.table(["exact until", *looks], rows)
    return f"{lines}\n\n{encoder.identity}, {len(chosen)} streams: mean cosine (least)."


def sequential_table(model: str, streams: Sequence[Stream]) -> str:
    """A row for every corpus with speakers enough, and for all together."""
    folder = checkpoint.find(model)
    encoder = speaker.load(folder)
    evidence = evidence_of(folder, encoder)
    if evidence is None:
        raise SpeechError(f"{folder} has no calibration; `python -m recipes.calibrate` makes one")
    parts: dict[str, Paths] = {}
    for corpus in dict.fromkeys(stream.corpus for stream in streams):
        members = [stream for stream in streams if stream.corpus == corpus]
        if len(members) > 3:
            parts[corpus] = ratio_paths(LiveEncoder(encoder), evidence, members)
    if not parts:
        raise SpeechError("the sequential test needs a corpus of four speakers or more")
    rows = []
    for corpus in [*parts, "all"] if len(parts) > 1 else [*parts]:
        members_ = list(parts.values()) if corpus == "all" else [parts[corpus]]
        right, wrong = best_and_peaks(members_)
        for bound in (SequentialTest(FALSE_ACCEPTS).accept, measured_bound(wrong)):
            times = np.array([first_time(path, speech, bound) for path, speech in right])
            median = float(np.median(times))
            rows.append(
                [
                    corpus, f"{len(right)} + {len(wrong)}", f"{bound:.1f}", f"{100 * np.mean(wrong >= bound):.2f}",
                    f"{100 * np.mean(np.isfinite(times)):.0f}", "never" if math.isinf(median) else f"{median:.1f}",
                ]
            )  # fmt: skip
    head = ["corpus", "right + wrong", "bound", "false accepts %", "accepted %", "median s of speech"]
    return f"{report.table(head, rows)}\n\n{encoder.identity}, a look every {HOP:g} s."


@torch.inference_mode()
def ratio_paths(live: LiveEncoder, evidence: Evidence, streams: Sequence[Stream]) -> Paths:
    """Every stream against every enrolment."""
    encoder, rate = live.encoder, live.encoder.config.front_end.sample_rate
    prints = np.array([encoder(stream.enrolment[None])[0].double().numpy() for stream in streams])
    spoken = np.array([assess(stream.enrolment.numpy(), rate).seconds for stream in streams])
    enrolled, sides = unit(prints), evidence.side(prints, spoken)
    looks = max(math.ceil(len(stream.live) / (HOP * rate)) for stream in streams)
    ratios = np.full((len(streams), len(streams), looks), np.nan)
    speech = np.full((len(streams), looks), np.nan)
    for i, stream in enumerate(streams):
        for k, each in enumerate(run([stream.live[None]], EmbedStage(live, HOP))):
            speech[i, k] = each.speech[0]
            if each.vectors[0] is None or each.speech[0] < evidence.calibration.shortest:
                continue
            scores = enrolled @ unit(each.vectors[0][None].astype(np.float64))[0]
            ratios[i, :, k] = evidence.llr(scores, sides, evidence.side(each.vectors[0][None], each.speech[0]))
    return Paths(ratios, speech)


def best_and_peaks(
    parts: Sequence[Paths],
) -> tuple[list[tuple[NDArray[np.float64], NDArray[np.float64]]], NDArray[np.float64]]:
    """Of all right pairs the ratios and the speech at every look; of all wrong pairs the highest ratio.

    It is nan where a stream never had enough speech for a look.
    """
    right, wrong = [], []
    for part in parts:
        num = len(part.ratios)
        right += [(part.ratios[i, i], part.speech[i]) for i in range(num)]
        peaks = np.fmax.reduce(part.ratios, axis=2)  # without nanmax's warning where there is nothing else
        wrong.append(peaks[~np.eye(num, dtype=bool)])
    return right, np.concatenate(wrong)


def measured_bound(peaks: NDArray[np.float64]) -> float:
    """The least bound that no more than the allowed share of the wrong pairs ever reaches."""
    reached = np.where(np.isnan(peaks), -np.inf, peaks)  # no look, so no bound is ever reached
    allowed = math.floor(FALSE_ACCEPTS * len(reached))
    return float(np.nextafter(np.sort(reached)[::-1][allowed], np.inf))


def first_time(ratios: NDArray[np.float64], speech: NDArray[np.float64], bound: float) -> float:
    """Seconds of speech at the first look that reaches the bound; infinity if none does."""
    reached = np.flatnonzero(ratios >= bound)
    return float(speech[reached[0]]) if len(reached) else math.inf


if __name__ == "__main__":
    sys.exit(main())
