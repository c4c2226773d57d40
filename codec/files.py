"""Whole files: audio -> .esc and .esc -> audio, any sample rate and channel count, every sample accounted for.

Files go through piece by piece, by the same stages as live audio (`codec.stream`), in constant memory however long they
are, but for the codes themselves (4 MB an hour), which are read at once. Only what is damaged is put together whole.
"""

import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import codec
from codec import bitstream, stream
from codec.model import Codec
from codec.onnx_live import OnnxLive
from codec.paths import check_target, open_output, read_bytes
from engine import audio, checkpoint
from engine.errors import BitstreamError, CheckpointError
from engine.pipeline import Limit, Resample, run
from engine.sources import held

Codes = NDArray[np.integer]
Progress = Callable[[float, float], None]  # seconds done, seconds in all
PIECE_FRAMES = 512  # decoded at a time
FADE_SECONDS = 0.005  # at the borders of concealed parts, so that they don't click


def silent(done: float, total: float) -> None:
    """No progress is shown."""


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
    model: Codec,
    source: str,
    target: str,
    *,
    levels: int | None = None,
    mono: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> Report:
    """Encode an audio file (or `-`) to an .esc file (or `-`), in constant memory; what is a pipe is held whole.

    `progress` is called with the seconds done and the seconds that the file announces.
    """
    check_target(target, force)
    start = time.perf_counter()
    readable = held(source)
    native = audio.probe(readable)
    if isinstance(readable, io.BytesIO):
        readable.seek(0)
    channels = 1 if mono else native.channels
    # Each channel on its own, not as a batch: a file's codes must not depend on how many channels it has.
    encoders = [stream.encoder(model, levels) for _ in range(channels)]
    resampler = audio.Resampler(native.sample_rate, model.config.sample_rate, channels)
    device = next(model.parameters()).device
    num_samples = 0
    with open_output(target) as file:
        writer = EscWriter(file, model, native.sample_rate, channels, levels or model.config.levels)
        for block in audio.blocks(readable, mono=mono):
            num_samples += block.shape[1]
            at_rate = resampler.push(block).to(device)
            writer.add([encoder.push(row[None]) for encoder, row in zip(encoders, at_rate, strict=True)])
            progress(num_samples / native.sample_rate, native.duration)
        rest = resampler.flush().to(device)
        writer.add([encoder.push(row[None]) + encoder.flush() for encoder, row in zip(encoders, rest, strict=True)])
        header, size = writer.finish(num_samples)
    return _report(source, target, header, model, size, start)


class EscWriter:
    """Writes codes as an .esc file while they come; the header, which tells how many, goes in front at the end."""

    def __init__(self, file: BinaryIO, model: Codec, sample_rate: int, channels: int, levels: int) -> None:
        self._file, self._model = file, model
        self._header = make_header(model, sample_rate, 1, (channels, levels, model.config.num_groups, 1))
        self._chunks = bitstream.ChunkWriter(self._header.bits_per_code, self._header.frames_per_chunk)
        file.write(self._header.to_bytes())  # of the right size; the right numbers come in `finish`

    def add(self, channels: list[list[Tensor]]) -> None:
        """Take the new pieces (1, L, G, k) of every channel, equally long in all."""
        for pieces in zip(*channels, strict=True):
            self._file.write(self._chunks.add(torch.cat(pieces).cpu().numpy()))

    def finish(self, num_samples: int) -> tuple[bitstream.Header, int]:
        """Complete the file; return its header and its size in bytes."""
        self._file.write(self._chunks.finish())
        header = replace(self._header, num_samples=num_samples, num_frames=self._chunks.num_frames)
        size = self._file.tell()
        self._file.seek(0)
        self._file.write(header.to_bytes())
        return header, size


