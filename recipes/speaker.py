"""Recipes of the speaker encoders.

Each takes labels, a teacher's embeddings (`--set teacher=FILE.npz`, see recipes.teach), or both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine.features import kaldi_fbank, kaldi_mfcc, nemo_mel, plp
from recipes.harness.augment import AugmentConfig
from recipes.recipe import SpeakerRecipe
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.backbones.resnet import resnet
from speaker.backbones.titanet import small
from speaker.backbones.xvector import XvectorConfig, extended

# Cheap beside a step: 5 ms a crop on the core that trains. Rooms are synthetic; for noise, name recordings and set
# augment.noise_probability.
AUGMENT = AugmentConfig(
    reverb_probability=0.3, babble_probability=0.15, babble_snr=(8.0, 20.0), clipping_probability=0.03,
    band_limit_probability=0.1, telephone_probability=0.05, file_codec_probability=0.12,
)  # fmt: skip

# Power of a band below which it counts as silent, about that of noise as loud as a step of 16-bit samples. Digital
# silence beside speech, of a muted or gated microphone, is otherwise what a recording has most of
# (docs/speaker_training.md).
LEAST_POWER = 100.0


# How `ecapa` was trained, and the others to compare with it. The first 32, 64, 128 dimensions are embeddings too.
TRAINING: dict[str, Any] = {
    "augment": AUGMENT, "nested": (32, 64, 128), "crop_seconds": (1.0, 2.6), "batch_size": 96, "optimizer": "muon",
    "learning_rate": 3e-3,
}  # fmt: skip


def ecapa() -> SpeakerRecipe:
    """ECAPA-TDNN with 512 channels (Desplanques et al. 2020)."""
    front_end = kaldi_fbank(80, log_eps=LEAST_POWER)
    return SpeakerRecipe(name="ecapa", front_end=front_end, network=EcapaTdnnConfig(), **TRAINING)


def ecapa_large_margin() -> SpeakerRecipe:
    """Large-margin fine-tuning of `ecapa`."""
    return ecapa().large_margin()


def titanet() -> SpeakerRecipe:
    """TitaNet-S (Koluguri et al. 2022)."""
    return SpeakerRecipe(name="titanet", front_end=nemo_mel(80), network=small(), **TRAINING)


def titanet_large_margin() -> SpeakerRecipe:
    """Large-margin fine-tuning of `titanet`."""
    return titanet().large_margin()


def resnet34() -> SpeakerRecipe:
    """ResNet34 of BUT and WeSpeaker at half its width, 16 channels."""
    network = resnet(34, channels=16, num_bins=64)
    front_end = kaldi_fbank(64, log_eps=LEAST_POWER)
    return SpeakerRecipe(name="resnet34", front_end=front_end, network=network, **TRAINING)


def resnet34_large_margin() -> SpeakerRecipe:
    """Large-margin fine-tuning of `resnet34`."""
    return resnet34().large_margin()


def xvector() -> SpeakerRecipe:
    """The x-vector network (Snyder et al. 2018)."""
    network = XvectorConfig(num_bins=30)
    return SpeakerRecipe(name="xvector", front_end=kaldi_mfcc(30), network=network, **TRAINING)


def xvector_large_margin() -> SpeakerRecipe:
    """Large-margin fine-tuning of `xvector`."""
    return xvector().large_margin()


# The four networks that BUT fused for VoxSRC 2019 (Zeinali et al., arXiv 1910.12592), at about half their width: 20 to
# 7,600 Hz, the mean of 3 s around each frame taken off; half of them with softmax alone, half with an angular margin.
BUT_BAND: dict[str, Any] = {"high_hz": 7600.0, "normalization": "sliding_mean"}


def but_resnet() -> SpeakerRecipe:
    """BUT's ResNet34 on 40 mel bands, trained with softmax."""
    network = resnet(34, channels=16, num_bins=40)
    return SpeakerRecipe(
        name="but_resnet", front_end=kaldi_fbank(40, **BUT_BAND), network=network, augment=AUGMENT, margin=0.0
    )


def but_resnet_margin() -> SpeakerRecipe:
    """The same with additive angular margin, from another start."""
    return replace(but_resnet(), name="but_resnet_margin", margin=0.2, seed=2)


def but_tdnn() -> SpeakerRecipe:
    """BUT's extended x-vector network on 40 mel bands, trained with softmax."""
    network = replace(extended(channels=256, stats_channels=768), num_bins=40, embedding_dim=256)
    return SpeakerRecipe(
        name="but_tdnn", front_end=kaldi_fbank(40, **BUT_BAND), network=network, augment=AUGMENT, margin=0.0
    )


def but_tdnn_plp() -> SpeakerRecipe:
    """BUT's x-vector network on 30 PLP coefficients, with additive angular margin."""
    network = XvectorConfig(num_bins=30, channels=256, stats_channels=768, embedding_dim=256)
    front_end = plp(30, 40, **BUT_BAND)
    return SpeakerRecipe(name="but_tdnn_plp", front_end=front_end, network=network, augment=AUGMENT)


def tiny() -> SpeakerRecipe:
    """An encoder of a minute, for tests and for trying out a machine."""
    network = EcapaTdnnConfig(
        num_bins=24, channels=32, mfa_channels=48, res2_scale=4, squeeze_channels=8, attention_channels=8,
        embedding_dim=16, dilations=(2, 3),
    )  # fmt: skip
    return SpeakerRecipe(
        name="speaker_tiny", front_end=kaldi_fbank(24), network=network, batch_size=8, crop_seconds=(0.5, 1.0),
        validation_seconds=1.0, validation_crops=24, max_steps=60, warmup_steps=10, decay_steps=20, validate_every=30,
        margin_steps=(5, 20), classify_weight=1.0, speeds=(1.0,),
    )  # fmt: skip
