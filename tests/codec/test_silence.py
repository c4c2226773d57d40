"""Descriptions of the background that no sender makes: never an error, never noise at full level."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.silence import LOUDEST_NOISE, ActivityDetector, ComfortNoise, describe


@given(st.binary(max_size=16) | st.binary(min_size=9, max_size=9), st.integers(1, 4000))
@settings(max_examples=60)
def test_any_bytes_are_noise_no_louder_than_a_room(description, num_samples):
    made = ComfortNoise(16000).frames(description, num_samples)
    assert made.shape == (num_samples,) and torch.isfinite(made).all()
    assert made.abs().max() < 0.15  # -36 dBFS and peaks of noise; full scale is 1


def test_the_loudest_description_is_played_at_the_limit():
    level = 10 * torch.log10(ComfortNoise(16000).frames(bytes(9), 64000).square().mean())
    assert abs(float(level) - LOUDEST_NOISE) < 1


def test_no_background_that_is_sent_is_above_the_limit():
    """Steady noise as loud as the detector lets pass for a background is described, and played, at its level."""
    detector = ActivityDetector()
    noise = torch.randn(200, 320, generator=torch.Generator().manual_seed(0))
    quiet = [wav for wav in noise * 10 ** ((LOUDEST_NOISE - 1.5) / 20) if not detector.is_speech(wav)]
    assert len(quiet) > 150
    sent = torch.cat(quiet)
    made = ComfortNoise(16000).frames(describe(sent), 64000)
    assert abs(float(10 * torch.log10(made.square().mean() / sent.square().mean()))) < 1
