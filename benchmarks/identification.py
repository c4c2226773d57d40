"""Open-set identification: strangers accepted against the target, the known who are missed, and time, by gallery size.

    python -m benchmarks.identification --train MANIFEST [--trials LIST... --root FOLDER] [--model ecapa]
        [--sizes 10 100 1000 10000 100000] [--rate 0.01] [--write FILE...]

Large galleries are simulated: a speaker is drawn from a normal distribution about one of the training corpora, with the
covariance of its speakers' mean embeddings drawn half way to that of all, and each recording adds what differs within
speakers. `--train` is the manifest that this is fitted on. Real strangers and speakers, of `--trials`, are measured in
galleries as large as a list allows (a list needs more than 12 speakers), and simulated ones of the same sizes beside
them. A speaker has three prints, a probe is one recording. Intervals are 95 %: Wilson's for drawn probes, speakers
drawn again for real ones.
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
from engine import checkpoint
from engine.errors import SpeechError
from recipes.harness.recordings import corpus_of
from speaker.embed import embed_files
from speaker.evidence import cohort_of
from speaker.gallery import Gallery
from speaker.identify import OpenSet
from speaker.model import SpeakerEncoder
from speaker.scoring import unit
from speaker.trials import read_trials

Floats = NDArray[np.float64]
PRINTS = 3
LEAST, MOST = 3, 10  # recordings of a training speaker; the mean of fewer is mostly what differs within a speaker
SHRINK = 0.5  # of a corpus's covariance to that of all
BATCH = 50
REAL_SIZES = (10, 20, 60)
GALLERIES = 20  # draws of small galleries, and of real ones


class Simulation:
    """Draws speakers and recordings like those it was fitted on: unit vectors (n, D) with speakers `corpus/name`."""

    def __init__(self, vectors: Floats, speakers: Sequence[str]) -> None:
        names, rows = np.unique(speakers, return_inverse=True)
        counts = np.bincount(rows)
        sums = np.zeros((len(names), vectors.shape[1]))
        np.add.at(sums, rows, vectors)
        means = sums / counts[:, None]
        inner = (vectors - means[rows])[counts[rows] > 1]
        within = inner.T @ inner / (len(inner) - (counts > 1).sum())
        corpora = np.array([corpus_of(name) for name in names])
        kinds, sizes = np.unique(corpora, return_counts=True)
        kinds = kinds[sizes >= 20]
        parts = [means[corpora == kind] for kind in kinds]
        # a mean of n recordings still has 1/n of what differs within speakers
        excess = [within * (1 / counts[corpora == kind]).mean() for kind in kinds]
        whole = sum(len(p) * _positive(np.cov(p.T) - e) for p, e in zip(parts, excess, strict=True))
        whole /= sum(len(p) for p in parts)
        self.centres = [p.mean(0) for p in parts]
        self.weights = np.array([len(p) for p in parts]) / sum(len(p) for p in parts)
        self.roots = [_root(SHRINK * _positive(np.cov(p.T) - e) + (1 - SHRINK) * whole)
                      for p, e in zip(parts, excess, strict=True)]  # fmt: skip
        self.within = _root(within)

    def people(self, count: int, rng: np.random.Generator) -> Floats:
        """(count, D) means of speakers."""
        kinds = rng.choice(len(self.centres), size=count, p=self.weights)
        drawn = rng.normal(size=(count, len(self.within)))
        for kind, (centre, root) in enumerate(zip(self.centres, self.roots, strict=True)):
            drawn[kinds == kind] = drawn[kinds == kind] @ root + centre
        return drawn

    def recordings(self, people: Floats, rng: np.random.Generator) -> Floats:
        """(n, D) -> one recording of each, (n, D)."""
        return people + rng.normal(size=people.shape) @ self.within


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="manifest (CSV) of the training speakers")
    parser.add_argument("--trials", nargs="*", type=Path, default=[], help="lists of real speakers")
    parser.add_argument("--root", type=Path, help="folder that the lists' paths start from")
    parser.add_argument("--model", default="ecapa")
    parser.add_argument("--sizes", nargs="+", type=int, default=[10, 100, 1000, 10_000, 100_000])
    parser.add_argument("--probes", type=int, default=2000, help="strangers, and known, for each size")
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--search", nargs="*", type=int, default=[100_000, 1_000_000], help="sizes for searching")
    parser.add_argument("--first-dims", type=int, default=32)
    parser.add_argument("--write", nargs="+", type=Path, default=[], metavar="FILE")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        check(options)
        encoder = speaker.load(options.model)
        cohort = cohort_of(checkpoint.find(options.model), encoder.identity)
        simulation = Simulation(*training(encoder, options.train))
        parts = [simulated(simulation, cohort, options.sizes, options.rate, options.probes)]
        if options.trials:
            parts.append(real(encoder, simulation, cohort, options.trials, options.root, options.rate))
        if options.search:
            parts.append(searching(simulation, options.search, options.first_dims))
        text = "\n\n".join(parts)
        print(text)
        for path in options.write:
            report.write_sections(path, {"identification": text})
    except SpeechError as error:
        print(f"identification: error: {error}", file=sys.stderr)
        return 2
    return 0


def check(options: argparse.Namespace) -> None:
    """SpeechError for what would end the command after minutes."""
    if options.trials and options.root is None:
        raise SpeechError("--trials needs --root FOLDER, the folder that the lists' paths start from")
    if min(options.sizes) < 1:
        raise SpeechError(f"--sizes are numbers of people, 1 or more; got {min(options.sizes)}")
    most = max(map(num_galleries, options.sizes))
    if options.probes < most:
        raise SpeechError(f"--probes {options.probes} are too few: {most} galleries of a size get one each at least")


def training(encoder: SpeakerEncoder, manifest: Path) -> tuple[Floats, list[str]]:
    """Unit vectors and speakers of so many recordings of each, of those whose speakers are known."""
    with manifest.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["speaker"] and row["split"] == "train"]
    left: dict[str, int] = {}
    chosen = []
    for index in np.random.default_rng(0).permutation(len(rows)):
        row = rows[index]
        if float(row["seconds"]) >= 0.9 and left.get(row["speaker"], 0) < MOST and "unlabelled" not in row["speaker"]:
            left[row["speaker"]] = left.get(row["speaker"], 0) + 1
            chosen.append(row)
    chosen = [row for row in chosen if left[row["speaker"]] >= LEAST]
    found = embed_files(encoder, [manifest.parent / row["path"] for row in chosen])
    who = {str(manifest.parent / row["path"]): row["speaker"] for row in chosen}
    return unit(np.array(found.vectors, dtype=np.float64)), [who[name] for name in found.names]


def simulated(simulation: Simulation, cohort: NDArray | None, sizes: Sequence[int], rate: float, probes: int) -> str:
    """A row for each size; several galleries where they are small."""
    rows = []
    for size in sizes:
        rng, counts, took = np.random.default_rng(size), np.zeros(4, dtype=int), []
        galleries = num_galleries(size)
        for _ in range(galleries):
            people = simulation.people(size, rng)
            gallery = drawn_gallery(simulation, people, rng)
            decide = OpenSet(gallery, cohort)
            each = probes // galleries
            strangers = simulation.recordings(simulation.people(each, rng), rng)
            known = rng.integers(size, size=each)
            start = time.perf_counter()
            accepted, _ = decisions(decide, strangers, rate)
            took.append((time.perf_counter() - start) / each * 1000)
            taken, best = decisions(decide, simulation.recordings(people[known], rng), rate)
            names = np.array([f"{k:07}" for k in known])
            counts += [accepted.sum(), each, (~(taken & (np.array(gallery.names)[best] == names))).sum(), each]
        alone = time_alone(decide, strangers[:20], rate)
        rows.append([f"{size:,}", wilson(counts[0], counts[1]), f"{counts[0] / counts[1] / rate:.2f}",
                     wilson(counts[2], counts[3]), f"{decide.threshold(rate):.2f}", f"{alone:.2f}"])  # fmt: skip
        print(*rows[-1], sep="\t", file=sys.stderr, flush=True)
    heading = ["enrolled (simulated)", "FPIR %", "of target", "FNIR %", "threshold", "ms"]
    told = (f"Target {100 * rate:g} %. FPIR: strangers taken for somebody; FNIR: the known not recognized or taken for "
            "another. ms: one decision, one thread. Embeddings of simulated speakers.")  # fmt: skip
    return report.table(heading, rows) + f"\n\n{told}"


def num_galleries(size: int) -> int:
    """How many of a size are drawn."""
    return max(1, min(GALLERIES, 20_000 // size))


def drawn_gallery(simulation: Simulation, people: Floats, rng: np.random.Generator) -> Gallery:
    """Of people (N, D), three prints each."""
    prints = np.concatenate([unit(simulation.recordings(people, rng)).astype(np.float32) for _ in range(PRINTS)])
    return Gallery([f"{k:07}" for k in range(len(people))] * PRINTS, prints)


def decisions(decide: OpenSet, probes: Floats, rate: float) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """(n, D) -> accepted (n,), number of the best (n,)."""
    threshold, accepted, best = decide.threshold(rate), [], []
    for start in range(0, len(probes), BATCH):
        z = decide.standardized(probes[start : start + BATCH])
        accepted.append(z.max(1) >= threshold)
        best.append(z.argmax(1))
    return np.concatenate(accepted), np.concatenate(best)


def time_alone(decide: OpenSet, probes: Floats, rate: float) -> float:
    """Median milliseconds of one decision."""
    took = []
    for probe in probes:
        start = time.perf_counter()
        decide.identify(probe, false_positive_rate=rate)
        took.append(1000 * (time.perf_counter() - start))
    return float(np.median(took))


def real(
    encoder: SpeakerEncoder, simulation: Simulation, cohort: NDArray | None, lists: Sequence[Path], root: Path,
    rate: float,
) -> str:  # fmt: skip
    """A row for each list and size: real speakers; the last rows are simulated ones of the same sizes."""
    rows, sizes = [], set()
    for path in lists:
        names = read_trials(path).recordings()
        found = embed_files(encoder, [root / name for name in names])
        vectors, speakers = unit(np.array(found.vectors, dtype=np.float64)), [Path(n).parent.name for n in found.names]
        for size in REAL_SIZES:
            if size <= 0.8 * len(set(speakers)):
                sizes.add(size)
                rows.append([path.stem, str(size), *of_draws(vectors, np.array(speakers), cohort, size, rate)])
    rng = np.random.default_rng(0)
    people = simulation.people(84, rng)
    vectors = unit(simulation.recordings(np.repeat(people, 12, 0), rng))
    for size in sorted(sizes):
        rows.append(["simulated", str(size), *of_draws(vectors, np.repeat(np.arange(84), 12), cohort, size, rate)])
    told = ("Real speakers, those of a list in and out of the gallery by turns, and simulated ones; intervals: "
            "speakers drawn again.")  # fmt: skip
    return report.table(["speakers", "enrolled", "FPIR %", "FNIR %"], rows) + f"\n\n{told}"


def of_draws(vectors: Floats, speakers: NDArray, cohort: NDArray | None, size: int, rate: float) -> list[str]:
    """Two cells: of galleries drawn from the speakers, the others are strangers."""
    names = np.unique(speakers)
    rows_of = {name: np.flatnonzero(speakers == name) for name in names}
    false: dict[str, list[bool]] = {name: [] for name in names}
    missed: dict[str, list[bool]] = {name: [] for name in names}
    rng = np.random.default_rng(size)
    for _ in range(GALLERIES):
        order = rng.permutation(names)
        chosen = {n: rng.permutation(rows_of[n])[: max(1, min(PRINTS, len(rows_of[n]) - 1))] for n in order[:size]}
        owners = [str(name) for name, rows in chosen.items() for _ in rows]
        decide = OpenSet(Gallery(owners, vectors[np.concatenate(list(chosen.values()))]), cohort)
        probes = [(n, r) for n in order for r in rng.permutation(np.setdiff1d(rows_of[n], chosen.get(n, [])))[:5]]
        accepted, best = decisions(decide, vectors[[row for _, row in probes]], rate)
        for (name, _), taken, row in zip(probes, accepted, best, strict=True):
            if name in chosen:
                missed[name].append(not (taken and decide.gallery.names[row] == str(name)))
            else:
                false[name].append(bool(taken))
    return [by_speakers(false, rng), by_speakers(missed, rng)]


def by_speakers(found: dict[str, list[bool]], rng: np.random.Generator) -> str:
    """A rate and its interval: speakers drawn with replacement."""
    sums = np.array([[sum(each), len(each)] for each in found.values() if each])
    draws = sums[rng.integers(len(sums), size=(1000, len(sums)))].sum(1)
    low, high = np.percentile(draws[:, 0] / draws[:, 1], (2.5, 97.5))
    return f"{100 * sums[:, 0].sum() / sums[:, 1].sum():.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def searching(simulation: Simulation, sizes: Sequence[int], first_dims: int) -> str:
    """Recall of the best match and time, exact, in two stages and by FAISS where it is installed."""
    rows = []
    for size in sizes:
        rng = np.random.default_rng(size)
        people = np.empty((size, len(simulation.within)), dtype=np.float32)
        for start in range(0, size, 100_000):
            people[start : start + 100_000] = simulation.people(min(100_000, size - start), rng)
        gallery = Gallery([f"{k:07}" for k in range(size)], people)
        probes = simulation.recordings(people[rng.integers(size, size=200)].astype(np.float64), rng)
        del people
        exact = [found[0].name for found in gallery.search(probes, top=1)]
        ways: list[tuple[str, dict]] = [("exact", {})]
        ways += [(f"{first_dims} dimensions, best {k} ranked by all", {"first_dims": first_dims, "candidates": k})
                 for k in (100, 1000, 10_000)]  # fmt: skip
        ways += [("IVF (FAISS)", {})] if has_faiss() else []
        for name, how in ways:
            if name.startswith("IVF"):
                gallery.use_index("ivf")
            took, same = [], 0
            for probe, best in zip(probes, exact, strict=True):
                start_time = time.perf_counter()
                same += gallery.search(probe[None], top=1, **how)[0][0].name == best
                took.append(1000 * (time.perf_counter() - start_time))
            rows.append([f"{size:,}", name, wilson(same, len(exact)), f"{np.median(took):.1f}"])
            print(*rows[-1], sep="\t", file=sys.stderr, flush=True)
    told = "Recall: of the match that exact search finds. Simulated speakers, one print each."
    return report.table(["enrolled (simulated)", "search", "recall %", "ms"], rows) + f"\n\n{told}"


def has_faiss() -> bool:
    """Whether the optional index is there."""
    import importlib.util

    return importlib.util.find_spec("faiss") is not None


def wilson(count: int, total: int) -> str:
    """A share in % with its 95 % interval (Wilson 1927)."""
    share, z = count / total, 1.96
    centre, half = share + z * z / (2 * total), z * np.sqrt(share * (1 - share) / total + z * z / (4 * total**2))
    low, high = (centre - half) / (1 + z * z / total), (centre + half) / (1 + z * z / total)
    return f"{100 * share:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def _positive(matrix: Floats) -> Floats:
    values, directions = np.linalg.eigh(matrix)
    return np.asarray((directions * np.maximum(values, 0)) @ directions.T)


def _root(matrix: Floats) -> Floats:
    values, directions = np.linalg.eigh(matrix)
    return np.asarray((directions * np.sqrt(np.maximum(values, 0))) @ directions.T)


if __name__ == "__main__":
    sys.exit(main())
