"""The exceptions every package here raises for problems a user can act on.

Commands catch :class:`SpeechError` alone, print its message as one line and leave with status 2; anything else is a
defect and keeps its traceback.  A message therefore says what is wrong *and* what to do about it.
"""


class SpeechError(Exception):
    """Base of all errors that a user, not a developer, can resolve."""


class AudioError(SpeechError):
    """A sound could not be read, written or used: missing file, not audio, no samples, NaN or infinity."""


class BitstreamError(SpeechError):
    """A coded file is damaged, cut short, from a newer version, or made by another model."""


class CheckpointError(SpeechError):
    """A model folder is missing, incomplete, altered, or in a format that is not read here."""


class ConfigError(SpeechError, ValueError):
    """A configuration value is unknown, missing, or out of range."""


class ScoreError(SpeechError):
    """Trials, scores or back ends do not fit each other, or give no figure."""


class StoreError(SpeechError):
    """A store of voiceprints is missing, damaged, full, in use, of another model, or lacks what was asked of it."""
