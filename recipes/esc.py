"""Recipes of the published codec, which looks ahead: for files, and to see what causality costs."""

from __future__ import annotations

from codec import esc_config
from codec.esc_config import EscConfig
from recipes.recipe import CodecRecipe


def base() -> CodecRecipe:
    """ESC-Base, 8.39 M parameters, in the published stages: without quantization, then with (Gu and Diao 2024).

    Data, losses and optimizer are ours; the published loss of the spectrum is `spectrum_loss="components"`. The
    codebooks start from what the encoder has learned, not from noise.
    """
    return CodecRecipe(name="esc", model=esc_config.base(), bypass_steps=2_000, commitment_weight=0.25)


def tiny() -> CodecRecipe:
    """The published network at about the size of the live one, 3.2 M parameters.

    Patches of 6 bins in place of 3 halve the tokens, two thirds of the channels, fewer heads; everything else is
    published.
    """
    model = EscConfig(patch_bins=6, channels=(32, 48, 64, 96, 128, 192), heads=(2, 4, 4, 8, 8))
    return CodecRecipe(name="esc_tiny", model=model, bypass_steps=200, commitment_weight=0.25)
