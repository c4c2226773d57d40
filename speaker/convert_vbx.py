"""Weights of BUT's ResNets (VBx, Landini et al. 2022; https://github.com/BUTSpeechFIT/VBx) -> ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from engine.errors import CheckpointError, ConfigError
from speaker.backbones.resnet import ResNet, ResNetConfig
from speaker.convert_keys import fitting, rename, shape

__all__ = ["backbone", "modules"]

ORIGIN = "VBx's ResNet"
# The classifier of the training recipe, which its checkpoints hold too.
UNUSED = ("metric.",)


def backbone(state: Mapping[str, Tensor]) -> tuple[ResNetConfig, dict[str, Tensor]]:
    """Their state dict -> our configuration, inferred from the shapes, and our state dict."""
    return convert_resnet(state, "embedding", UNUSED, ORIGIN, unbiased=False, eps=1e-10)


def convert_resnet(
    state: Mapping[str, Tensor], embed: str, unused: tuple[str, ...], origin: str, *, unbiased: bool, eps: float
) -> tuple[ResNetConfig, dict[str, Tensor]]:
    """As `backbone`, for all ResNets that are built like BUT's and name their first linear layer `embed`."""
    counts = [len({match[1] for n in state if (match := re.match(rf"layer{s}\.(\d+)\.", n))}) for s in range(1, 5)]
    if 0 in counts:
        raise CheckpointError(f"the weights are not those of {origin}: layer{counts.index(0) + 1}.0 is missing")
    channels = shape(state, "conv1.weight", origin)[0]
    bottleneck = "layer1.0.conv3.weight" in state
    embedding_dim, pooled = shape(state, f"{embed}.weight", origin)
    names = modules(counts, embed)
    try:
        config = ResNetConfig(
            # The last stage has an eighth of the bins, for mean and standard deviation of each channel.
            num_bins=pooled // (2 * channels * (4 if bottleneck else 1)),
            channels=channels,
            blocks=(counts[0], counts[1], counts[2], counts[3]),
            bottleneck=bottleneck,
            embedding_dim=embedding_dim,
            second_layer="seg_2.weight" in state,
            unbiased=unbiased,
            eps=eps,
        )
    except ConfigError as error:
        raise CheckpointError(f"the weights are not those of {origin}: {error}") from error
    renamed = rename(state, names, unused, origin)
    return config, fitting(lambda: ResNet(config), renamed, names, origin)


def modules(counts: list[int], embed: str) -> dict[str, str]:
    """Their name of each module -> ours, for so many blocks in each stage."""
    names = {
        "conv1": "stem.conv",
        "bn1": "stem.norm",
        embed: "embed",
        "seg_bn_1": "embed_norm",
        "seg_2": "embed_second",
    }
    index = 0
    for stage, count in enumerate(counts, start=1):
        for i in range(count):
            theirs, ours = f"layer{stage}.{i}", f"blocks.{index}"
            for k in range(3):
                names[f"{theirs}.conv{k + 1}"] = f"{ours}.layers.{k}.conv"
                names[f"{theirs}.bn{k + 1}"] = f"{ours}.layers.{k}.norm"
            names[f"{theirs}.shortcut.0"] = f"{ours}.shortcut.conv"
            names[f"{theirs}.shortcut.1"] = f"{ours}.shortcut.norm"
            index += 1
    return names
