"""Markdown tables, and the places in documents that commands rewrite: <!-- name --> ... <!-- /name -->."""

from collections.abc import Mapping, Sequence
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


def write_sections(path: Path, sections: Mapping[str, str]) -> None:
    """Put each section between its marks, where a file has them; a file without any of the marks is an error."""
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
