"""Weights of WeSpeaker's ResNets (Wang et al. 2023; https://github.com/wenet-e2e/wespeaker) -> ours.

pyannote's `wespeaker-voxceleb-resnet34-LM` is one of them, with a prefix.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from speaker.backbones.resnet import ResNetConfig
from speaker.convert_vbx import convert_resnet

__all__ = ["backbone"]

ORIGIN = "WeSpeaker's ResNet"
UNUSED = ("projection.",)  # the classifier


def backbone(state: Mapping[str, Tensor]) -> tuple[ResNetConfig, dict[str, Tensor]]:
    """Their state dict -> our configuration, inferred from the shapes, and our state dict."""
    state = {name.removeprefix("resnet."): tensor for name, tensor in state.items()}
    return convert_resnet(state, "seg_1", UNUSED, ORIGIN, unbiased=True, eps=1e-7)
