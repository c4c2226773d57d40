"""Markdown tables, and the places in documents that commands rewrite: <!-- name --> ... <!-- /name -->."""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from codec.metrics import Interval
from engine.errors import SpeechError

NAMES = {
    "pesq_wb": "PESQ-WB",
    "stoi": "STOI",
    "si_sdr": "SI-SDR dB",
    "mel_distance": "mel distance",
    "estoi": "ESTOI",
    "visqol": "ViSQOL",
    "dnsmos": "DNSMOS",
}
DIGITS = {"pesq_wb": 2, "stoi": 3, "si_sdr": 1, "mel_distance": 2, "estoi": 3, "visqol": 2, "dnsmos": 2}


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [list(heading), ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines).replace(" --- ", "---")


def cell(name: str, interval: Interval, sign: bool = False) -> str:
    """A mean with its interval, in the digits that suit the metric."""
    form = f"{'+' if sign else ''}.{DIGITS[name]}f"
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def count(intervals: Iterable[Interval]) -> str:
    """How many values are behind the figures of a row: a metric may be undefined for some files."""
    numbers = [interval.n for interval in intervals]
    return f"{min(numbers)} to {max(numbers)}" if min(numbers) < max(numbers) else str(numbers[0])


def share_above(differences: Sequence[float]) -> str:
    """In how many per cent of the files, of those where the metric is defined, the difference is above 0."""
    defined = [each for each in differences if not math.isnan(each)]
    return f"{100 * sum(each > 0 for each in defined) / len(defined):.0f} %" if defined else "-"


def publish(command: str, section: str, measure: Callable[[], str], documents: Sequence[Path | None]) -> int:
    """Measure, print, and write between the marks of the documents; the exit status, 2 with a line on a SpeechError."""
    try:
        text = measure()
        print(text)
        for path in documents:
            if path is not None:
                write_sections(path, {section: text})
    except SpeechError as error:
        print(f"{command}: error: {error}", file=sys.stderr)
        return 2
    return 0


def write_sections(path: Path, sections: Mapping[str, str]) -> None:
    """Put each section between its marks, where a file has them; a file without any of the marks is an error."""
    if not path.is_file():
        raise SpeechError(f"there is no {path} to write to; name a document that has marks such as "
                          f"<!-- {next(iter(sections))} -->")  # fmt: skip
    text, written = path.read_text(), False
    for name, section in sections.items():
        head, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, tail = rest.partition(f"<!-- /{name} -->")
        if start and end:
            text, written = f"{head}{start}{section}\n{end}{tail}", True
    if not written:
        wanted = ", ".join(f"<!-- {name} --> and <!-- /{name} -->" for name in sections)
        raise SpeechError(f"{path} has no place to write to; it needs lines such as {wanted}")
    path.write_text(text)
