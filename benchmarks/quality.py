"""Measure a codec model on folders of speech at every rate it has, Opus and Lyra v2 beside it where they are at hand.

    python -m benchmarks.quality TESTDIR... [--model esc_live] [--lyra DIR] [--more estoi visqol dnsmos]
        [--limit N] [--excerpts CSV] [--json FILE] [--write FILE...] [--images FOLDER]

Every file is mixed to mono and brought to 16 kHz; that signal is the reference, and what the coders are given. Our
files go all the way through bytes and 16 bit samples. Rates are those of the files, headers and checksums included
("on disk"), and of the codes alone. Opus loses its container (Ogg costs about 1 kbit/s in files of a few seconds) in
the second figure, Lyra has none; one delay per rate of theirs is found by correlation and removed, ours has none.
Intervals: 95 % bootstrap over files.

`--write` puts tables between the lines <!-- NAME --> and <!-- /NAME --> of the files, where they have them: `quality`
(the main table), `more` (further metrics), `paired` (differences file by file), `groups`, `worst` and `correlations`
(where and why it is bad), `run` (what was measured). `--images` draws rate-quality curves.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import explain, plots
from benchmarks.coders import RATE, Coder, Sample, aligned, load_samples, opus, ours, progress
from benchmarks.lyra import lyra
from benchmarks.report import NAMES, cell, count, share_above, table, write_sections
from codec import files, metrics
from codec.model import Codec
from engine.errors import SpeechError


@dataclass(frozen=True)
class Row:
    """One line of the table: a coder at a rate, over all files."""

    coder: str
    on_disk: float  # kbit/s
    payload: float  # kbit/s
    scores: list[dict[str, float]]  # of each file

    def values(self, metric: str) -> list[float]:
        """The metric of each file."""
        return [score[metric] for score in self.scores]

    def mean(self, metric: str) -> metrics.Interval:
        """The metric's mean over the files."""
        return metrics.bootstrap_interval(self.values(metric))

    @property
    def label(self) -> str:
        """The coder and the rate of its codes."""
        return f"{self.coder} ({self.payload:.2f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--model", default="esc_live", help="name or folder (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="only this many files, evenly spread")
    parser.add_argument("--excerpts", type=Path, help="CSV with source, start_sample_16k, seconds: only these parts")
    parser.add_argument("--no-opus", action="store_true")
    parser.add_argument("--lyra", type=Path, metavar="DIR", help="folder with the TFLite graphs of Lyra v2")
    parser.add_argument(
        "--more",
        nargs="*",
        choices=list(metrics.MORE),
        help="further metrics (default: estoi, and visqol where it is installed)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every file")
    parser.add_argument("--write", nargs="+", type=Path, default=[], metavar="FILE", help="replace the tables in these")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="draw rate_quality.png there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    more = options.more
    if more is None:
        more = [name for name in ("estoi", "visqol") if metrics.installed(name)]
    try:
        samples = load_samples(options.folders, options.limit, options.excerpts)
        model = files.load_model(options.model)
        peers = [] if options.no_opus else [opus()]
        peers += [lyra(options.lyra)] if options.lyra else []
        rows = measure_all(model, samples, [peer for peer in peers if peer], more)
        sections = make_sections(model, samples, rows, more)
        print("\n\n".join(sections.values()))
        if options.json:
            options.json.write_text(to_json(samples, rows))
        for path in options.write:
            write_sections(path, sections)
        if options.images:
            plots.rate_quality(rows, model.name, options.images / "rate_quality.png")
    except SpeechError as error:
        print(f"quality: error: {error}", file=sys.stderr)
        return 2
    return 0


def measure_all(model: Codec, samples: list[Sample], peers: Sequence[Coder], more: Sequence[str] = ()) -> list[Row]:
    """Measure all rates of the model, then those of the others."""
    return [row for coder in (ours(model), *peers) for row in measure(coder, samples, more)]


