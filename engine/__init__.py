"""What every other package builds on: audio in and out, spectra, checkpoints, and the errors they raise.

``engine`` imports no other package of this repository.
"""

from engine.errors import AudioError, BitstreamError, CheckpointError, ConfigError, SpeechError

__all__ = ["AudioError", "BitstreamError", "CheckpointError", "ConfigError", "SpeechError", "__version__"]

__version__ = "0.1.0"
