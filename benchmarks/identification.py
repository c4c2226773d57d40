"""Open-set identification: false alarms and misses, from 10 to 100,000 enrolled speakers.

    python -m benchmarks.identification --data MANIFEST [--model ecapa] [--rate 0.01] [--write FILE...]

Real speakers are those of the test split: half of a corpus is enrolled, the others are strangers, drawn anew for every
repetition. There are not enough of them for large galleries; those are sampled from a model of the encoder's
embeddings, a Gaussian for the speakers and one for the recordings of a speaker, both fitted on the training split. That
the two agree where both can be had says how far to trust it; no sampled voice has a twin or a brother.

Every print, and every probe, is one embedding of about `--seconds` of speech. False alarm (FPIR): a stranger is taken
for somebody. Miss (FNIR): an enrolled speaker is taken for nobody, or for another one. 95 % intervals: bootstrap over
strangers and probes. Then the time of a search, the recall of the approximate ones, and of a search in two stages.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import speaker
from benchmarks import report
from engine import audio, checkpoint
from engine.errors import SpeechError, StoreError
from speaker.gallery import Gallery
from speaker.identify import OpenSet, cohort_of
from speaker.model import SpeakerEncoder

SIZES = (10, 100, 1_000, 10_000, 100_000)
PROBES = 2_000  # strangers and speakers that come, for each size
ROWS = 100
Floats = NDArray[np.float64]
Corpora = dict[str, dict[str, Floats]]  # corpus -> speaker -> embeddings (n, D)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="manifest: path, split, corpus, speaker, seconds")
    parser.add_argument("--model", default="ecapa")
    parser.add_argument("--rate", type=float, default=0.01, help="false alarms asked for")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--speakers", type=int, default=200, help="of the training split, that the model is fitted on")
    parser.add_argument("--write", nargs="+", type=Path, default=[], metavar="FILE")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        folder = checkpoint.find(options.model)
        encoder = speaker.load(folder)
        cohort = cohort_of(folder, f"{encoder.name}@{encoder.digest}")
        test = embedded(encoder, options.data, "test", options.seconds, 1_000)
        voices = Voices(embedded(encoder, options.data, "train", options.seconds, options.speakers))
    except SpeechError as error:
        print(f"identification: error: {error}", file=sys.stderr)
        return 2
    rng = np.random.default_rng(0)
    rows = [real_row(rng, corpus, people, cohort, options.rate) for corpus, people in test.items() if len(people) >= 20]
    rows += [sampled_row(rng, voices, size, cohort, options.rate) for size in options.sizes]
    heading = ["speakers", "enrolled", "false alarms % [95 %]", "misses % [95 %]", "ms a search"]
    sections = {"identification": f"Asked for: {options.rate:.2%} false alarms.\n\n{report.table(heading, rows)}"}
    sections["search"] = search_table(rng, voices, options.sizes[-2:])
    print("\n\n".join(sections.values()))
    for path in options.write:
        report.write_sections(path, sections)
    return 0


@torch.inference_mode()
def embedded(encoder: SpeakerEncoder, manifest: Path, split: str, seconds: float, most: int) -> Corpora:
    """Recordings of each speaker, joined to about `seconds`, up to 6 embeddings; speakers with two or more."""
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    paths: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        paths.setdefault((row["corpus"], row["speaker"]), []).append(row["path"])
    rng, found = np.random.default_rng(1), Corpora()
    names = list(paths)
    for index in rng.permutation(len(names))[:most]:
        (corpus, name), vectors, held = names[index], [], torch.zeros(0)
        for path in paths[names[index]]:
            held = torch.cat([held, audio.load(manifest.parent / path, 16_000, mono=True)[0][0]])
            if len(held) >= seconds * 16_000:
                vectors.append(encoder(held[None, : round(2 * seconds * 16_000)])[0].double().numpy())
                held = torch.zeros(0)
            if len(vectors) == 6:
                break
        if len(vectors) > 1:
            found.setdefault(corpus, {})[name] = np.stack(vectors)
    if not found:
        raise SpeechError(f"{manifest}: no speaker of the split {split!r} has two recordings of {seconds:g} s")
    return found


class Voices:
    """Sampled speakers: mean N(m, B), recordings N(speaker, W)."""

    def __init__(self, corpora: Corpora) -> None:
        people = [unit(vectors) for corpus in corpora.values() for vectors in corpus.values()]
        means = np.stack([each.mean(0) for each in people])
        inner = np.concatenate([each - each.mean(0) for each in people])
        self.within = inner.T @ inner / (len(inner) - len(people))
        shrunk = np.mean([1 / len(each) for each in people])  # of W, that is in the spread of the means
        values, directions = np.linalg.eigh(np.cov(means.T) - shrunk * self.within)
        self.mean = means.mean(0)
        self._between = directions * np.sqrt(np.maximum(values, 0))
        self._within = np.linalg.cholesky(self.within + 1e-9 * np.eye(len(self.within)))

    def speakers(self, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        """(count, D)."""
        drawn = rng.standard_normal((count, self._between.shape[1])) @ self._between.T
        return (self.mean + drawn).astype(np.float32)

    def recordings(self, rng: np.random.Generator, speakers: NDArray[np.float32]) -> NDArray[np.float32]:
        """One of each speaker."""
        drawn = rng.standard_normal(speakers.shape, dtype=np.float32) @ self._within.T.astype(np.float32)
        return np.asarray(speakers + drawn, dtype=np.float32)


def unit(rows: Floats) -> Floats:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def real_row(
    rng: np.random.Generator, corpus: str, people: dict[str, Floats], cohort: NDArray[np.float32] | None, rate: float
) -> list[str]:
    """Half enrolled by one recording, all others come as probes; 40 draws."""
    alarms, misses, names = [], [], sorted(people)
    for _ in range(40):
        order = rng.permutation(len(names))
        known, strangers = order[: len(names) // 2], order[len(names) // 2 :]
        gallery = Gallery([names[i] for i in known], np.stack([people[names[i]][0] for i in known]))
        decide = OpenSet(gallery, cohort)
        alarms += decided(decide, np.concatenate([people[names[i]] for i in strangers]), rate)
        probes = np.concatenate([people[names[i]][1:] for i in known])
        truth = [names[i] for i in known for _ in people[names[i]][1:]]
        misses += [a != b for a, b in zip(decided(decide, probes, rate), truth, strict=True)]
    taken = [each is not None for each in alarms]
    return [f"{corpus}, real", str(len(names) // 2), interval(rng, taken, 40), interval(rng, misses, 40), ""]


def sampled_row(
    rng: np.random.Generator, voices: Voices, size: int, cohort: NDArray[np.float32] | None, rate: float
) -> list[str]:
    """A gallery of sampled speakers; small ones several times over."""
    alarms: list[bool] = []
    misses: list[bool] = []
    spent = []
    draws = max(1, min(40, 2_000 // size))
    for _ in range(draws):
        people = voices.speakers(rng, size)
        names = [f"{i:06}" for i in range(size)]
        decide = OpenSet(Gallery(names, voices.recordings(rng, people)), cohort)
        count = max(50, PROBES // draws)
        alarms += [
            each is not None for each in decided(decide, voices.recordings(rng, voices.speakers(rng, count)), rate)
        ]
        chosen = rng.integers(size, size=count)
        found = decided(decide, voices.recordings(rng, people[chosen]), rate)
        misses += [a != names[i] for a, i in zip(found, chosen, strict=True)]
        begun = time.perf_counter()
        for probe in voices.recordings(rng, people[chosen[:10]]):
            decide.identify(probe, false_positive_rate=rate)
        spent.append((time.perf_counter() - begun) / 10)
    return ["sampled", f"{size:,}", interval(rng, alarms, 1), interval(rng, misses, 1), f"{1000 * np.mean(spent):.1f}"]


def decided(decide: OpenSet, probes: NDArray[np.floating], rate: float) -> list[str | None]:
    """Name or None for every probe (B, D)."""
    needed, found = decide.threshold(rate), list[str | None]()
    for start in range(0, len(probes), ROWS):
        z = decide.standardized(probes[start : start + ROWS])
        best = z.argmax(1)
        found += [decide.gallery.names[i] if score >= needed else None for i, score in zip(best, z.max(1), strict=True)]
    return found


def interval(rng: np.random.Generator, wrong: Sequence[bool], draws: int) -> str:
    """Share in percent; bootstrap over the probes, of which `draws` repetitions hold the same ones."""
    values = np.array(wrong, dtype=float)
    count = max(2, len(values) // draws)
    means = [rng.choice(values, count).mean() for _ in range(1000)]
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{100 * values.mean():.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def search_table(rng: np.random.Generator, voices: Voices, sizes: Sequence[int]) -> str:
    """Milliseconds a search (one at a time) and share of searches with the best match of the exact one."""
    rows = []
    for size in sizes:
        people = voices.speakers(rng, size)
        gallery = Gallery([f"{i:06}" for i in range(size)], voices.recordings(rng, people))
        probes = voices.recordings(rng, people[rng.integers(size, size=100)])
        exact = [matches[0].name for matches in gallery.search(probes)]
        rows.append([f"{size:,}", "exact", timed(gallery, probes), "1"])
        for dims in (32, 64):
            found = [matches[0].name for matches in gallery.search(probes, first_dims=dims)]
            share = np.mean([a == b for a, b in zip(found, exact, strict=True)])
            rows.append([f"{size:,}", f"first {dims} dimensions, then all for 200", timed(gallery, probes, dims),
                         f"{share:.2f}"])  # fmt: skip
        for kind in ("hnsw", "ivf"):
            try:
                recall = gallery.use_index(kind)  # type: ignore[arg-type]
            except StoreError as error:
                print(f"identification: {error}", file=sys.stderr)
                continue
            rows.append([f"{size:,}", f"FAISS {kind}", timed(gallery, probes), f"{recall:.2f}"])
    return report.table(["sampled prints", "search", "ms", "recall of the best"], rows)


def timed(gallery: Gallery, probes: NDArray[np.float32], first_dims: int | None = None) -> str:
    """Median milliseconds of a search."""
    spent = []
    for probe in probes[:30]:
        begun = time.perf_counter()
        gallery.search(probe[None], first_dims=first_dims)
        spent.append(time.perf_counter() - begun)
    return f"{1000 * float(np.median(spent)):.2f}"


if __name__ == "__main__":
    sys.exit(main())
