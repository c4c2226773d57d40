"""The configuration of a training run: one frozen dataclass, saved with the run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from codec.config import EscLiveConfig
from codec.esc_config import EscConfig
from engine.errors import ConfigError
from engine.features import FrontEndConfig, kaldi_fbank
from recipes.harness.augment import AugmentConfig
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.backbones.resnet import ResNetConfig
from speaker.backbones.titanet import TitaNetConfig
from speaker.backbones.xvector import XvectorConfig
from speaker.model import SpeakerConfig

R = TypeVar("R", bound="Recipe")
C = TypeVar("C", bound="CodecRecipe")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a run depends on besides the data: what the recipes of both kinds of model have in common.

    A kind of model adds `model`, its configuration, and `sample_rate`, `crop_samples`, `validation_samples`.
    """

    name: str
    seed: int = 1
    batch_size: int = 8  # crops of a step, over all devices
    max_steps: int = 20_000
    warmup_steps: int = 200
    decay_steps: int = 4_000  # at the end: the rate falls linearly to 0; before, it is constant
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: orthogonalized momentum for the matrices
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.8, 0.98)
    clip_norm: float = 1.0
    precision: str = "32-true"  # of Lightning; "bf16-mixed" is 1.8 times faster where the processor has AVX512_BF16
    ema_decay: float = 0.999
    skip_bad_batches: int = 0  # batches with a gradient that is not finite; one more stops the run
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # of training crops; no effect by default
    crop_levels: tuple[float, float] = (-38.0, -14.0)  # dBFS; training and validation crops are set to one of these
    speaker_exponent: float = 0.5  # a speaker is drawn with weight hours^exponent
    join_short: bool = False  # recordings shorter than a crop are joined with others of their speaker, not left out
    validation_percent: float = 4.0  # of speakers
    validation_crops: int = 24
    validate_every: int = 500  # steps
    checkpoint_minutes: float = 4.0

    def __post_init__(self) -> None:
        check_at_least(self, 1, "batch_size", "max_steps", "validation_crops", "validate_every")
        check_at_least(self, 0, "warmup_steps", "decay_steps", "learning_rate", "weight_decay", "clip_norm",
                       "skip_bad_batches", "checkpoint_minutes")  # fmt: skip
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must be 0 or more and below 1, got {self.ema_decay}")
        if not 0 < self.validation_percent <= 100:
            raise ConfigError(f"validation_percent must be above 0 and up to 100, got {self.validation_percent}")
        if self.crop_levels[0] > self.crop_levels[1]:
            raise ConfigError(f"crop_levels must be two numbers, the lower first, got {self.crop_levels}")

    if TYPE_CHECKING:  # a field of some, a property of others: a property here would hide the field

        @property
        def model(self) -> Any:
            """Configuration of the model that is trained."""

    @property
    def sample_rate(self) -> int:
        """Of the audio, Hz."""
        raise NotImplementedError

    @property
    def crop_samples(self) -> int:
        """Samples of a training crop."""
        raise NotImplementedError

    @property
    def validation_samples(self) -> int:
        """Samples of a validation crop."""
        raise NotImplementedError

    def shortened(self: R) -> R:
        """The recipe for --fast-dev-run: batches of full size, but three of them, and little of everything else."""
        return replace(self, max_steps=3, validate_every=3, validation_crops=min(self.validation_crops, 4))


def check_at_least(recipe: Recipe, least: float, *names: str) -> None:
    """ConfigError unless each of these fields is a number not below `least`."""
    for name in names:
        value = getattr(recipe, name)
        if not (math.isfinite(value) and value >= least):
            raise ConfigError(f"{name} must be {least:g} or more, got {value}")


@dataclass(frozen=True, kw_only=True)
class CodecRecipe(Recipe):
    """Training of a codec."""

    model: EscLiveConfig | EscConfig = field(default_factory=EscLiveConfig)
    crop_frames: int = 48  # of 20 ms
    # Steps without quantization first; then the codebooks start anew on what the encoder has learned. After a start
    # from data they bring nothing: 150 of them gave, at step 300, validation PESQ-WB 1.90 against 1.93 without.
    bypass_steps: int = 0
    # How often a crop is coded with 1, 2, ... levels, relative to each other; empty: all equally often.
    level_weights: tuple[float, ...] = ()
    # Of what: "complex", the relative error of the spectrum whose magnitude was compressed; "components", the published
    # loss, real and imaginary part compressed apart.
    spectrum_loss: Literal["complex", "components"] = "complex"
    spectrum_weight: float = 1.0
    mel_weight: float = 1.0
    # Loudness is what listeners judge by: 400 steps with weight 2 took a trained model from validation PESQ-WB 3.10 to
    # 3.32 and STOI .912 to .920, against 3.11 and .912 without; with weight 6 to 3.30 and .921.
    loudness_weight: float = 2.0
    commitment_weight: float = 0.02
    codebook_weight: float = 1.0
    start_seconds: float = 400.0  # of speech for the data-driven start
    validation_frames: int = 200

    @property
    def sample_rate(self) -> int:
        return self.model.sample_rate

    @property
    def crop_samples(self) -> int:
        return self.crop_frames * self.model.samples_per_frame

    @property
    def validation_samples(self) -> int:
        return self.validation_frames * self.model.samples_per_frame

    def shortened(self: C) -> C:
        return replace(
            super().shortened(), start_seconds=min(self.start_seconds, 10.0), bypass_steps=min(self.bypass_steps, 1)
        )


