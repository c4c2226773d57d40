"""Front ends of speaker models: waveform -> log-mel features or cepstra (PLP too), batched, in the graph, pure torch.

Four families that look alike and are not: Kaldi's (Povey et al. 2011; WeSpeaker, BUT), SpeechBrain's, NeMo's and that
of TaoRuijie's ECAPA-TDNN. They differ in framing, window, pre-emphasis, mel scale, shape of the triangles, logarithm
and normalization, and weights trained on one are worthless on another: the front end is part of a model's
configuration.

In a padded batch every item gives the features that it gives alone, and zeros behind them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import AudioError, ConfigError
from engine.plp import PerceptualCepstra
from engine.spectral import mel_filterbank

Framing = Literal["snip", "whole", "centre_zero", "centre_reflect"]
Window = Literal["povey", "hamming", "hamming_periodic", "hann"]
Emphasis = Literal["none", "frame", "signal", "signal_reflect"]
Mel = Literal["kaldi", "htk", "speechbrain", "slaney"]
Log = Literal["ln_floor", "ln_add", "decibel", "plp"]
Normalization = Literal["none", "mean", "mean_std", "sliding_mean"]

LIFTER = 22  # of Kaldi's cepstra
TOP_DECIBELS = 80.0  # SpeechBrain: nothing is further below the loudest bin of the utterance
STD_EPS = 1e-5  # NeMo


@dataclass(frozen=True, kw_only=True)
class FrontEndConfig:
    """All that the families differ in; the defaults are Kaldi's log-mel filter bank without dither."""

    sample_rate: int = 16000
    scale: float = 32768.0  # of samples in [-1, 1]
    win_length: int = 400
    hop_length: int = 160
    n_fft: int = 512
    # snip, whole: Kaldi with and without snip_edges; centre_*: frames centred on multiples of the hop, the signal
    # continued by zeros or mirrored.
    framing: Framing = "snip"
    window: Window = "povey"
    remove_dc: bool = True  # from each frame
    emphasis: Emphasis = "frame"
    preemphasis: float = 0.97
    num_bins: int = 80
    mel: Mel = "kaldi"
    low_hz: float = 20.0
    high_hz: float = 0.0  # from 0 down: that far below half the sample rate
    # plp: no logarithm but cube root and linear prediction, of order 12 or, for more cepstra, one less than those
    log: Log = "ln_floor"
    log_eps: float = 1.1920929e-07
    num_ceps: int = 0  # cepstra instead of the bins themselves
    use_energy: bool = False  # instead of the first cepstrum
    normalization: Normalization = "mean"
    sliding_frames: int = 300

    def __post_init__(self) -> None:
        if self.n_fft < self.win_length or self.hop_length < 1 or self.num_bins < 1:
            raise ConfigError(f"frames of {self.win_length} samples do not fit a transform of {self.n_fft}")
        if not 0 <= self.num_ceps <= self.num_bins:
            raise ConfigError(f"{self.num_bins} bins have up to that many cepstra, not {self.num_ceps}")
        if not 0 <= self.low_hz < self.top_hz <= self.sample_rate / 2:
            raise ConfigError(f"bins from {self.low_hz} to {self.top_hz} Hz do not fit {self.sample_rate} Hz")

        if self.log == "plp" and (self.num_ceps < 2 or self.mel != "kaldi"):
            raise ConfigError(f"PLP is of 2 cepstra or more on Kaldi's mel scale, not {self.num_ceps} on {self.mel}'s")

    @property
    def top_hz(self) -> float:
        """Upper edge of the last bin."""
        return self.high_hz if self.high_hz > 0 else self.sample_rate / 2 + self.high_hz

    @property
    def num_features(self) -> int:
        """F of the features (B, F, T)."""
        return self.num_ceps or self.num_bins

    @property
    def min_samples(self) -> int:
        """The shortest signal that gives a frame."""
        return {"snip": self.win_length, "whole": self.hop_length, "centre_zero": self.hop_length}.get(
            self.framing, self.n_fft // 2 + 1
        )

    def num_frames(self, num_samples: int | Tensor) -> int | Tensor:
        """Frames of a signal of that many samples."""
        if self.framing == "snip":
            return (num_samples - self.win_length) // self.hop_length + 1
        if self.framing == "whole":
            return (num_samples + self.hop_length // 2) // self.hop_length
        return num_samples // self.hop_length + (self.normalization != "mean_std")  # NeMo leaves the last one out


def kaldi_fbank(num_bins: int = 80, window: Window = "povey", **changes: object) -> FrontEndConfig:
    """Kaldi's log-mel filter bank; WeSpeaker, 3D-Speaker and pyannote take a Hamming window."""
    return FrontEndConfig(num_bins=num_bins, window=window, **changes)  # type: ignore[arg-type]


def kaldi_mfcc(num_ceps: int = 30, num_bins: int = 30, **changes: object) -> FrontEndConfig:
    """Kaldi's mel cepstra."""
    return FrontEndConfig(num_bins=num_bins, num_ceps=num_ceps, **changes)  # type: ignore[arg-type]


def plp(num_ceps: int = 13, num_bins: int = 23, **changes: object) -> FrontEndConfig:
    """Kaldi's `compute-plp-feats`, without dither; `use_energy=True` for its default first feature."""
    return FrontEndConfig(num_bins=num_bins, num_ceps=num_ceps, log="plp", **changes)  # type: ignore[arg-type]


def speechbrain_fbank(num_bins: int = 80) -> FrontEndConfig:
    """SpeechBrain's `Fbank` and sentence mean normalization."""
    return FrontEndConfig(
        scale=1.0, n_fft=400, framing="centre_zero", window="hamming_periodic", remove_dc=False, emphasis="none",
        num_bins=num_bins, mel="speechbrain", low_hz=0.0, log="decibel", log_eps=1e-10,
    )  # fmt: skip


def vbx_fbank(num_bins: int = 64) -> FrontEndConfig:
    """VBx, without the dither that it adds: to 7.6 kHz, mean of 3 s around each frame taken off."""
    return kaldi_fbank(num_bins, high_hz=7600.0, framing="whole", log_eps=1.0, normalization="sliding_mean")


def nemo_mel(num_bins: int = 80) -> FrontEndConfig:
    """NeMo's `AudioToMelSpectrogramPreprocessor` with normalization per feature, as TitaNet has it."""
    return FrontEndConfig(
        scale=1.0, framing="centre_zero", window="hann", remove_dc=False, emphasis="signal", num_bins=num_bins,
        mel="slaney", low_hz=0.0, log="ln_add", log_eps=2.0**-24, normalization="mean_std",
    )  # fmt: skip


def taoruijie_fbank(num_bins: int = 80) -> FrontEndConfig:
    """The front end of TaoRuijie's ECAPA-TDNN."""
    return FrontEndConfig(
        scale=1.0, framing="centre_reflect", window="hamming_periodic", remove_dc=False, emphasis="signal_reflect",
        num_bins=num_bins, mel="htk", high_hz=7600.0, log="ln_add", log_eps=1e-6,
    )  # fmt: skip


class FrontEnd(nn.Module):
    """Waveforms (B, N) -> features (B, F, T) and the frames of each item (B,)."""

    def __init__(self, config: FrontEndConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", _window(config), persistent=False)
        self.register_buffer("filters", _filters(config), persistent=False)
        self.register_buffer("cosines", _cosines(config), persistent=False)
        self.window: Tensor
        self.filters: Tensor
        self.cosines: Tensor
        if config.log == "plp":
            centres = 700 * np.expm1(_mel_edges(config)[1:-1] / 1127)
            self.prediction = PerceptualCepstra(centres, config.num_ceps, LIFTER)

    def forward(self, wav: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, N) samples in [-1, 1], items of `lengths` (B,) samples -> (B, F, T), (B,) int64.

        Raises AudioError for an item that is too short for a frame.
        """
        config = self.config
        batch, num_samples = wav.shape
        lengths = torch.full((batch,), num_samples, device=wav.device) if lengths is None else lengths.to(wav.device)
        if not torch.compiler.is_compiling() and not torch.jit.is_tracing() and int(lengths.min()) < config.min_samples:
            raise AudioError(
                f"{int(lengths.min())} samples are too short for this model: it needs {config.min_samples} "
                f"({1000 * config.min_samples / config.sample_rate:.0f} ms)"
            )
        frames, energy = self._frames(self._signal(wav, lengths), lengths)
        power = self.power_spectrum(frames * self.window)
        num_frames = torch.as_tensor(config.num_frames(lengths))
        inside = torch.arange(power.shape[1], device=wav.device) < num_frames[:, None]
        features = self._logarithm(power @ self.filters, inside)
        if config.num_ceps:
            features = self.prediction(features) if config.log == "plp" else features @ self.cosines
            if config.use_energy:
                features = torch.cat([energy[..., None], features[..., 1:]], dim=-1)
        features = self._normalized(features, inside)
        features = torch.where(inside[..., None], features, 0.0)
        return features[:, : config.num_frames(num_samples)].transpose(1, 2), num_frames

    def power_spectrum(self, frames: Tensor) -> Tensor:
        """Windowed frames (B, T, M) -> (B, T, n_fft / 2 + 1)."""
        spectrum = torch.fft.rfft(frames, n=self.config.n_fft)
        return spectrum.real.square() + spectrum.imag.square()

    def _signal(self, wav: Tensor, lengths: Tensor) -> Tensor:
        """Scaled, emphasized, zero behind each item's end."""
        config = self.config
        inside = torch.arange(wav.shape[1], device=wav.device) < lengths[:, None]
        wav = torch.where(inside, wav * config.scale, 0.0)
        if config.emphasis in ("signal", "signal_reflect"):
            first = wav[:, 1:2] if config.emphasis == "signal_reflect" else torch.zeros_like(wav[:, :1])
            emphasized = wav - config.preemphasis * torch.cat([first, wav[:, :-1]], dim=1)
            wav = torch.where(inside, emphasized, 0.0)
        return wav

    def _frames(self, wav: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) -> frames (B, T, win_length or n_fft), and their log energy (B, T) where Kaldi takes it."""
        config = self.config
        if config.framing.startswith("centre"):
            reach = config.n_fft // 2
            padded = F.pad(wav, (reach, reach))
            if config.framing == "centre_reflect":
                padded = _mirrored(wav, lengths, reach, repeat_edge=False)
            return padded.unfold(1, config.n_fft, config.hop_length), padded[:, :0]
        if config.framing == "whole":
            before = (config.win_length - config.hop_length) // 2
            wav = _mirrored(wav, lengths, before, repeat_edge=True, after=config.win_length)
        frames = wav.unfold(1, config.win_length, config.hop_length)
        if config.remove_dc:
            frames = frames - frames.mean(-1, keepdim=True)
        energy = frames.square().sum(-1).clamp_min(config.log_eps).log() if config.use_energy else wav[:, :0]
        if config.emphasis == "frame":
            previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
            frames = frames - config.preemphasis * previous
        return frames, energy

    def _logarithm(self, mel: Tensor, inside: Tensor) -> Tensor:
        config = self.config
        if config.log == "plp":
            return mel.clamp_min(config.log_eps)  # its cube root follows
        if config.log == "ln_add":
            return (mel + config.log_eps).log()
        if config.log == "ln_floor":
            return mel.clamp_min(config.log_eps).log()
        decibels = 10 * mel.clamp_min(config.log_eps).log10()
        loudest = torch.where(inside[..., None], decibels, -math.inf).amax((1, 2), keepdim=True)
        return torch.maximum(decibels, loudest - TOP_DECIBELS)

    def _normalized(self, features: Tensor, inside: Tensor) -> Tensor:
        kind = self.config.normalization
        if kind == "none":
            return features
        weight = inside[..., None].to(features.dtype)
        if kind == "sliding_mean":
            return features - _sliding_mean(features * weight, weight, self.config.sliding_frames)
        count = weight.sum(1, keepdim=True)
        centred = features - (features * weight).sum(1, keepdim=True) / count
        if kind == "mean":
            return centred
        variance = (centred.square() * weight).sum(1, keepdim=True) / (count - 1).clamp_min(1)
        return centred / (variance.sqrt() + STD_EPS)


def _mirrored(wav: Tensor, lengths: Tensor, before: int, repeat_edge: bool, after: int | None = None) -> Tensor:
    """Continue each item (B, N) by its mirror image on both sides, at its own end."""
    after = before if after is None else after
    index = torch.arange(-before, wav.shape[1] + after, device=wav.device).expand(len(wav), -1)
    last = lengths[:, None] - 1
    if repeat_edge:
        index = torch.where(index < 0, -1 - index, index)
        index = torch.where(index > last, 2 * last + 1 - index, index)
    else:
        index = index.abs()
        index = last - (last - index).abs()
    return wav.gather(1, torch.minimum(index.clamp_min(0), last))


def _sliding_mean(x: Tensor, weight: Tensor, width: int) -> Tensor:
    """Mean over `width` frames around each, (B, T, F); at the ends over the `width` frames nearest to the end."""
    frames = x.shape[1]
    num_frames = weight.sum(1).long()  # (B, 1)
    place = torch.arange(frames, device=x.device)
    start = (place - width // 2).clamp_min(0)
    start = torch.minimum(start[None], (num_frames - width).clamp_min(0))
    stop = torch.minimum(start + width, num_frames)
    sums = F.pad(x.double().cumsum(1), (0, 0, 1, 0))
    shape = (*start.shape, x.shape[2])
    total = sums.gather(1, stop[..., None].expand(shape)) - sums.gather(1, start[..., None].expand(shape))
    return (total / (stop - start).clamp_min(1)[..., None]).to(x.dtype)


def _window(config: FrontEndConfig) -> Tensor:
    """(win_length,) for Kaldi, which fills the transform up behind it; (n_fft,) with the window in the middle else."""
    n, length = np.arange(config.win_length), config.win_length
    if config.window == "hamming_periodic":
        window = 0.54 - 0.46 * np.cos(2 * np.pi * n / length)
    elif config.window == "hamming":
        window = 0.54 - 0.46 * np.cos(2 * np.pi * n / (length - 1))
    else:
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / (length - 1))
        window = hann**0.85 if config.window == "povey" else hann
    if config.framing.startswith("centre"):
        before = (config.n_fft - length) // 2
        window = np.pad(window, (before, config.n_fft - length - before))
    return torch.from_numpy(window.astype(np.float32))


def _filters(config: FrontEndConfig) -> Tensor:
    """(n_fft / 2 + 1, num_bins): triangles over the power spectrum."""
    num_bins, low, high, rate = config.num_bins, config.low_hz, config.top_hz, config.sample_rate
    if config.mel == "slaney":
        return mel_filterbank(num_bins, config.n_fft, rate, low, high)
    hz = np.arange(config.n_fft // 2 + 1) * rate / config.n_fft
    edges = _mel_edges(config)
    if config.mel == "kaldi":  # straight sides on the mel scale; the bin at half the sample rate is left out
        at = 1127 * np.log1p(hz / 700)
        triangles = np.minimum((at[:, None] - edges[:-2]), (edges[2:] - at[:, None])) / (edges[1] - edges[0])
        triangles[-1] = 0
    else:
        edges = 700 * np.expm1(edges / 1127)
        left, right = np.diff(edges)[:-1], np.diff(edges)[1:]
        if config.mel == "speechbrain":
            right = left  # symmetric in Hz
        distance = hz[:, None] - edges[1:-1]
        triangles = np.minimum(1 + distance / left, 1 - distance / right)
    return torch.from_numpy(np.maximum(triangles, 0).astype(np.float32))


def _mel_edges(config: FrontEndConfig) -> np.ndarray:
    """(num_bins + 2,): where each triangle begins, and the middle and the end of the last, on the mel scale."""
    low, high = 1127 * np.log1p(np.array([config.low_hz, config.top_hz]) / 700)
    return np.linspace(float(low), float(high), config.num_bins + 2)


def _cosines(config: FrontEndConfig) -> Tensor:
    """(num_bins, num_ceps): orthonormal DCT-II, liftered."""
    n, k = np.arange(config.num_bins), np.arange(config.num_ceps)
    matrix = np.sqrt(2 / config.num_bins) * np.cos(np.pi / config.num_bins * (n[:, None] + 0.5) * k)
    matrix[:, :1] *= math.sqrt(0.5)
    return torch.from_numpy((matrix * (1 + LIFTER / 2 * np.sin(np.pi * k / LIFTER))).astype(np.float32))