def measure(coder: Coder, samples: list[Sample], more: Sequence[str]) -> list[Row]:
    """Code all signals at all rates of a coder and compare each with its original."""
    coded = [coder.code(sample.wav) for sample in progress(samples, f"code {coder.names[0]}")]
    seconds = sum(len(sample.wav) for sample in samples) / RATE
    rows = []
    for i, name in enumerate(coder.names):
        results = [each[i] for each in coded]
        pairs = aligned([(s.wav, r.wav) for s, r in zip(samples, results, strict=True)], coder.align)
        rows.append(
            Row(
                coder=name,
                on_disk=8e-3 * sum(r.size for r in results) / seconds,
                payload=1e-3 * sum(r.payload_bits for r in results) / seconds,
                scores=[metrics.measure(ref, dec, more) for ref, dec in progress(pairs, f"measure {name}")],
            )
        )
    return rows


def make_sections(model: Codec, samples: list[Sample], rows: list[Row], more: Sequence[str]) -> dict[str, str]:
    """All tables by name."""
    own = [row for row in rows if row.coder == model.name]
    peers = [row for row in rows if row.coder != model.name]
    best = own[-1]
    looked_at = {row.label: row.values("pesq_wb") for row in (best, *nearest(peers, best))}
    why = {row.label: row.values("pesq_wb") for row in (own[0], best, *nearest(peers, best)[:1])}
    return {
        "quality": main_table(rows, list(metrics.METRICS)),
        "more": main_table(rows, list(more)) if more else "Not measured in this run.",
        "paired": paired_table(own, peers),
        "groups": explain.group_table(samples, looked_at),
        "worst": explain.worst_table(samples, looked_at),
        "correlations": explain.correlation_table(samples, why),
        "run": describe(model, samples, peers),
    }


def nearest(peers: list[Row], row: Row) -> list[Row]:
    """Of each other coder the row whose rate of codes is nearest."""
    families = sorted({peer.coder.split()[0] for peer in peers})
    return [
        min((p for p in peers if p.coder.split()[0] == family), key=lambda p: abs(p.payload - row.payload))
        for family in families
    ]


def main_table(rows: list[Row], names: Sequence[str]) -> str:
    """Rates, and mean [95 % interval] of each metric."""
    heading = ["coder", "kbit/s of codes", "kbit/s on disk", *(NAMES[name] for name in names), "n"]
    lines = []
    for row in rows:
        means = {name: row.mean(name) for name in names}
        cells = [cell(name, mean) for name, mean in means.items()]
        lines.append([row.coder, f"{row.payload:.2f}", f"{row.on_disk:.2f}", *cells, count(means.values())])
    return table(heading, lines)


def paired_table(own: list[Row], peers: list[Row]) -> str:
    """Each other coder against our nearest rate (of codes): mean difference file by file, and how many we win."""
    lines = []
    for peer in peers:
        row = min(own, key=lambda r: abs(r.payload - peer.payload))
        cells = []
        for name in ("pesq_wb", "stoi"):
            differences = [a - b for a, b in zip(row.values(name), peer.values(name), strict=True)]
            cells += [cell(name, metrics.bootstrap_interval(differences), sign=True)]
            cells += [share_above(differences)]
        lines.append([row.label, f"{peer.label}", *cells])
    heading = ["ours (kbit/s of codes)", "against", "PESQ-WB difference", "better in", "STOI difference", "better in"]
    return table(heading, lines) if lines else "No other coder was measured in this run."


def describe(model: Codec, samples: list[Sample], peers: list[Row]) -> str:
    """One paragraph: which model, which files, which versions."""
    groups: dict[str, int] = {}
    for sample in samples:
        groups[sample.group] = groups.get(sample.group, 0) + 1
    what = ", ".join(f"{group} ({count})" for group, count in groups.items())
    minutes = sum(len(sample.wav) for sample in samples) / RATE / 60
    text = f"Model `{model.name}`, id {model.model_id.hex()}; {len(samples)} files, {minutes:.1f} minutes: {what}."
    if any(peer.coder.startswith("Opus") for peer in peers):
        said = subprocess.run(["opusenc", "--version"], capture_output=True, text=True).stdout
        text += f" {said.splitlines()[0]}." if said else ""
    return text


def to_json(samples: list[Sample], rows: list[Row]) -> str:
    """Everything that was measured, file by file."""
    listed = [
        {"name": s.name, "group": s.group, **explain.features(s.wav), **{r.label: r.scores[i] for r in rows}}
        for i, s in enumerate(samples)
    ]
    rates = [{"coder": r.coder, "label": r.label, "on_disk": r.on_disk, "payload": r.payload} for r in rows]
    return json.dumps({"coders": rates, "files": listed}, indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main())
