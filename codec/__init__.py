"""Speech codec: waveform -> codes -> bytes, and back.

    import codec

    model = codec.load("esc_live")
    codes = model.encode(wav)                     # (B, N) float at 16 kHz -> (B, levels, groups, T)
    wav = model.decode(codes, num_samples=N)
    file = codec.read("speech.esc")               # file.header, file.codes (channels, levels, groups, T)
    codec.write("copy.esc", file.header, file.codes)

Names are resolved when they are first used: `codec --help` must not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codec.bitstream import Header as Header
    from codec.config import CodecConfig as CodecConfig
    from codec.config import EscLiveConfig as EscLiveConfig
    from codec.esc_config import EscConfig as EscConfig
    from codec.io import MODELS as MODELS
    from codec.io import EscFile as EscFile
    from codec.io import load as load
    from codec.io import read as read
    from codec.io import write as write
    from codec.model import Codec as Codec

_HOME = {
    "Codec": "codec.model",
    "CodecConfig": "codec.config",
    "EscConfig": "codec.esc_config",
    "EscFile": "codec.io",
    "EscLiveConfig": "codec.config",
    "Header": "codec.bitstream",
    "MODELS": "codec.io",
    "load": "codec.io",
    "read": "codec.io",
    "write": "codec.io",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'codec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
