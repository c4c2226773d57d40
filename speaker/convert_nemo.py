"""Weights of NeMo's TitaNet (`model_weights.ckpt` of a .nemo file; https://github.com/NVIDIA/NeMo) -> ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from engine.errors import CheckpointError, ConfigError
from speaker.backbones.titanet import TitaNet, TitaNetConfig
from speaker.convert_keys import fitting, rename, shape

__all__ = ["backbone", "modules"]

ORIGIN = "NeMo's TitaNet"
# Window and filterbank follow from the configuration; `final` is the classifier.
UNUSED = ("preprocessor.", "decoder.final.")
POOL, EMBED = "decoder._pooling.attention_layer", "decoder.emb_layers.0"


def backbone(state: Mapping[str, Tensor]) -> tuple[TitaNetConfig, dict[str, Tensor]]:
    """Their state dict -> our configuration, inferred from the shapes, and our state dict."""
    repeats = _repeats(state)
    if len(repeats) < 2 or len(set(repeats[1:-1])) > 1 or repeats[0] != 1 or repeats[-1] != 1:
        raise CheckpointError(
            f"the weights are not those of {ORIGIN}: expected blocks of 1, n, ..., n, 1 separable convolutions, "
            f"found {', '.join(map(str, repeats)) or 'none'}"
        )
    convs = [shape(state, f"encoder.encoder.{i}.mconv.0.conv.weight", ORIGIN) for i in range(len(repeats))]
    channels = shape(state, "encoder.encoder.0.mconv.1.conv.weight", ORIGIN)[0]
    reduced = shape(state, "encoder.encoder.0.mconv.3.fc.0.weight", ORIGIN)[0]
    try:
        config = TitaNetConfig(
            num_bins=convs[0][0],
            channels=channels,
            epilog_channels=shape(state, f"encoder.encoder.{len(repeats) - 1}.mconv.1.conv.weight", ORIGIN)[0],
            kernels=tuple(conv[-1] for conv in convs),
            repeats=max(repeats),
            squeeze_reduction=channels // max(reduced, 1),
            attention_channels=shape(state, f"{POOL}.2.weight", ORIGIN)[1],
            embedding_dim=shape(state, f"{EMBED}.1.weight", ORIGIN)[0],
        )
    except ConfigError as error:
        raise CheckpointError(f"the weights are not those of {ORIGIN}: {error}") from error
    names = modules(repeats)
    renamed = rename(state, names, UNUSED, ORIGIN)
    # Theirs is a convolution over the single frame that pooling leaves.
    renamed["embed.weight"] = renamed["embed.weight"].squeeze(-1)
    return config, fitting(lambda: TitaNet(config), renamed, names, ORIGIN)


def _repeats(state: Mapping[str, Tensor]) -> list[int]:
    """Separable convolutions of each block: each is five of their modules, of which the first is depth-wise."""
    found: dict[int, int] = {}
    for name in state:
        if match := re.fullmatch(r"encoder\.encoder\.(\d+)\.mconv\.(\d+)\.conv\.weight", name):
            block, index = int(match[1]), int(match[2])
            found[block] = max(found.get(block, 0), index // 5 + 1)
    return [found.get(block, 0) for block in range(max(found, default=-1) + 1)]


def modules(repeats: list[int]) -> dict[str, str]:
    """Their name of each module -> ours."""
    names = {
        f"{POOL}.0.conv_layer": "pool.hidden",
        f"{POOL}.0.bn": "pool.norm",
        f"{POOL}.2": "pool.score",
        f"{EMBED}.0": "pool_norm",
        f"{EMBED}.1": "embed",
    }
    for block, count in enumerate(repeats):
        theirs, ours = f"encoder.encoder.{block}", f"blocks.{block}"
        for i in range(count):
            # convolution over time, over channels, normalization, ReLU, dropout; after the last one the squeeze
            names[f"{theirs}.mconv.{5 * i}.conv"] = f"{ours}.convs.{i}.depthwise"
            names[f"{theirs}.mconv.{5 * i + 1}.conv"] = f"{ours}.convs.{i}.pointwise"
            names[f"{theirs}.mconv.{5 * i + 2}"] = f"{ours}.convs.{i}.norm"
        names[f"{theirs}.mconv.{5 * count - 2}.fc.0"] = f"{ours}.se.down"
        names[f"{theirs}.mconv.{5 * count - 2}.fc.2"] = f"{ours}.se.up"
        names[f"{theirs}.res.0.0.conv"] = f"{ours}.skip.0"
        names[f"{theirs}.res.0.1"] = f"{ours}.skip.1"
    return names
