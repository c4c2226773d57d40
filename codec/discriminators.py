"""Discriminators for adversarial training: they learn to tell decoded speech from recorded speech.

Two kinds, as in the published speech codecs. One looks at the waveform folded to columns of a period (HiFi-GAN, Kong et
al. 2020, arXiv 2010.05646, section 2.3), one at the complex short-time spectrum (EnCodec, Defossez et al. 2022,
arXiv 2210.13438, section 3.4). Both return the features of every layer; the last one is the score of every position.
The loss is least squares: 1 for recorded, 0 for decoded.

What differs: narrow widths (a step has to fit a CPU core); spectra compressed in magnitude, since otherwise only the
strongest harmonics are seen; means instead of sums over discriminators and layers, so that the weights of the losses
mean the same for every number of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from codec.losses import ShortTimeFourier
from engine.errors import ConfigError

SLOPE = 0.1  # of the leaky rectifiers, as in HiFi-GAN
Features = list[Tensor]  # of one discriminator, first layer first; the last is the score


class PeriodDiscriminator(nn.Module):
    """Convolutions along time over every `period`-th sample; the phases of the period share the weights."""

    def __init__(self, period: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.period = period
        self.layers = nn.ModuleList()
        for i, (before, after) in enumerate(zip((1, *channels), channels, strict=False)):
            stride = 3 if i < len(channels) - 1 else 1
            self.layers.append(weight_norm(nn.Conv2d(before, after, (1, 5), (1, stride), (0, 2))))
        self.score = weight_norm(nn.Conv2d(channels[-1], 1, (1, 3), padding=(0, 1)))

    def forward(self, wav: Tensor) -> Features:
        """(B, N) -> (B, C, period, T) of every layer, (B, 1, period, T) at the end."""
        short = -wav.shape[1] % self.period
        # Time is the last axis, twice as fast for short periods as HiFi-GAN's layout, where it is the one before.
        x = F.pad(wav, (0, short)).unflatten(1, (-1, self.period)).mT[:, None].contiguous()
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            features.append(x)
        return [*features, self.score(x)]


class SpectrumDiscriminator(nn.Module):
    """Convolutions over time and frequency of a complex spectrum, whose parts are the two input channels."""

    def __init__(self, window: int, channels: int, exponent: float = 0.5) -> None:
        super().__init__()
        self.exponent = exponent
        hann = torch.hann_window(window)
        # Divided by the window's norm, noise of unit variance has a spectrum of unit variance, whatever the window.
        self.register_buffer("window", hann / hann.square().sum().sqrt(), persistent=False)
        self.layers = nn.ModuleList([weight_norm(nn.Conv2d(2, channels, (3, 9), (1, 2), (1, 4)))])
        for dilation in (1, 2, 4):  # in time; every layer halves the frequency axis
            self.layers.append(
                weight_norm(
                    nn.Conv2d(channels, channels, (3, 9), stride=(1, 2), dilation=(dilation, 1), padding=(dilation, 4))
                )
            )
        self.layers.append(weight_norm(nn.Conv2d(channels, channels, 3, padding=1)))
        self.score = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, wav: Tensor) -> Features:
        """(B, N) -> (B, C, T, F) of every layer, (B, 1, T, F) at the end."""
        with torch.autocast(wav.device.type, enabled=False):
            spectrum: Tensor = ShortTimeFourier.apply(wav.float(), self.window)
            # As `engine.spectral.compress`, with a gradient that is finite where the spectrum vanishes, too.
            power = spectrum.real.square() + spectrum.imag.square()
            scale = (power + 1e-6).pow((self.exponent - 1) / 2)
            x = (torch.view_as_real(spectrum) * scale[..., None]).permute(0, 3, 1, 2)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            features.append(x)
        return [*features, self.score(x)]


class Discriminators(nn.Module):
    """One discriminator for each period and for each window; HiFi-GAN has channels 32, 128, 512, 1024, 1024.

    `periods` and `windows` are in samples, the hop of a spectrum is a quarter of its window.
    """

    def __init__(
        self,
        periods: tuple[int, ...] = (2, 3, 5, 7, 11),  # prime, so that no two of them see the same columns
        period_channels: tuple[int, ...] = (8, 16, 32, 64, 64),  # every layer but the last shortens time three times
        windows: tuple[int, ...] = (1024, 512, 256),
        window_channels: int = 8,
    ) -> None:
        super().__init__()
        if not periods and not windows:
            raise ConfigError("no discriminator: give at least one period or window")
        if not period_channels or min(*periods, *period_channels, window_channels) < 1:
            raise ConfigError(f"periods and channels are positive; got {periods}, {period_channels}, {window_channels}")
        if any(size < 16 or size % 4 for size in windows):
            raise ConfigError(f"windows are multiples of 4 from 16 on; got {windows}")
        self.members = nn.ModuleList(
            [PeriodDiscriminator(period, period_channels) for period in periods]
            + [SpectrumDiscriminator(window, window_channels) for window in windows]
        )

    def forward(self, wav: Tensor) -> list[Features]:
        """(B, N) of about unit variance -> the features of each discriminator."""
        return [member(wav) for member in self.members]


def discriminator_loss(recorded: list[Features], decoded: list[Features]) -> Tensor:
    """Least squares: 0 when all scores are right, 1/2 when every score is 1/2. Mean over discriminators."""
    parts = [
        (1 - ours[-1].float()).square().mean() + theirs[-1].float().square().mean()
        for ours, theirs in zip(recorded, decoded, strict=True)
    ]
    return torch.stack(parts).mean()


def generator_loss(decoded: list[Features]) -> Tensor:
    """Least squares: 0 when all decoded speech is taken for recorded, 1 when all is told. Mean over discriminators."""
    return torch.stack([(1 - features[-1].float()).square().mean() for features in decoded]).mean()


def feature_loss(recorded: list[Features], decoded: list[Features]) -> Tensor:
    """Mean |difference| of each layer's features over the mean size of the recorded ones; scores are left out."""
    # In the precision of the features, summed in float32: they are large, and copies of them cost more than the sums.
    parts = [
        (theirs - ours).abs().mean(dtype=torch.float32) / ours.abs().mean(dtype=torch.float32).clamp_min(1e-6)
        for real, fake in zip(recorded, decoded, strict=True)
        for ours, theirs in zip(real[:-1], fake[:-1], strict=True)
    ]
    return torch.stack(parts).mean()
