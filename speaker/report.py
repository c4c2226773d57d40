"""What scores say of a system, as a dictionary for machines and a table for people."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speaker.intervals import Figure, actual_cost, eer_percent, least_cost, speaker_bootstrap
from speaker.metrics import Cost, cllr_of, min_cllr_of, split
from speaker.scoring import Floats

BOUNDS = (2.0, 4.0)  # seconds of the shorter side, where tables by duration are cut
PARTS = tuple(pairwise((0.0, *BOUNDS, np.inf)))
FEWEST = 30  # trials of a kind, for an error rate to mean something


def report(
    scores: Floats, labels: NDArray[np.bool_], sides: tuple[list[str], list[str]], *, prior: float = 0.01,
    are_ratios: bool = False, seconds: Floats | None = None, groups: Mapping[str, Sequence[str]] | None = None,
    num: int = 200,
) -> dict[str, Any]:  # fmt: skip
    """EER (%) and minDCF; of log-likelihood ratios also what the decisions at Bayes' threshold cost, and Cllr; by
    seconds (n, 2) of speech and by groups where they are known. Each is [value, low, high], the interval of 95 % by
    bootstrap over speakers."""
    targets, others = split(scores, labels)
    named = [np.array(side) for side in sides]
    figures: dict[str, Figure] = {"eer": eer_percent, "min_dcf": least_cost(Cost(prior))}
    if are_ratios:
        figures |= {"act_dcf": actual_cost(Cost(prior)), "cllr": cllr_of}
    of_all = dict(figures)
    if are_ratios and find_spec("scipy"):  # it comes with the tools that measure
        of_all["min_cllr"] = min_cllr_of

    def measured(kept: NDArray[np.bool_], figures: dict[str, Figure], num: int) -> dict[str, Any]:
        first, second = (side[kept].tolist() for side in named)
        estimates = speaker_bootstrap(scores[kept], labels[kept], first, second, list(figures.values()), num=num)
        return {name: list(estimate) for name, estimate in zip(figures, estimates, strict=True)}

    def part(kept: NDArray[np.bool_]) -> dict[str, Any]:
        counts = int(labels[kept].sum()), int((~labels[kept]).sum())
        if min(counts) < FEWEST:
            return {}
        return {"targets": counts[0], "nontargets": counts[1], **measured(kept, figures, num // 2)}

    found: dict[str, Any] = {"targets": len(targets), "nontargets": len(others), "prior": prior}
    found |= measured(np.ones(len(labels), bool), of_all, num)
    if seconds is not None and np.isfinite(seconds).all():
        found["by_seconds"] = by_seconds(seconds, part)
    for name, members in (groups or {}).items():
        found.setdefault("by", {})[name] = by_group(members, part)
    return found


Part = Callable[[NDArray[np.bool_]], dict[str, Any]]  # of some trials, or {} where they are too few


def by_seconds(seconds: Floats, part: Part) -> list[dict[str, Any]]:
    """Trials whose shorter side has so much speech."""
    least, rows = seconds.min(1), []
    for low, high in PARTS:
        if row := part((least >= low) & (least < high)):
            rows.append({"from": low, "to": None if np.isinf(high) else high, **row})
    return rows


def by_group(members: Sequence[str], part: Part) -> list[dict[str, Any]]:
    """Every group (n,), in the order in which they are met; too small ones are left out."""
    names, rows = np.array(members), []
    for name in dict.fromkeys(members):
        if row := part(names == name):
            rows.append({"group": name, **row})
    return sorted(rows, key=lambda row: _number(row["group"]))


def _number(group: str) -> float:
    """Where a group of numbers begins; words stay as they are."""
    with contextlib.suppress(ValueError):
        return float(group.partition(" to ")[0])
    return 0.0


def as_text(found: dict[str, Any]) -> str:
    """The same for a terminal."""
    error = found["eer"]
    lines = [
        f"trials      {found['targets']:,} same speaker, {found['nontargets']:,} different",
        f"EER         {error[0]:.2f} % [{error[1]:.2f}, {error[2]:.2f}]",
        f"minDCF({found['prior']:g}) {_interval(found['min_dcf'])}",
    ]
    if "act_dcf" in found:
        lines.append(f"actDCF({found['prior']:g}) {_interval(found['act_dcf'])}")
        best = f", at best {_interval(found['min_cllr'])}" if "min_cllr" in found else ""
        lines.append(f"Cllr        {_interval(found['cllr'])}{best}")
    for row in found.get("by_seconds", []):
        span = f"{row['from']:g} to {row['to']:g} s" if row["to"] else f"from {row['from']:g} s"
        lines.append(_line(span, row))
    if len(found.get("by_seconds", PARTS)) < len(PARTS):
        lines.append(f"  fewer than {FEWEST} trials of a kind of other lengths")
    for name, rows in found.get("by", {}).items():
        few = [] if rows else [f"  fewer than {FEWEST} trials of a kind in every group"]
        lines += [f"by {name}", *(_line(row["group"], row) for row in rows), *few]
    return "\n".join(lines)


def _interval(figure: list[float]) -> str:
    return f"{figure[0]:.3f} [{figure[1]:.3f}, {figure[2]:.3f}]"


def _line(name: str, row: dict[str, Any]) -> str:
    error, words = row["eer"], {"min_dcf": "minDCF", "act_dcf": "actDCF", "cllr": "Cllr"}
    figures = [f"{word} {_interval(row[key])}" for key, word in words.items() if key in row]
    return (
        f"  {name:<11} EER {error[0]:.2f} % [{error[1]:.2f}, {error[2]:.2f}], {', '.join(figures)} "
        f"({row['targets']:,} + {row['nontargets']:,} trials)"
    )
