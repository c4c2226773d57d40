"""Discriminators against slow twins, and whether they learn."""

import pytest
import torch
import torch.nn.functional as F

from codec.discriminators import (
    Discriminators,
    PeriodDiscriminator,
    SpectrumDiscriminator,
    discriminator_loss,
    feature_loss,
    generator_loss,
)
from engine.errors import ConfigError


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small() -> Discriminators:
    torch.manual_seed(0)
    return Discriminators((2, 5), (4, 8), (64,), 4)


def test_a_period_is_each_phase_on_its_own():
    """The twin takes every third sample from 0, 1 and 2 on and runs a one-dimensional network over each."""
    torch.manual_seed(1)
    discriminator, wav = PeriodDiscriminator(3, (4, 6)), noise(2, 90)
    score = discriminator(wav)[-1]
    for phase in range(3):
        x = wav[:, None, phase::3]
        for layer, stride in zip(discriminator.layers, (3, 1), strict=True):
            x = F.leaky_relu(F.conv1d(x, layer.weight[:, :, 0], layer.bias, stride, 2), 0.1)
        last = discriminator.score
        torch.testing.assert_close(score[:, :, phase], F.conv1d(x, last.weight[:, :, 0], last.bias, 1, 1))


def test_the_spectrum_is_that_of_torch_compressed():
    torch.manual_seed(2)
    discriminator, wav = SpectrumDiscriminator(64, 4), noise(2, 640)
    window = torch.hann_window(64)
    spectrum = torch.stft(wav, 64, 16, window=window, pad_mode="constant", return_complex=True)
    spectrum = spectrum / window.square().sum().sqrt()
    assert float(spectrum.abs().square().mean()) == pytest.approx(1, rel=0.1)  # as the signal
    compressed = torch.polar(spectrum.abs().sqrt(), spectrum.angle())
    x = torch.stack([compressed.real, compressed.imag], dim=1).mT  # (B, 2, T, F)
    first = discriminator.layers[0]
    expected = F.leaky_relu(F.conv2d(x, first.weight, first.bias, (1, 2), (1, 4)), 0.1)
    torch.testing.assert_close(discriminator(wav)[0], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("length", [1000, 1001, 1007])
def test_every_sample_is_judged_whatever_the_length(length):
    discriminators = small()
    wav = noise(1, length).requires_grad_()
    for features in discriminators(wav):
        (gradient,) = torch.autograd.grad(features[-1].sum(), wav)
        assert (gradient[0, -64:] != 0).any() and (gradient[0, :64] != 0).any()


def test_silence_has_a_finite_gradient():
    wav = torch.zeros(1, 1000, requires_grad=True)
    generator_loss(small()(wav)).backward()
    assert torch.isfinite(wav.grad).all() and wav.grad.abs().sum() > 0


def test_losses_of_known_scores():
    def judged(score: float) -> list[list[torch.Tensor]]:
        return [[torch.ones(2, 3), torch.full((2, 5), score)], [torch.full((2, 2), score)]]

    assert float(discriminator_loss(judged(1), judged(0))) == 0
    assert float(discriminator_loss(judged(0.5), judged(0.5))) == pytest.approx(0.5)
    assert float(discriminator_loss(judged(0), judged(1))) == 2
    assert float(generator_loss(judged(0))) == 1
    assert float(generator_loss(judged(1))) == 0


def test_feature_loss_is_relative_to_the_recorded_and_leaves_scores_out():
    score = torch.zeros(1)
    recorded = [[torch.tensor([2.0, -4.0]), torch.tensor([0.1]), score]]
    decoded = [[torch.tensor([2.0, -1.0]), torch.tensor([0.3]), score + 9]]
    assert float(feature_loss(recorded, decoded)) == pytest.approx((3 / 6 + 2) / 2)
    louder = [[10 * layer for layer in features] for features in recorded], [[10 * f for f in decoded[0]]]
    assert float(feature_loss(*louder)) == pytest.approx((3 / 6 + 2) / 2)


def test_they_learn_to_tell_and_say_what_to_change():
    """Low-pass noise against white noise: told apart after some steps, and the gradient makes the one more white."""
    discriminators = small()
    optimizer = torch.optim.AdamW(discriminators.parameters(), 1e-2, betas=(0.8, 0.98))

    def dull(seed: int) -> torch.Tensor:
        return F.avg_pool1d(noise(8, 1015, seed=seed)[:, None], 16, 1)[:, 0] * 4  # also over a period of 5

    for step in range(60):
        loss = discriminator_loss(discriminators(noise(8, 1000, seed=step)), discriminators(dull(1000 + step)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    wav, white = dull(5000), noise(8, 1000, seed=6000)
    with torch.no_grad():
        for real, fake in zip(discriminators(white), discriminators(wav), strict=True):
            assert float(discriminator_loss([real], [fake])) < 0.25  # each of them; 0.5 is guessing
    wav.requires_grad_()
    told = generator_loss(discriminators(wav))
    (gradient,) = torch.autograd.grad(told, wav)
    with torch.no_grad():
        nearer = generator_loss(discriminators(wav - 0.3 * gradient / gradient.square().mean().sqrt()))
    assert float(nearer) < float(told.detach())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"periods": (), "windows": ()}, "at least one"),
        ({"periods": (0,)}, "positive"),
        ({"period_channels": ()}, "positive"),
        ({"windows": (30,)}, "multiples of 4"),
    ],
)
def test_bad_configurations_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Discriminators(**change)
