"""Weights of other projects, read as data: tensors and plain values, never code."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from engine.errors import CheckpointError

__all__ = ["load_pickle", "state_dict"]

# Where projects put the state dict inside of what they save.
PARTS = ("state_dict", "model_state_dict", "model", "network")


def load_pickle(source: Path | IO[bytes], name: str) -> Any:
    """What torch.save wrote, with torch's loader for weights alone; CheckpointError if it cannot be read as such."""
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read as weights: {error.strerror or error}") from error
    # A damaged pickle can fail in any way; whatever it is, the file cannot be read. Torch would advise to run its code.
    except Exception as error:
        raise CheckpointError(
            f"{name} cannot be read as weights: it is damaged, or holds more than tensors and plain values, which "
            "could run code and is never loaded here; ask for the state dict alone, best as .safetensors"
        ) from error


def state_dict(content: Any, name: str) -> dict[str, Tensor]:
    """The tensors by name, bare or one level down; without the prefix of models wrapped for several GPUs."""
    if isinstance(content, dict):
        for part in PARTS:
            if isinstance(content.get(part), dict):
                content = content[part]
                break
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{name} holds no state dict: expected tensors by name, bare or under one of {', '.join(PARTS)}, "
            f"got {found}"[:400]
        )
    return {str(key).removeprefix("module."): tensor for key, tensor in content.items()}
