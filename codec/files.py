"""Whole files: audio -> .esc and .esc -> audio, any sample rate and channel count, every sample accounted for.

Files are read and written in blocks, channels are coded one after the other, and models work through long signals in
pieces: memory grows only by the signal at the rate of the model (twice 230 MB per hour and channel at 16 kHz).
"""

import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import codec
from codec import bitstream
from codec.model import Codec
from codec.paths import STDIO, check_target, read_bytes, write_bytes
from engine import audio, checkpoint
from engine.errors import BitstreamError, CheckpointError

Codes = NDArray[np.integer]
FADE_SECONDS = 0.005  # at the borders of concealed parts, so that they don't click


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was done with one file. `bytes` is the size of the .esc side, `elapsed` does not count loading the model."""

    source: str
    target: str
    model: str
    seconds: float
    sample_rate: int
    num_samples: int
    channels: int
    bitrate: float  # bit/s of the codes of all channels
    bytes: int
    elapsed: float
    lost: list[tuple[float, float]] = field(default_factory=list)  # start and end in seconds

    def line(self) -> str:
        """One line for people."""
        rate = 8e-3 * self.bytes / self.seconds
        speed = self.seconds / max(self.elapsed, 1e-9)
        channels = "mono" if self.channels == 1 else f"{self.channels} channels"
        return (
            f"{self.source} -> {self.target}: {self.seconds:.2f} s {channels} at {self.sample_rate} Hz, "
            f"{self.bytes} bytes, {rate:.2f} kbit/s, {speed:.1f} times real time"
        )

    def losses(self) -> list[str]:
        """One line for each concealed part."""
        return [f"lost {start:.2f} to {end:.2f} s, replaced by silence" for start, end in self.lost]


@lru_cache(maxsize=4)
def load_model(name: str, device: str = "cpu") -> Codec:
    """Load a model once per process."""
    return codec.load(name, device=device)


def encode_file(
    model: Codec, source: str, target: str, *, levels: int | None = None, mono: bool = False, force: bool = False
) -> Report:
    """Encode an audio file (or `-`) to an .esc file (or `-`)."""
    check_target(target, force)
    start = time.perf_counter()
    wav, sample_rate, num_samples = _load(source, model.config.sample_rate, mono)
    codes = encode_channels(model, wav, levels)
    header = make_header(model, sample_rate, num_samples, codes)
    data = bitstream.pack(header, codes)
    write_bytes(target, data)
    return _report(source, target, header, model, len(data), start)


def decode_file(
    source: str,
    target: str,
    *,
    model: str | None = None,
    device: str = "cpu",
    recover: bool = False,
    force: bool = False,
) -> Report:
    """Decode an .esc file (or `-`) to an audio file (or `-`, as wav); `model` None takes the one the file names.

    With `recover`, damaged parts become silence and are listed in the report instead of raising BitstreamError.
    """
    check_target(target, force)
    data = read_bytes(source)
    header, codes, lost = bitstream.unpack(data, recover=recover)
    loaded = load_for(header, model, device)
    start = time.perf_counter()
    wav = decode_channels(loaded, header, codes, lost)
    audio.save(target, _at_rate(wav, loaded.config.sample_rate, header), header.sample_rate)
    return _report(source, target, header, loaded, len(data), start, lost)


@torch.no_grad()
def encode_channels(model: Codec, wav: Tensor, levels: int | None = None) -> Codes:
    """Encode (C, N) samples at the rate of the model to codes (C, L, G, T)."""
    device = next(model.parameters()).device
    # One by one, not as a batch: a file's codes must not depend on how many channels it has.
    codes = [model.encode(channel[None].to(device), levels=levels)[0] for channel in wav]
    return torch.stack(codes).cpu().numpy()


@torch.no_grad()
def decode_channels(
    model: Codec, header: bitstream.Header, codes: Codes, lost: list[tuple[int, int]] | None = None
) -> Tensor:
    """Decode codes (C, L, G, T) to (C, N) at the rate of the model, with silence for the `lost` frames."""
    num_samples = model_samples(header, model.config.sample_rate)
    if codes.shape[-1] != model.num_frames(num_samples):
        raise BitstreamError(
            f"{header.num_samples} samples are {model.num_frames(num_samples)} frames of {model.name}, "
            f"but the file has {codes.shape[-1]}; it was not written with this model"
        )
    device = next(model.parameters()).device
    wav = torch.zeros(len(codes), num_samples)
    for channel, channel_codes in enumerate(codes):
        tensor = torch.from_numpy(channel_codes.astype(np.int64))[None].to(device)
        if lost:
            _decode_around(model, tensor, lost, wav[channel])
        else:
            wav[channel] = model.decode(tensor, num_samples=num_samples)[0].cpu()
    return wav


def make_header(model: Codec, sample_rate: int, num_samples: int, codes: Codes) -> bitstream.Header:
    """Describe codes (C, L, G, T) of a sound that had `num_samples` samples per channel at `sample_rate`."""
    channels, levels, groups, frames = codes.shape
    return bitstream.Header(
        sample_rate=sample_rate,
        num_samples=num_samples,
        num_frames=frames,
        channels=channels,
        levels=levels,
        num_groups=groups,
        bits_per_code=model.config.code_bits,
        frame_rate=model.config.frame_rate,
        model_id=model.model_id,
        model_name=bitstream.fit_name(model.name),
    )


def model_samples(header: bitstream.Header, model_rate: int) -> int:
    """Samples of one channel at the rate of the model."""
    return math.ceil(header.num_samples * model_rate / header.sample_rate)


def load_for(header: bitstream.Header, choice: str | None = None, device: str = "cpu") -> Codec:
    """Load the model a file was coded with; another one is an error that names both, never noise.

    Without a `choice` only shipped models are considered: a file must not decide which folder is opened or what is
    downloaded.
    """
    wanted = f"{header.model_name!r} (id {header.model_id.hex()})"
    shipped = {bitstream.fit_name(name): name for name in checkpoint.shipped()}
    if choice is None and header.model_name not in shipped:
        raise CheckpointError(
            f"the file was coded with the model {wanted}, which is not shipped; --model gives its folder"
        )
    model = load_model(choice or shipped[header.model_name], device)
    if model.model_id != header.model_id:
        raise CheckpointError(
            f"the file was coded with the model {wanted}, not with {model.name!r} (id {model.model_id.hex()}); "
            "--model gives the folder of the right one"
        )
    return model


def _load(source: str, sample_rate: int, mono: bool) -> tuple[Tensor, int, int]:
    """Read (C, N) at `sample_rate`, the file's own rate and its own number of samples.

    Only the resampled signal is kept: an hour in stereo at 44.1 kHz would be 1.3 GB.
    """
    readable: str | io.BytesIO = source
    if source == STDIO:
        readable = io.BytesIO(read_bytes(source))
        readable.name = "standard input"
    native = audio.probe(readable)
    if isinstance(readable, io.BytesIO):
        readable.seek(0)
    resampler = audio.Resampler(native.sample_rate, sample_rate, 1 if mono else native.channels)
    num_samples, pieces = 0, []
    for block in audio.blocks(readable, mono=mono):
        num_samples += block.shape[1]
        pieces.append(resampler.push(block))
    pieces.append(resampler.flush())
    return torch.cat(pieces, dim=1), native.sample_rate, num_samples


def _at_rate(wav: Tensor, sample_rate: int, header: bitstream.Header) -> Iterator[Tensor]:
    """Yield (C, n) pieces at the file's rate, its exact number of samples in all."""
    resampler = audio.Resampler(sample_rate, header.sample_rate, len(wav))
    remaining = header.num_samples
    for piece in (*wav.split(10 * sample_rate, dim=1), None):
        out = resampler.flush() if piece is None else resampler.push(piece)
        yield out[:, :remaining]
        remaining -= min(remaining, out.shape[1])
    assert remaining == 0, "going to the rate of the model and back never loses samples"