def decode_file(
    source: str,
    target: str,
    *,
    model: str | None = None,
    device: str = "cpu",
    recover: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> Report:
    """Decode an .esc file (or `-`) to an audio file (or `-`, as wav); `model` None takes the one the file names.

    With `recover`, damaged parts become silence and are listed in the report instead of raising BitstreamError.
    """
    check_target(target, force)
    data = read_bytes(source)
    if recover:
        header, codes, lost = bitstream.unpack(data, recover=True)
    else:
        header, lost = bitstream.read_header(data), []
    loaded = load_for(header, model, device)
    start = time.perf_counter()
    rate = loaded.config.sample_rate
    if lost:
        wav: Iterable[Tensor] = decode_channels(loaded, header, codes, lost).split(10 * rate, dim=1)
    else:  # of what was recovered whole, the codes that were found: around them may be bytes that are not the file's
        wav = _decoded(loaded, header, [codes] if recover else bitstream.pieces(data), progress)
    audio.save(target, _at_rate(wav, rate, header), header.sample_rate)
    return _report(source, target, header, loaded, len(data), start, lost)


def _decoded(model: Codec, header: bitstream.Header, pieces: Iterable[Codes], progress: Progress) -> Iterator[Tensor]:
    """Yield the samples (C, n) of codes that come in pieces (C, L, G, k), exactly as many as the header tells."""
    check_frames(model, header)
    device = next(model.parameters()).device
    decoders = [stream.decoder(model) for _ in range(header.channels)]
    limit = Limit(model_samples(header, model.config.sample_rate))
    done = 0
    for piece in pieces:
        for codes in np.array_split(piece, -(-piece.shape[-1] // PIECE_FRAMES), axis=-1):
            rows = torch.from_numpy(codes.astype(np.int64))[:, None].to(device)
            yield from _joined([decoder.push(row) for decoder, row in zip(decoders, rows, strict=True)], limit)
            done += codes.shape[-1]
            progress(header.seconds(done), header.duration)
    yield from _joined([decoder.flush() for decoder in decoders], limit)


def _joined(channels: list[list[Tensor]], limit: Limit) -> Iterator[Tensor]:
    for pieces in zip(*channels, strict=True):
        yield from limit.push(torch.cat(pieces).cpu())


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
    num_samples = check_frames(model, header)
    device = next(model.parameters()).device
    wav = torch.zeros(len(codes), num_samples)
    for channel, channel_codes in enumerate(codes):
        tensor = torch.from_numpy(channel_codes.astype(np.int64))[None].to(device)
        if lost:
            _decode_around(model, tensor, lost, wav[channel])
        else:
            wav[channel] = model.decode(tensor, num_samples=num_samples)[0].cpu()
    return wav


def check_frames(model: Codec, header: bitstream.Header) -> int:
    """Return the samples of one channel at the model's rate; BitstreamError unless the frames are as many as those
    have."""
    num_samples = model_samples(header, model.config.sample_rate)
    if header.num_frames != model.num_frames(num_samples):
        raise BitstreamError(
            f"{header.num_samples} samples are {model.num_frames(num_samples)} frames of {model.name}, "
            f"but the file has {header.num_frames}; it was not written with this model"
        )
    return num_samples


def make_header(model: Codec, sample_rate: int, num_samples: int, shape: Sequence[int]) -> bitstream.Header:
    """Describe codes of `shape` (C, L, G, T) of a sound of `num_samples` samples per channel at `sample_rate`."""
    channels, levels, groups, frames = shape
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


def find_model(name: str, model_id: bytes, choice: str | None = None) -> str:
    """The name or folder to load for something that was coded with the model `name`.

    Without a `choice` only shipped models are considered: a file must not decide which folder is opened or what is
    downloaded.
    """
    shipped = {bitstream.fit_name(known): known for known in checkpoint.shipped()}
    if choice is None and name not in shipped:
        raise CheckpointError(
            f"it was coded with the model {name!r} (id {model_id.hex()}), which is not shipped; "
            "--model gives its folder"
        )
    return choice or shipped[name]


def check_model(model: Codec | OnnxLive, name: str, model_id: bytes) -> None:
    """Raise CheckpointError, naming both, unless `model` is the one that something was coded with."""
    if model.model_id != model_id:
        raise CheckpointError(
            f"it was coded with the model {name!r} (id {model_id.hex()}), not with {model.name!r} "
            f"(id {model.model_id.hex()}); --model gives the folder of the right one"
        )


def load_for(header: bitstream.Header, choice: str | None = None, device: str = "cpu") -> Codec:
    """Load the model a file was coded with; another one is an error that names both, never noise."""
    model = load_model(find_model(header.model_name, header.model_id, choice), device)
    check_model(model, header.model_name, header.model_id)
    return model


def _at_rate(wav: Iterable[Tensor], sample_rate: int, header: bitstream.Header) -> Iterator[Tensor]:
    """Yield the pieces (C, n) at the file's rate, its exact number of samples in all."""
    limit = Limit(header.num_samples)
    yield from run(wav, Resample(sample_rate, header.sample_rate, header.channels), limit)
    assert limit.passed == header.num_samples, "going to the rate of the model and back never loses samples"


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
