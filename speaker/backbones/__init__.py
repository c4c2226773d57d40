"""The networks between features and embedding, one paper a file; `BACKBONES` names them with their configuration."""

from __future__ import annotations

from speaker.backbones.ecapa_tdnn import EcapaTdnn, EcapaTdnnConfig
from speaker.backbones.resnet import ResNet, ResNetConfig
from speaker.backbones.titanet import TitaNet, TitaNetConfig
from speaker.backbones.xvector import Xvector, XvectorConfig

__all__ = ["BACKBONES"]

# The name in `config.json` -> network, configuration.
BACKBONES = {
    "ecapa_tdnn": (EcapaTdnn, EcapaTdnnConfig),
    "resnet": (ResNet, ResNetConfig),
    "titanet": (TitaNet, TitaNetConfig),
    "xvector": (Xvector, XvectorConfig),
}
