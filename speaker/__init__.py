"""Speaker encoders: waveform -> embedding.

    import speaker

    encoder = speaker.load(FOLDER)
    embeddings = encoder(wav)      # (B, N) float at 16 kHz -> (B, D)

Names are resolved when they are first used: `speaker --help` must not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speaker.model import SpeakerConfig as SpeakerConfig
    from speaker.model import SpeakerEncoder as SpeakerEncoder
    from speaker.model import load as load
    from speaker.model import save as save

__all__ = ["SpeakerConfig", "SpeakerEncoder", "load", "save"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("speaker.model"), name)
    raise AttributeError(f"module 'speaker' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
