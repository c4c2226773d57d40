"""Where the audio of a recording lies, and how it is read from there: a file, a part of one, a member of a tar file."""

from __future__ import annotations

import functools
import io
import math
from dataclasses import dataclass

from torch import Tensor

from engine import audio
from engine.errors import AudioError

UNLABELLED = "/unlabelled"  # a "speaker" whose name ends so is anybody: each of the recordings may be somebody else
OVERSHOOT = 0.5  # seconds that a segment may end after its file, as in Kaldi's extract-segments


def corpus_of(speaker: str) -> str:
    """The corpus of a speaker, who is called corpus/speaker."""
    return speaker.split("/")[0]


@dataclass(frozen=True)
class Part:
    """A sound file, or the seconds from `start` to `end` of it; of one channel, or the mean of all."""

    file: str
    start: float = 0.0
    end: float = math.inf
    channel: int | None = None

    def load(self, sample_rate: int) -> Tensor:
        """(N,) at `sample_rate`; AudioError if unreadable or if the file has no such part."""
        if (self.start, self.end, self.channel) == (0.0, math.inf, None):
            return audio.load(self.file, sample_rate=sample_rate, mono=True)[0][0]
        wav = whole_file(self.file, sample_rate)
        if self.channel is not None and self.channel >= len(wav):
            raise AudioError(f"{self.file} has {len(wav)} channel(s), no channel {self.channel} counted from 0")
        num_samples = wav.shape[1]
        begin = round(self.start * sample_rate)
        end = num_samples if math.isinf(self.end) else round(self.end * sample_rate)
        if not 0 <= begin < min(end, num_samples) or end > num_samples + OVERSHOOT * sample_rate:
            raise AudioError(
                f"{self.file}: no {self.start:.2f} to {self.end:.2f} s in {num_samples / sample_rate:.2f} s of sound"
            )
        piece = wav[:, begin:end]
        return piece.mean(dim=0) if self.channel is None else piece[self.channel].clone()


@functools.lru_cache(maxsize=1)
def whole_file(file: str, sample_rate: int) -> Tensor:
    """(C, N); the last file is kept, since segments of one long recording mostly follow each other."""
    return audio.load(file, sample_rate=sample_rate)[0]


@dataclass(frozen=True)
class Member:
    """A sound file inside a tar file: `size` bytes from `offset` on."""

    file: str
    name: str
    offset: int
    size: int

    def load(self, sample_rate: int) -> Tensor:
        """(N,) at `sample_rate`; AudioError if unreadable."""
        try:
            with open(self.file, "rb") as shard:
                shard.seek(self.offset)
                data = io.BytesIO(shard.read(self.size))
        except OSError as error:
            raise AudioError(f"{self.file} cannot be read: {error.strerror}") from error
        data.name = f"{self.file}#{self.name}"  # for messages
        return audio.load(data, sample_rate=sample_rate, mono=True)[0][0]


@dataclass(frozen=True)
class Recording:
    """One recording of a manifest. `path` names it (the file, or file#part), `source` is where its audio lies.

    `speaker` is unique over corpora (corpus/speaker). `seconds` is what the manifest declares, None where it does not;
    `language` and `licence` are empty where it does not say.
    """

    path: str
    speaker: str
    corpus: str
    source: Part | Member
    seconds: float | None = None
    language: str = ""
    licence: str = ""

    def load(self, sample_rate: int) -> Tensor:
        """(N,) float32, the mean of the channels, at `sample_rate`; AudioError if it cannot be read."""
        return self.source.load(sample_rate)
