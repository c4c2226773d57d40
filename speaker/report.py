"""What scores say of a system, as a dictionary for machines and a table for people."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speaker.intervals import eer_percent, least_cost, speaker_bootstrap
from speaker.metrics import Cost, act_dcf, cllr, eer, min_cllr, min_dcf, split
from speaker.scoring import Floats

BOUNDS = (2.0, 4.0)  # seconds of the shorter side, where tables by duration are cut
FEWEST = 30  # trials of a kind, for an error rate to mean something


def report(
    scores: Floats, labels: NDArray[np.bool_], sides: tuple[list[str], list[str]], *, prior: float = 0.01,
    are_ratios: bool = False, seconds: Floats | None = None, groups: Mapping[str, Sequence[str]] | None = None,
    num: int = 200,
) -> dict[str, Any]:  # fmt: skip
    """EER (%) and minDCF with 95 % intervals (bootstrap over speakers); of log-likelihood ratios also what the
    decisions at Bayes' threshold cost, and Cllr; by seconds (n, 2) of speech and by groups where they are known."""
    cost = Cost(prior)
    targets, others = split(scores, labels)
    error, least = speaker_bootstrap(scores, labels, *sides, [eer_percent, least_cost(cost)], num=num)
    found: dict[str, Any] = {
        "targets": len(targets), "nontargets": len(others), "prior": prior, "eer": list(error), "min_dcf": list(least),
    }  # fmt: skip
    if are_ratios:
        found |= {"act_dcf": act_dcf(targets, others, cost), "cllr": cllr(targets, others)}
        with contextlib.suppress(ModuleNotFoundError):  # scipy comes with the tools that measure
            found["min_cllr"] = min_cllr(targets, others)
    if seconds is not None and np.isfinite(seconds).all():
        found["by_seconds"] = by_seconds(scores, labels, seconds, cost)
    for name, members in (groups or {}).items():
        found.setdefault("by", {})[name] = by_group(scores, labels, members, cost)
    return found


def by_seconds(scores: Floats, labels: NDArray[np.bool_], seconds: Floats, cost: Cost) -> list[dict[str, Any]]:
    """EER (%) and minDCF for trials whose shorter side has so much speech."""
    least, rows = seconds.min(1), []
    for low, high in zip((0.0, *BOUNDS), (*BOUNDS, np.inf), strict=True):
        if row := _errors(scores, labels, (least >= low) & (least < high), cost):
            rows.append({"from": low, "to": None if np.isinf(high) else high, **row})
    return rows


def by_group(scores: Floats, labels: NDArray[np.bool_], members: Sequence[str], cost: Cost) -> list[dict[str, Any]]:
    """EER (%) and minDCF of every group (n,), in the order in which they are met; too small ones are left out."""
    names, rows = np.array(members), []
    for name in dict.fromkeys(members):
        if row := _errors(scores, labels, names == name, cost):
            rows.append({"group": name, **row})
    return sorted(rows, key=lambda row: _number(row["group"]))


def _number(group: str) -> float:
    """Where a group of numbers begins; words stay as they are."""
    with contextlib.suppress(ValueError):
        return float(group.partition(" to ")[0])
    return 0.0


def _errors(scores: Floats, labels: NDArray[np.bool_], kept: NDArray[np.bool_], cost: Cost) -> dict[str, Any]:
    if min(labels[kept].sum(), (~labels[kept]).sum()) < FEWEST:
        return {}
    targets, others = split(scores[kept], labels[kept])
    return {"targets": len(targets), "nontargets": len(others), "eer": 100 * eer(targets, others)[0],
            "min_dcf": min_dcf(targets, others, cost)[0]}  # fmt: skip


def as_text(found: dict[str, Any]) -> str:
    """The same for a terminal."""
    error, least = found["eer"], found["min_dcf"]
    lines = [
        f"trials      {found['targets']:,} same speaker, {found['nontargets']:,} different",
        f"EER         {error[0]:.2f} % [{error[1]:.2f}, {error[2]:.2f}]",
        f"minDCF({found['prior']:g}) {least[0]:.3f} [{least[1]:.3f}, {least[2]:.3f}]",
    ]
    if "act_dcf" in found:
        lines.append(f"actDCF({found['prior']:g}) {found['act_dcf']:.3f}")
        best = f", at best {found['min_cllr']:.3f}" if "min_cllr" in found else ""
        lines.append(f"Cllr        {found['cllr']:.3f}{best}")
    for row in found.get("by_seconds", []):
        span = f"{row['from']:g} to {row['to']:g} s" if row["to"] else f"from {row['from']:g} s"
        lines.append(_line(span, row))
    for name, rows in found.get("by", {}).items():
        lines += [f"by {name}", *(_line(row["group"], row) for row in rows)]
    return "\n".join(lines)


def _line(name: str, row: dict[str, Any]) -> str:
    return (
        f"  {name:<11} EER {row['eer']:.2f} %, minDCF {row['min_dcf']:.3f} "
        f"({row['targets']:,} + {row['nontargets']:,} trials)"
    )
