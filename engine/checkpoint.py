"""A trained model as a folder: ``config.json`` + ``model.safetensors`` + ``README.md`` (the card).

``config.json`` holds the kind of model, the version of this layout, the sha256 of the weights, and the complete
configuration::

    {"kind": "esc_live", "version": 1, "sha256": "<64 hex digits>", "config": {"sample_rate": 16000, ...}}

Nothing here unpickles: a pickle runs whatever code its author put into it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from engine.errors import CheckpointError, ConfigError
from engine.files import replacing

__all__ = ["drop_extras", "find", "load_config", "read", "save", "shipped"]

VERSION = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
EXTRAS = ("calibration.json", "verification.json", "cohort.npz", "diarization.npz")  # of some speaker encoders
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
HUB = "hf://"

ConfigType = TypeVar("ConfigType")


def save(folder: str | os.PathLike[str], model: nn.Module, *, kind: str, config: Any, card: str) -> str:
    """Write the model's weights, its dataclass ``config`` and its card (Markdown); return the weights' sha256 (hex).

    Each file is replaced in one step, ``config.json`` last, so that a crash leaves either a readable folder or one
    that the checksum refuses.
    """
    folder = Path(folder)
    # Cloned, since safetensors refuses tensors that share memory; equal weights give equal bytes.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    weights = safetensors.torch.save(state)
    sha256 = hashlib.sha256(weights).hexdigest()
    values = {"kind": kind, "version": VERSION, "sha256": sha256, "config": dataclasses.asdict(config)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / CARD, card.rstrip("\n").encode() + b"\n")
        _replace(folder / WEIGHTS, weights)
        _replace(folder / CONFIG, json.dumps(values, indent=2).encode() + b"\n")
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}") from error
    return sha256


def read(folder: str | os.PathLike[str]) -> tuple[str, dict[str, Any], dict[str, Tensor], str]:
    """Read a folder: kind, configuration (for :func:`load_config`), state dict on the CPU, sha256 of the weights (hex).

    Raises CheckpointError where a file is missing or malformed, or the weights are not those of ``config.json``.
    """
    folder = _folder(Path(folder))
    values = _config_values(folder / CONFIG)
    weights = _bytes(folder / WEIGHTS)
    sha256 = hashlib.sha256(weights).hexdigest()
    if sha256 != values["sha256"]:
        raise CheckpointError(
            f"{folder / WEIGHTS} is not the file that {CONFIG} describes: its sha256 is {sha256}, expected "
            f"{values['sha256']}; it was altered or only half copied, so fetch the folder again"
        )
    try:
        state = safetensors.torch.load(weights)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} is not a safetensors file: {error}") from error
    return values["kind"], values["config"], state, sha256


def load_config(cls: type[ConfigType], values: dict[str, Any]) -> ConfigType:
    """Build the dataclass ``cls`` from the ``config`` part of ``config.json``.

    Strict both ways: an unknown or missing field is a ConfigError, also where the field has a default, so that a
    default changed later never changes an old model; and so is a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    if not isinstance(values, dict):
        raise ConfigError(f"{cls.__name__}: expected its fields as an object, got {type(values).__name__}")
    unknown, missing = sorted(values.keys() - fields.keys()), sorted(fields.keys() - values.keys())
    problems = []
    if unknown:
        problems.append(f"unknown field(s) {', '.join(unknown)}")
    if missing:
        problems.append(f"missing field(s) {', '.join(missing)}")
    if problems:
        raise ConfigError(f"{cls.__name__}: {'; '.join(problems)}; it has exactly: {', '.join(fields)}")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _converted(hints[name], value, f"{cls.__name__}.{name}") for name, value in values.items()})


def drop_extras(folder: Path) -> None:
    """Remove what was made for the weights that were in a folder, before others are saved there."""
    for name in EXTRAS:
        (folder / name).unlink(missing_ok=True)


