"""Where models compute."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from engine.errors import ConfigError

Module = TypeVar("Module", bound=nn.Module)


def placed(model: Module, device: str | torch.device) -> Module:
    """The model on the device; ConfigError for one that does not compute here."""
    try:
        torch.zeros(1, device=device).item()  # the device "meta" takes every model and computes nothing
        return model.to(device)
    except (RuntimeError, AssertionError, ImportError) as error:  # torch's words for a device that is not there
        reason = str(error).partition("\n")[0].partition(". ")[0]  # some go on to list every backend
        raise ConfigError(f"no computing on {str(device)!r} here: {reason}; use cpu, cuda or cuda:N") from error
