"""Sound files in and out through libsndfile, and the one place where the sample rate changes (soxr).

Waveforms are float32 tensors (C, N): C channels, N samples, full scale +-1.  Long recordings need not fit in memory:
:func:`blocks` reads and :func:`save` writes piece by piece, with the same samples as one :func:`load`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from engine.errors import AudioError
from engine.files import replacing
from engine.sources import Source, named, opened
from engine.wav import WavData, find_data, rewritten

__all__ = [
    "AudioInfo",
    "Resampler",
    "blocks",
    "from_pcm16",
    "load",
    "probe",
    "resample",
    "round_trip",
    "save",
    "to_pcm16",
]

log = logging.getLogger(__name__)

# Suffix -> libsndfile's container and the encoding used unless the caller names another.
FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
# Encodings that know a few rates only (RFC 6716; ISO 11172-3 and 13818-3 with the usual 2.5 extension).
ENCODING_RATES = {
    "OPUS": (8000, 12000, 16000, 24000, 48000),
    "MPEG_LAYER_III": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
}
# The Vorbis encoder stops at 200 kHz and 255 channels; libsndfile 1.2.2 takes more and crashes when the file is closed.
VORBIS_RATE, VORBIS_CHANNELS = 192_000, 255
INTEGER_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
BITS = INTEGER_BITS | {"FLOAT": 32, "DOUBLE": 64}
# A RIFF header counts bytes in 32 bits and would wrap around in silence; some room for the headers.
RIFF_LIMIT = 2**32 - 2**16
# libsndfile's Vorbis encoder takes stack space in proportion to one write, so writes are kept short.
CHUNK = 1 << 16


@dataclass(frozen=True)
class AudioInfo:
    """What a sound file says about itself; ``num_samples`` counts per channel."""

    sample_rate: int
    num_samples: int
    channels: int
    format: str

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.num_samples / self.sample_rate


def load(source: Source, sample_rate: int | None = None, mono: bool = False) -> tuple[Tensor, int]:
    """Read a whole sound file: waveform (C, N) float32, and the file's own sample rate.

    ``source``: a path, ``"-"`` for standard input, or a binary file object.  With ``sample_rate`` the waveform comes
    at that rate, exactly ``ceil(N * sample_rate / native)`` long; with ``mono`` it is the mean of the channels.
    Raises AudioError for what is missing, not audio, damaged, without samples, or holds NaN or infinity.
    """
    with _open(source) as (file, name, data):
        wav = torch.cat(list(_read(file, name, data, sample_rate, mono)), dim=1)
        return wav, file.samplerate


def blocks(
    source: Source, sample_rate: int | None = None, block_seconds: float = 10.0, mono: bool = False
) -> Iterator[Tensor]:
    """Read a sound file piece by piece in constant memory: blocks (C, n) float32 at ``sample_rate`` (None: the file's).

    All blocks have ``round(block_seconds * rate)`` samples but the last, which may have fewer; joined they are exactly
    what :func:`load` returns.  Errors as in :func:`load`; those deep inside the file come when they are reached.
    """
    with _open(source) as (file, name, data):
        rate = file.samplerate if sample_rate is None else sample_rate
        size = round(block_seconds * rate)
        if size < 1 <= rate:  # a rate that is none is refused by the resampler
            raise AudioError(f"a block of {block_seconds} s is shorter than one sample; ask for longer blocks")
        held: list[Tensor] = []
        num_held = 0
        for piece in _read(file, name, data, sample_rate, mono):
            held.append(piece)
            num_held += piece.shape[1]
            if num_held >= size:
                *full, rest = torch.cat(held, dim=1).split(size, dim=1)
                yield from full
                held, num_held = [rest], rest.shape[1]
        if num_held:
            yield torch.cat(held, dim=1)


def probe(source: Source) -> AudioInfo:
    """Read the header only.  Raises AudioError as :func:`load` does for what is missing, not audio or empty."""
    with _open(source) as (file, name, _):
        if file.frames < 1:
            raise AudioError(f"{name} holds no samples")
        return AudioInfo(file.samplerate, file.frames, file.channels, f"{file.format} {file.subtype}")


def save(
    target: str | os.PathLike[str], wav: Tensor | Iterable[Tensor], sample_rate: int, *, subtype: str | None = None
) -> None:
    """Write a waveform (C, N) or (N,), or an iterable of such blocks, to a file; ``"-"`` is wav on standard output.

    The suffix decides: ``.wav`` and ``.flac`` (16 bit unless ``subtype`` is another of libsndfile's names, such as
    ``"PCM_24"`` or ``"FLOAT"``), ``.ogg`` (Vorbis), ``.opus``, ``.mp3``.  wav and flac keep the sample count exactly.
    Opus and MP3 exist at a few rates only: another rate is resampled to the next higher one they know, so such a
    file comes back at that rate; Vorbis above 192 kHz becomes 192 kHz.  Everything but float wav is clipped to full
    scale, with one warning.  The file appears under its name only when it is complete.  Raises AudioError.
    """
    pieces: Iterator[Tensor] = iter([wav] if isinstance(wav, Tensor | np.ndarray) else wav)  # type: ignore[list-item]
    if target == "-":
        buffer = io.BytesIO()
        _write(buffer, "standard output", ".wav", pieces, sample_rate, subtype)
        sys.stdout.buffer.write(buffer.getbuffer())
        sys.stdout.buffer.flush()
        return
    path = _writable(target)
    try:
        # `replacing` creates the file: libsndfile only ever says "System error.", this says which.
        with replacing(path) as partial:
            _write(named(partial), str(target), Path(target).suffix.lower(), pieces, sample_rate, subtype)
    except OSError as error:
        raise AudioError(f"{target} cannot be written: {error.strerror or error}") from error


def round_trip(wav: Tensor, sample_rate: int, suffix: str, compression: float | None = None) -> Tensor:
    """Encode (C, N) or (N,) as a file of `suffix` in memory and decode that: what the format does to the sound.

    Same shape and rate, samples at their place (libsndfile takes the encoders' delay away).  ``compression`` is
    libsndfile's level for .flac, .ogg, .opus and .mp3, 0 best to 1 smallest (the .mp3 encoder knows nothing above
    0.9).  Raises AudioError.
    """
    if suffix not in FORMATS:
        raise AudioError(f"no format {suffix!r}; there are {', '.join(FORMATS)}")
    buffer = io.BytesIO()
    _write(buffer, suffix, suffix, iter([wav]), sample_rate, None, compression)
    buffer.seek(0)
    out = load(buffer, sample_rate)[0][:, : wav.shape[-1]]
    return torch.nn.functional.pad(out, (0, wav.shape[-1] - out.shape[1])).reshape(wav.shape)


def resample(wav: Tensor, from_rate: int, to_rate: int, num_samples: int | None = None) -> Tensor:
    """Change the rate of (..., N) to (..., ceil(N * to_rate / from_rate)) in float32, without gradient.

    ``num_samples`` trims or pads with zeros to that length instead: going to another rate and back never comes back
    shorter, so giving the original N restores the count exactly.
    """
    if not wav.is_floating_point():
        raise AudioError(f"resample needs floating point samples, not {wav.dtype}; use from_pcm16 first")
    flat = wav.reshape(math.prod(wav.shape[:-1]), wav.shape[-1])
    resampler = Resampler(from_rate, to_rate, len(flat))
    out = torch.cat([resampler.push(flat), resampler.flush()], dim=1).to(wav)
    if num_samples is not None:
        out = torch.nn.functional.pad(out[:, :num_samples], (0, max(0, num_samples - out.shape[1])))
    return out.reshape(*wav.shape[:-1], out.shape[1])


class Resampler:
    """The rate change of a signal that comes in pieces: the results joined equal those of the pieces joined."""

    def __init__(self, from_rate: int, to_rate: int, num_channels: int):
        for rate in (from_rate, to_rate):
            if rate < 1:
                raise AudioError(f"a sample rate of {rate} Hz is impossible; give a positive number such as 16000")
        self.from_rate, self.to_rate, self.num_channels = from_rate, to_rate, num_channels
        self._num_in = self._num_out = 0
        self._stream = None
        if from_rate != to_rate:
            self._stream = soxr.ResampleStream(from_rate, to_rate, num_channels, dtype="float32")

    def push(self, wav: Tensor) -> Tensor:
        """Take (C, n), give the samples that are final by now (C, m), m may be 0."""
        self._num_in += wav.shape[1]
        return self._resample(wav.detach().to("cpu", torch.float32), last=False)

    def flush(self) -> Tensor:
        """End the signal: give the remaining samples (C, m), so that all are ceil(N * to_rate / from_rate)."""
        # soxr rounds the length to the nearest; a little silence after the end makes it long enough for the ceiling.
        target = -(-self._num_in * self.to_rate // self.from_rate)
        num_silent = -(-target * self.from_rate // self.to_rate) - self._num_in + self.from_rate // self.to_rate + 2
        wanted = target - self._num_out
        if self._stream is None:
            return torch.zeros(self.num_channels, wanted)
        return self._resample(torch.zeros(self.num_channels, num_silent), last=True)[:, :wanted]

    def _resample(self, wav: Tensor, last: bool) -> Tensor:
        if self._stream is not None:
            out = self._stream.resample_chunk(wav.T.contiguous().numpy(), last=last)
            wav = torch.from_numpy(out.reshape(-1, self.num_channels)).T
        self._num_out += wav.shape[1]
        return wav


def to_pcm16(wav: Tensor) -> Tensor:
    """Float samples at full scale +-1 to int16, rounded and clipped; the inverse of :func:`from_pcm16`."""
    return (wav * 32768).round().clamp(-32768, 32767).to(torch.int16)


def from_pcm16(pcm: Tensor) -> Tensor:
    """int16 samples to float32 at full scale +-1, exactly."""
    return pcm.to(torch.float32) / 32768


@contextlib.contextmanager
def _open(source: Source) -> Iterator[tuple[soundfile.SoundFile, str, WavData | None]]:
    """Open for reading, with a name for messages and what a wav header says; every failure an AudioError that says
    what to do."""
    with opened(source) as found:
        if found.name.lower().endswith(".raw"):
            raise AudioError(f"{found.name}: raw samples come without their rate and format; convert to wav first")
        data = find_data(found.file)
        # A file with a name libsndfile opens itself: Ctrl-C during a read that Python does for it would be lost.
        readable = (data and rewritten(found.file, data)) or found.path or found.file
        try:
            file = soundfile.SoundFile(readable)
        except soundfile.SoundFileError as error:
            reason = getattr(error, "error_string", str(error))
            raise AudioError(
                f"{found.name} is not audio that can be read ({reason.rstrip('.')}); wav, flac, ogg, opus and mp3 can, "
                "others after `ffmpeg -i INPUT OUTPUT.wav`"
            ) from error
        with file:
            yield file, found.name, data


def _read(
    file: soundfile.SoundFile, name: str, data: WavData | None, sample_rate: int | None, mono: bool
) -> Iterator[Tensor]:
    """Yield (C, n) at ``sample_rate`` until the file ends, whatever length its header promises."""
    native = file.samplerate
    resampler = Resampler(native, native if sample_rate is None else sample_rate, 1 if mono else file.channels)
    position = 0
    while True:
        try:
            block = file.read(CHUNK, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise AudioError(f"{name} is damaged after {position / native:.3f} s: {error}") from error
        if not len(block):
            break
        bad = ~np.isfinite(block).all(axis=1)
        if bad.any():
            at = position + int(bad.argmax())
            raise AudioError(f"{name} holds NaN or infinity at sample {at} ({at / native:.3f} s); repair it first")
        position += len(block)
        wav = torch.from_numpy(block).T
        yield resampler.push(wav.mean(dim=0, keepdim=True) if mono else wav)
    if not position:
        raise AudioError(f"{name} holds no samples")
    if position < file.frames:
        log.warning("%s ends after %d of the %d samples that it announces", name, position, file.frames)
    elif data and data.is_cut_short:
        log.warning(
            "%s is cut short: it announces %d bytes of samples, %d are there", name, data.announced, data.present
        )
    yield resampler.flush()


def _writable(target: str | os.PathLike[str]) -> Path:
    """Follow links and refuse what must not be replaced by a new file (a directory, a device)."""
    path = Path(os.path.realpath(target))
    if Path(target).suffix.lower() not in FORMATS:
        raise AudioError(f"{target}: the name must end in one of {', '.join(FORMATS)}, which says the format to write")
    if path.is_dir():
        raise AudioError(f"{target} is a directory; give the name of a file")
    if path.exists() and not path.is_file():
        raise AudioError(f"{target} is not a regular file; write to - for a pipe")
    if not path.parent.is_dir():
        raise AudioError(f"{target}: there is no directory {path.parent}; create it first")
    return path


def _write(
    file: str | bytes | io.BytesIO,
    name: str,
    suffix: str,
    pieces: Iterator[Tensor],
    sample_rate: int,
    subtype: str | None,
    compression: float | None = None,
) -> None:
    """Encode the pieces at a rate that the encoding knows."""
    container, default = FORMATS[suffix]
    encoding = (subtype or default).upper()
    highest = VORBIS_RATE if encoding == "VORBIS" else sample_rate
    rates = ENCODING_RATES.get(encoding, (min(sample_rate, highest),))
    rate = min((r for r in rates if r >= sample_rate), default=rates[-1])
    first = _with_channels(next(pieces, torch.zeros(1, 0)), name)
    if encoding == "VORBIS" and len(first) > VORBIS_CHANNELS:
        raise AudioError(f"{name}: Vorbis has at most {VORBIS_CHANNELS} channels, not {len(first)}; write .wav instead")
    resampler = Resampler(sample_rate, rate, len(first))
    num_samples = num_clipped = 0
    try:
        with soundfile.SoundFile(
            file, "w", rate, len(first), encoding, None, container, compression_level=compression
        ) as out:
            for wav in itertools.chain([first], pieces, [None]):
                at_rate = resampler.flush() if wav is None else resampler.push(_checked(wav, len(first), name))
                for chunk in at_rate.split(CHUNK, dim=1):
                    samples, clipped = _encodable(chunk, encoding)
                    num_samples, num_clipped = num_samples + len(samples), num_clipped + clipped
                    if container == "WAV" and num_samples * len(first) * BITS.get(encoding, 64) // 8 > RIFF_LIMIT:
                        raise AudioError(f"{name}: a wav file ends at 4 GiB; write .flac instead")
                    out.write(samples)
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", str(error))
        raise AudioError(
            f"{name} cannot be written as {container} {encoding} with {len(first)} channel(s) at {rate} Hz ({reason})"
        ) from error
    except ValueError as error:  # soundfile's own check of the names
        raise AudioError(f"{name} cannot be written: {error}") from error
    if not num_samples:
        raise AudioError(f"{name}: there are no samples to write")
    if num_clipped:
        log.warning("%s: %d samples beyond full scale were clipped; scale the signal down", name, num_clipped)


def _with_channels(wav: Tensor, name: str) -> Tensor:
    if not isinstance(wav, Tensor):
        raise AudioError(f"{name}: expected a tensor, got {type(wav).__name__}; torch.from_numpy makes one of an array")
    return torch.atleast_2d(wav)


def _checked(wav: Tensor, num_channels: int, name: str) -> Tensor:
    """A block (C, n) or (n,) as (C, n); refuse what no file can hold."""
    wav = _with_channels(wav, name)
    if wav.ndim != 2 or len(wav) != num_channels or not wav.is_floating_point():
        raise AudioError(
            f"{name}: expected floating point samples ({num_channels} channels, N), got {wav.dtype} {tuple(wav.shape)}"
        )
    if not wav.isfinite().all():
        raise AudioError(f"{name}: the signal to write holds NaN or infinity")
    return wav


def _encodable(wav: Tensor, encoding: str) -> tuple[np.ndarray, int]:
    """(C, n) float32 to (n, C) as libsndfile takes it without rescaling, and how many samples had to be clipped.

    libsndfile scales floats by 32767 on writing but by 1/32768 on reading, so a float that was read would not come
    back as the same integer.  Integers pass unchanged, left-justified in 32 bits.
    """
    samples = wav.T.numpy()
    if encoding in ("FLOAT", "DOUBLE"):
        return samples, 0
    num_clipped = int((np.abs(samples) > 1).sum())
    if encoding not in INTEGER_BITS:
        return np.clip(samples, -1, 1), num_clipped
    scale = 2 ** (INTEGER_BITS[encoding] - 1)
    integers = np.clip(np.rint(samples.astype(np.float64) * scale), -scale, scale - 1).astype(np.int32)
    return integers << (32 - INTEGER_BITS[encoding]), num_clipped