@dataclass(frozen=True, kw_only=True)
class AdversarialRecipe(CodecRecipe):
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


@dataclass(frozen=True, kw_only=True)
class SpeakerRecipe(Recipe):
    """Training of a speaker encoder, against labels where there are any, and against a teacher where it has been heard.

    The loss is the sum of four, each with its weight: margin softmax (`classify`), cosine to the teacher's embedding
    (`imitate`), telling that from what the teacher makes of others (`contrast`), difference to its cosines within the
    batch (`relate`). The first and the last are for `nested` too.
    """

    front_end: FrontEndConfig = field(default_factory=kaldi_fbank)
    network: EcapaTdnnConfig | TitaNetConfig | ResNetConfig | XvectorConfig = field(default_factory=EcapaTdnnConfig)
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    schedule: Literal["stable", "cosine", "cyclic"] = "stable"  # "cosine" falls from the warm-up on, no `decay_steps`
    cycle_steps: int = 2_000  # of "cyclic", no warm-up: up and down again, each top half as high as the one before
    crop_seconds: tuple[float, float] = (1.5, 3.0)  # one length for all crops of a step
    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)  # each is another voice with a label of its own
    teacher: str = ""  # file of embeddings that recipes.teach has written
    target_balance: float = 0.0  # exponent by which the teacher's wide directions are narrowed (recipes.directions)
    target_nuisance: int = 0  # directions of the teacher in which corpora differ, to be taken away
    target_blur: float = 0.0  # weight of what the teacher makes of a recording at the next lower and higher speed
    own_share: float = 0.5  # of a recording's own embedding in its target; the rest is the mean of its speaker
    unlabelled_share: float = 0.2  # of the crops, where some speakers are unknown
    imitate_weight: float = 1.0
    contrast_weight: float = 0.0
    relate_weight: float = 1.0
    classify_weight: float = 0.1
    margin: float = 0.2
    margin_steps: tuple[int, int] = (500, 2_000)  # the margin grows from the first of these steps to the second
    scale: float = 32.0
    sub_centres: int = 1
    top_k: int = 0  # nearest wrong classes whose cosines are raised by `top_k_penalty`
    top_k_penalty: float = 0.06
    fixed_classifier: bool = False  # equiangular class vectors that are not learned
    nested: tuple[int, ...] = ()  # so many first dimensions are an embedding of their own
    validation_percent: float = 10.0
    validation_crops: int = 400
    validation_seconds: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 0, "target_balance", "target_nuisance", "target_blur", "imitate_weight", "contrast_weight",
                       "relate_weight", "classify_weight", "margin", "top_k", "top_k_penalty")  # fmt: skip
        check_at_least(self, 1, "cycle_steps", "sub_centres")
        for name in ("own_share", "unlabelled_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be 0 to 1, got {getattr(self, name)}")
        for name in ("crop_seconds", "margin_steps"):
            low, high = getattr(self, name)
            if low > high:
                raise ConfigError(f"{name} must be two numbers, the lower first, got {(low, high)}")
        for name, values in (("crop_seconds", self.crop_seconds), ("speeds", self.speeds), ("scale", (self.scale,)),
                             ("validation_seconds", (self.validation_seconds,))):  # fmt: skip
            if not values or not all(math.isfinite(value) and value > 0 for value in values):
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")

    def large_margin(self) -> SpeakerRecipe:
        """Large-margin fine-tuning of an encoder that this recipe has trained (`--init`): long crops, no other speeds.

        Thienpondt, Desplanques and Demuynck (2021): margin 0.5, crops of 6 s; less of both for recordings of seconds.
        Its targets, where it has a teacher, weigh as before.
        """
        return replace(
            self, name=f"{self.name}_large_margin", margin=0.4, margin_steps=(0, 1), crop_seconds=(3.0, 5.0),
            speeds=(1.0,), batch_size=48, learning_rate=5e-4, max_steps=1_000, decay_steps=800,
        )  # fmt: skip

    @property
    def model(self) -> SpeakerConfig:
        """Configuration of the encoder."""
        return SpeakerConfig(front_end=self.front_end, network=self.network)

    @property
    def sample_rate(self) -> int:
        return self.front_end.sample_rate

    @property
    def crop_samples(self) -> int:
        return round(max(self.crop_seconds) * self.sample_rate)

    @property
    def validation_samples(self) -> int:
        return round(self.validation_seconds * self.sample_rate)
