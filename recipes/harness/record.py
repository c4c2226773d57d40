"""What a run folder says of its run: recipe.json, run.json, metrics.csv.

recipe.json holds the recipe's fields in force and, under "history", what was changed at which step of a resumed run.
run.json has one entry for each start of the run: command, code, data, libraries, machine. A run that began from a
speaker encoder keeps that too.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import engine
from engine.checkpoint import load_config
from engine.errors import ConfigError
from engine.files import replacing
from recipes.recipe import R, Recipe

BEGINNING = "begun"  # folder of a run: the encoder that it began from

LIBRARIES = ("torch", "lightning", "numpy")


def write_json(path: Path, values: Any) -> None:
    """Replace a file whole, so that a killed run leaves the old one."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Return what a file of the run folder holds; ConfigError if it is damaged."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); is {path.parent} the folder of a run?") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); is it the file that the run wrote?") from error


def load_recipe(out: Path, kind: type[R]) -> R:
    """Read the recipe of a run back.

    A field that recipes have learned since then gets its default, which is to change nothing. ConfigError says what
    else does not fit.
    """
    saved = {name: value for name, value in read_json(out / "recipe.json").items() if name != "history"}
    defaults = dataclasses.asdict(kind(name=""))
    return load_config(kind, {**defaults, **saved})


def save_recipe(out: Path, recipe: Recipe, step: int = 0) -> None:
    """Write recipe.json; what differs from the recipe there joins the history as changed at `step`.

    A field that the recipe there does not know had its default.
    """
    path, history = out / "recipe.json", []
    values = _plain(recipe)
    if path.exists():
        before = read_json(path)
        history = before.pop("history", [])
        before = {**_plain(type(recipe)(name="")), **before}
        changed = {k: [before[k], values[k]] for k in values if before[k] != values[k]}
        history += [{"step": step, "changed": changed}] if changed else []
    write_json(path, {**values, **({"history": history} if history else {})})


def _plain(recipe: Recipe) -> dict[str, Any]:
    """Its fields, as JSON gives them back."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return values


def starts(out: Path) -> list[dict[str, Any]]:
    """Entries of run.json, one for each start, oldest first; none before the first."""
    path = out / "run.json"
    return read_json(path)["starts"] if path.exists() else []


def add_start(out: Path, **facts: Any) -> None:
    """Append what this process knows of itself, and `facts`, to run.json."""
    entry = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        **facts,
        "code": code_state(),
        "versions": versions(),
        "machine": machine(),
    }
    write_json(out / "run.json", {"starts": [*starts(out), entry]})


def code_state() -> dict[str, Any]:
    """Git commit of this code and whether files differ from it; nulls outside of a checkout."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return {"commit": None, "dirty": None}
    try:
        ask = ["git", "-C", str(folder)]
        commit = subprocess.run([*ask, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run([*ask, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # no git here, or a folder that git does not trust
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(status.strip())}


def versions() -> dict[str, str]:
    """Versions of everything that the result depends on."""
    libraries = {name: metadata.version(name) for name in LIBRARIES}
    return {"voxcode": engine.__version__, "python": platform.python_version(), **libraries}


def machine() -> dict[str, Any]:
    """Kind of machine, without its name: processor, cores that this process may use, accelerators."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_allowed": allowed,
        "threads": torch.get_num_threads(),
        "accelerators": accelerators,
    }


def _cpu_model() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv, oldest first; a row that does not fit its header is left out."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if None not in row and None not in row.values()]


def write_metrics(path: Path, step: int, row: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """Drop rows past `step`, put `row` of that step at the end, and return all rows.

    The table is small, so it is written anew: a metric that appears later gets its column, empty in the rows before,
    and a run that goes back to an earlier checkpoint has no step twice.
    """
    rows: list[dict[str, Any]] = [r for r in read_metrics(path) if int(r["step"]) <= step - (row is not None)]
    rows += [dict(row)] if row is not None else []
    if not rows:
        path.unlink(missing_ok=True)
        return rows
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=_columns(rows), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All columns, in the order in which they appeared."""
    return list(dict.fromkeys(name for row in rows for name in row))
