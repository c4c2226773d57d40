"""Recordings -> embeddings: many files in batches of similar length, each as if it were alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine import audio
from engine.errors import AudioError
from speaker.model import SpeakerEncoder
from speaker.quality import Quality, assess, clipped_share

__all__ = ["Embeddings", "embed_files", "heard"]

log = logging.getLogger(__name__)
BATCH_SECONDS = 24.0  # of audio in a batch, padding included; with more, activations leave the caches
READ_AHEAD = 64  # recordings that are sorted by length before they are put into batches
ALIKE = 0.2  # correlation of two channels below which they are taken for two sources
LONG_SECONDS = 120.0  # longer ones go through alone, in chunks


@dataclass
class Embeddings:
    """Names and vectors (n, D), and what could not be embedded, with the reason."""

    names: list[str] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    quality: list[Quality] = field(default_factory=list)  # of each embedded recording
    model: str = ""  # name and digest


@torch.inference_mode()
def embed_files(
    encoder: SpeakerEncoder, paths: Sequence[Path], progress: Callable[[int], None] = lambda done: None,
    seconds: float | None = None, bfloat16: bool = False,
) -> Embeddings:  # fmt: skip
    """Embed every file that can be embedded, or the `seconds` in its middle; the others are listed with the reason.

    `progress` gets the files done. `bfloat16`: the network multiplies in half precision, twice as fast where the
    processor can (AVX512_BF16, AMX, GPUs).
    """
    result = Embeddings(model=encoder.identity)
    rate = encoder.config.front_end.sample_rate
    vectors: dict[Path, NDArray[np.float32]] = {}
    quality: dict[Path, Quality] = {}
    for start in range(0, len(paths), READ_AHEAD):
        loaded: list[tuple[Path, Tensor]] = []
        for path in paths[start : start + READ_AHEAD]:
            try:
                whole, clipped = heard(path, rate)
                wav = _middle(whole, seconds, rate)
                if len(wav) < encoder.min_samples:
                    least = encoder.min_samples / rate
                    raise AudioError(f"{path}: {len(wav) / rate:.2f} s are too short; {least:.2f} s are needed")
                loaded.append((path, wav))
                quality[path] = replace(assess(wav.numpy(), rate), clipped=clipped)
            except AudioError as error:
                result.failed[str(path)] = str(error)
        for batch in _batches(loaded, rate):
            with torch.autocast(next(encoder.parameters()).device.type, torch.bfloat16, enabled=bfloat16):
                found = _embed(encoder, [wav for _, wav in batch])
            for (path, _), vector in zip(batch, found, strict=True):
                vectors[path] = vector.float().cpu().numpy()
        progress(min(start + READ_AHEAD, len(paths)))
    for path in paths:
        if path in vectors:
            result.names.append(str(path))
            result.vectors.append(vectors[path])
            result.quality.append(quality[path])
    return result


def heard(path: Path, rate: int) -> tuple[Tensor, float]:
    """Samples (N,) of a file, mixed to one channel at `rate`, and the share of those in the file that are clipped.

    Of recordings of more than two minutes what is left of it after mixing and resampling: they are not kept twice.
    """
    try:
        told = audio.probe(path)
        as_it_is = (told.sample_rate, told.channels) == (rate, 1)
        long = told.num_samples / told.sample_rate > LONG_SECONDS
    except AudioError:  # a header without the length, or no audio: reading tells
        as_it_is = long = True
    if as_it_is or long:
        wav = audio.load(path, rate, mono=True)[0][0]
        return wav, clipped_share(wav.numpy())
    channels, native = audio.load(path)
    if several_voices(channels):
        log.warning("%s: its %d channels differ, as those of two people do, and are mixed to one; give each as a file",
                    path, len(channels))  # fmt: skip
    clipped = max(clipped_share(channel.numpy()) for channel in channels)
    return audio.resample(channels.mean(0), native, rate), clipped


def several_voices(channels: Tensor) -> bool:
    """Whether two channels of (C, N) hold sound that is not the same: their mixture would be of nobody.

    Of microphones in one room, or where one is silent, it is the same. Turned upside down it cancels in the mixture.
    """
    centred = channels - channels.mean(1, keepdim=True)
    power = centred.square().mean(1)
    loud = centred[power > 1e-3 * power.max()]
    if len(loud) < 2 or not power.max() > 0:
        return False
    unit = loud / loud.norm(dim=1, keepdim=True)
    return bool((unit @ unit.mT).min() < ALIKE)


def _middle(wav: Tensor, seconds: float | None, rate: int) -> Tensor:
    count = len(wav) if seconds is None else min(len(wav), round(seconds * rate))
    start = (len(wav) - count) // 2
    return wav[start : start + count]


def _embed(encoder: SpeakerEncoder, wavs: list[Tensor]) -> Tensor:
    """Waveforms (n,) -> (B, D)."""
    from speaker.long import embed

    rate, device = encoder.config.front_end.sample_rate, next(encoder.parameters()).device
    if len(wavs) == 1 and len(wavs[0]) > LONG_SECONDS * rate:
        return embed(encoder, wavs[0][None].split(10 * rate, dim=1))[None]
    lengths = torch.tensor([len(wav) for wav in wavs])
    return encoder(pad_sequence(wavs, batch_first=True).to(device), lengths)


def _batches(loaded: list[tuple[Path, Tensor]], rate: int) -> Iterator[list[tuple[Path, Tensor]]]:
    """Similar lengths together, so that little is padded."""
    batch: list[tuple[Path, Tensor]] = []
    for item in sorted(loaded, key=lambda pair: len(pair[1])):
        if batch and (len(batch) + 1) * len(item[1]) > BATCH_SECONDS * rate:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
