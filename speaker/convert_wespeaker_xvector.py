"""Weights of WeSpeaker's XVEC (https://github.com/wenet-e2e/wespeaker) -> ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from speaker.backbones.xvector import Xvector, XvectorConfig
from speaker.convert_keys import fitting, rename, shape

__all__ = ["backbone"]

ORIGIN = "WeSpeaker's XVEC"
UNUSED = ("projection.",)  # the classifier


def backbone(state: Mapping[str, Tensor]) -> tuple[XvectorConfig, dict[str, Tensor]]:
    """Their state dict -> our configuration, sizes from the shapes, and our state dict."""
    names = {"seg_1": "embed", "seg_bn_1": "embed_norm", "seg_2": "embed2"}
    for i in range(5):
        names |= {f"frame_{i + 1}.conv_1d": f"layers.{i}.conv", f"frame_{i + 1}.bn": f"layers.{i}.norm"}
    channels, num_bins, _ = shape(state, "frame_1.conv_1d.weight", ORIGIN)
    config = XvectorConfig(
        num_bins=num_bins, channels=channels, stats_channels=shape(state, "frame_5.conv_1d.weight", ORIGIN)[0],
        embedding_dim=shape(state, "seg_2.weight", ORIGIN)[0], tap="second",
    )  # fmt: skip
    return config, fitting(lambda: Xvector(config), rename(state, names, UNUSED, ORIGIN), names, ORIGIN)