def shipped() -> list[str]:
    """The names of the models that come with this distribution."""
    return sorted({path.parent.name for root in _roots() for path in root.glob(f"*/{CONFIG}")})


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a model, given a shipped name, a path, or ``hf://owner/name[@revision]`` (downloaded and cached).

    A name that is shipped wins over a folder of that name; write ``./name`` for the folder.
    """
    text = os.fspath(name_or_path)
    if text.startswith(HUB):
        return _download(text)
    if isinstance(name_or_path, str) and re.fullmatch(r"\w[\w.-]*", text):
        for root in _roots():
            if (root / text / CONFIG).is_file():
                return root / text
    path = Path(text)
    if path.exists():
        return _folder(path)
    _refuse_pickle(path)
    raise CheckpointError(
        f"there is no model {text!r}: neither a folder nor one of the shipped names "
        f"({', '.join(shipped()) or 'none in this installation'}); {HUB}owner/name downloads one"
    )


def _roots() -> list[Path]:
    """Where shipped models are: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).parent
    checkout = package.parent
    roots = [package / "_checkpoints"]
    if (checkout / "pyproject.toml").is_file():
        roots.append(checkout / "checkpoints")
    return roots


def _folder(path: Path) -> Path:
    _refuse_pickle(path)
    if path.is_file():
        raise CheckpointError(f"{path} is a file; give the folder that holds {CONFIG} and {WEIGHTS}")
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder")
    absent = [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]
    if absent:
        raise CheckpointError(f"{path} is not a model folder: it has no {' and no '.join(absent)}")
    return path


def _refuse_pickle(path: Path) -> None:
    if path.suffix.lower() in PICKLES and not path.is_dir():
        raise CheckpointError(
            f"{path}: {path.suffix} files are pickles, which can run any code when they are read; models are read "
            f"from folders with {CONFIG} and {WEIGHTS}. Import another project's weights with the import command"
        )


def _config_values(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_bytes(path))
    except ValueError as error:  # JSONDecodeError or UnicodeDecodeError
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    expected: dict[str, type] = {"kind": str, "version": int, "sha256": str, "config": dict}
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected an object with {', '.join(expected)}")
    version = values.get("version")
    if isinstance(version, int) and version > VERSION:
        raise CheckpointError(f"{path} has version {version}, this program reads {VERSION}; update voxcode")
    if values.keys() != expected.keys():
        raise CheckpointError(f"{path}: expected exactly {', '.join(expected)}; got {', '.join(values) or 'nothing'}")
    for name, kind in expected.items():
        if not isinstance(values[name], kind):
            raise CheckpointError(f"{path}: {name} must be {kind.__name__}, got {values[name]!r}")
    if version != VERSION:
        raise CheckpointError(f"{path}: there is no version {version}; this program reads {VERSION}")
    return values


def _converted(hint: Any, value: Any, where: str) -> Any:
    """Check a JSON value against a field's annotation; lists become tuples, objects nested configurations."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (typing.Union, types.UnionType):
        for argument in arguments:
            try:
                return _converted(argument, value, where)
            except ConfigError:
                continue
        raise ConfigError(f"{where}: {value!r} is not {hint}")
    if origin is tuple and isinstance(value, list | tuple):
        repeated = arguments[-1] is Ellipsis
        if not repeated and len(arguments) != len(value):
            raise ConfigError(f"{where}: expected {len(arguments)} values, got {len(value)}")
        kinds = (arguments[0],) * len(value) if repeated else arguments
        return tuple(
            _converted(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return load_config(hint, value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not (origin or hint):  # exact, since a bool is an int to isinstance
        raise ConfigError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r}")
    return value


def _download(address: str) -> Path:
    match = re.fullmatch(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", address)
    if not match:
        raise CheckpointError(f"{address}: expected hf://owner/name or hf://owner/name@revision")
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise CheckpointError(f"{address} needs huggingface_hub: pip install 'voxcode[hub]'") from error
    try:
        folder = huggingface_hub.snapshot_download(
            match["repo"], revision=match["revision"], allow_patterns=[CONFIG, WEIGHTS, CARD, *EXTRAS]
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(f"{address} cannot be downloaded: {error}") from error
    return _folder(Path(folder))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _replace(path: Path, data: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(data)