def _decode_around(model: Codec, codes: Tensor, lost: list[tuple[int, int]], wav: Tensor) -> None:
    """Decode codes (1, L, G, T) into `wav` (N,), each intact run of frames on its own.

    What stands in for lost codes would otherwise leak into what follows.
    """
    size = model.config.samples_per_frame
    start = 0
    for first, count in [*sorted(lost), (codes.shape[-1], 0)]:
        if first > start:
            begin, end = min(start * size, len(wav)), min(first * size, len(wav))
            part = model.decode(codes[..., start:first])[0, : end - begin].cpu()
            _fade(part, int(FADE_SECONDS * model.config.sample_rate), at_start=start > 0, at_end=count > 0)
            wav[begin : begin + len(part)] = part
        start = max(start, first + count)


def _report(
    source: str,
    target: str,
    header: bitstream.Header,
    model: Codec,
    size: int,
    start: float,
    lost: list[tuple[int, int]] | None = None,
) -> Report:
    return Report(
        source=source,
        target=target,
        model=model.name,
        seconds=header.duration,
        sample_rate=header.sample_rate,
        num_samples=header.num_samples,
        channels=header.channels,
        bitrate=header.bitrate * header.channels,
        bytes=size,
        elapsed=time.perf_counter() - start,
        lost=[(header.seconds(first), header.seconds(first + count)) for first, count in lost or []],
    )


def _fade(wav: Tensor, length: int, *, at_start: bool, at_end: bool) -> None:
    length = min(length, len(wav) // 2)
    ramp = torch.linspace(0, 1, length + 2)[1:-1]
    if at_start:
        wav[:length] *= ramp
    if at_end:
        wav[len(wav) - length :] *= ramp.flip(0)
