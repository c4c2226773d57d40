"""Models from checkpoints, codes from and to .esc files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from codec import bitstream
from codec.bitstream import Header
from codec.config import CodecConfig, EscLiveConfig
from codec.esc import Esc
from codec.esc_config import EscConfig
from codec.live import EscLive
from codec.model import Codec
from codec.paths import read_bytes, write_bytes
from engine import checkpoint
from engine.devices import placed
from engine.errors import CheckpointError, ConfigError

MODELS: dict[str, tuple[type[Codec], type[CodecConfig]]] = {
    "esc": (Esc, EscConfig),
    "esc_live": (EscLive, EscLiveConfig),
}


def make(config: CodecConfig) -> Codec:
    """Return the model of a configuration, with random weights."""
    for model_class, config_class in MODELS.values():
        if type(config) is config_class:
            return model_class(config)
    raise ConfigError(f"no codec has a {type(config).__name__}")


@dataclass(frozen=True)
class EscFile:
    """What an .esc file holds: its header, and codes (channels, levels, groups, T)."""

    header: Header
    codes: NDArray[np.int64]


def load(name_or_path: str | Path = "esc_live", device: str | torch.device = "cpu") -> Codec:
    """Load a codec in evaluation mode by shipped name, folder, or `hf://owner/name`.

    Raises CheckpointError if there is none, if it was altered, or if its weights do not fit its configuration, and
    ConfigError for a device that does not compute here.
    """
    folder = checkpoint.find(name_or_path)
    kind, values, state, sha256 = checkpoint.read(folder)
    if kind not in MODELS:
        raise CheckpointError(f"{folder}: a model of kind {kind!r} is no codec; there are {', '.join(MODELS)}")
    model_class, config_class = MODELS[kind]
    model = model_class(checkpoint.load_config(config_class, values))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: the weights do not fit config.json: {error}") from error
    model.name = Path(folder).resolve().name
    model.model_id = bytes.fromhex(sha256)[:6]
    return placed(model.eval().requires_grad_(False), device)


def read(path: str | Path) -> EscFile:
    """Read an .esc file; BitstreamError says what is wrong with a bad one."""
    header, codes, _ = bitstream.unpack(read_bytes(str(path)))
    return EscFile(header, codes)


def write(path: str | Path, header: Header, codes: ArrayLike) -> None:
    """Write codes (channels, levels, groups, T) as an .esc file, whole or not at all."""
    write_bytes(str(path), bitstream.pack(header, codes))
