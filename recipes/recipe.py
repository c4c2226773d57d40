"""The configuration of a training run: one frozen dataclass, saved with the run."""

from __future__ import annotations

from dataclasses import dataclass, field

from codec.config import EscLiveConfig
from recipes.harness.augment import AugmentConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a run depends on besides the data."""

    name: str
    model: EscLiveConfig = field(default_factory=EscLiveConfig)
    seed: int = 1
    crop_frames: int = 48  # of 20 ms
    batch_size: int = 8  # crops of a step, over all devices
    max_steps: int = 20_000
    warmup_steps: int = 200
    decay_steps: int = 4_000  # at the end: the rate falls linearly to 0; before, it is constant
    optimizer: str = "adamw"  # or "muon": orthogonalized momentum for the matrices
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.8, 0.98)
    clip_norm: float = 1.0
    precision: str = "32-true"  # of Lightning; "bf16-mixed" is 1.8 times faster where the processor has AVX512_BF16
    # Steps without quantization first; then the codebooks start anew on what the encoder has learned. After a start
    # from data they bring nothing: 150 of them gave, at step 300, validation PESQ-WB 1.90 against 1.93 without.
    bypass_steps: int = 0
    # How often a crop is coded with 1, 2, ... levels, relative to each other; empty: all equally often.
    level_weights: tuple[float, ...] = ()
    spectrum_weight: float = 1.0
    mel_weight: float = 1.0
    # Loudness is what listeners judge by: 400 steps with weight 2 took a trained model from validation PESQ-WB 3.10 to
    # 3.32 and STOI .912 to .920, against 3.11 and .912 without; with weight 6 to 3.30 and .921.
    loudness_weight: float = 2.0
    commitment_weight: float = 0.02
    codebook_weight: float = 1.0
    ema_decay: float = 0.999
    skip_bad_batches: int = 0  # batches with a gradient that is not finite; one more stops the run
    start_seconds: float = 400.0  # of speech for the data-driven start
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # of training crops; no effect by default
    crop_levels: tuple[float, float] = (-38.0, -14.0)  # dBFS; training and validation crops are set to one of these
    speaker_exponent: float = 0.5  # a speaker is drawn with weight hours^exponent
    join_short: bool = False  # recordings shorter than a crop are joined with others of their speaker, not left out
    validation_percent: float = 4.0  # of speakers
    validation_crops: int = 24
    validation_frames: int = 200
    validate_every: int = 500  # steps
    checkpoint_minutes: float = 4.0


@dataclass(frozen=True, kw_only=True)
class AdversarialRecipe(Recipe):
    """A second stage: the losses of the first and discriminators that the codec has to deceive.

    Of the steps, the first `discriminator_steps` train the discriminators alone; `warmup_steps` count after them.
    """

    adversarial_weight: float = 0.1
    feature_weight: float = 0.2
    discriminator_steps: int = 200
    # Higher than is usual for wide ones. After 200 steps alone those of the spectrum tell the shipped
    # model's speech (loss 0.07 to 0.11, guessing is 0.5; at 5e-4 0.21 to 0.50), those of the periods not yet (0.49).
    discriminator_rate: float = 2e-3
    discriminator_frames: int = 16  # of each crop, at random; they see no more, for the sake of speed
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[int, ...] = (8, 16, 32, 64, 64)
    windows: tuple[int, ...] = (1024, 512, 256)
    window_channels: int = 8
