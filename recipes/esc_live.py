"""Recipes of the live codec."""

from __future__ import annotations

from codec.config import EscLiveConfig
from recipes.recipe import AdversarialRecipe, CodecRecipe


def base() -> CodecRecipe:
    """The shipped model: low rates, where quality is hardest to come by, train more often than the others."""
    return CodecRecipe(name="esc_live", level_weights=(1.5, 2.5, 1.5, 1.0, 1.0, 1.5))


def tiny() -> CodecRecipe:
    """A model of a few minutes, for tests and for trying out a machine."""
    model = EscLiveConfig(
        channels=(32, 32, 48, 64),
        encoder_depths=(1, 1, 1, 1),
        decoder_depths=(1, 1, 1, 1, 1, 1),
        codebook_dims=(8, 8, 8, 8, 8, 8),
        codebook_size=64,
    )
    return CodecRecipe(
        name="esc_live_tiny", model=model, batch_size=4, crop_frames=24, max_steps=200, warmup_steps=20, decay_steps=50,
        bypass_steps=5, start_seconds=20, validation_crops=4, validation_frames=50, validate_every=50,
    )  # fmt: skip


def adversarial() -> AdversarialRecipe:
    """Second stage of the shipped model; begin it with --init and the model of the first."""
    return AdversarialRecipe(name="esc_live_adversarial", level_weights=base().level_weights, learning_rate=3e-4)
