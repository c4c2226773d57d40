"""Weights of the ECAPA-TDNNs of SpeechBrain (and 3D-Speaker), TaoRuijie and WeSpeaker -> ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from torch import Tensor

from engine.errors import CheckpointError, ConfigError
from speaker.backbones import ecapa_tdnn
from speaker.backbones.ecapa_tdnn import EcapaTdnn, EcapaTdnnConfig
from speaker.convert_keys import fitting, rename, shape

__all__ = ["speechbrain", "taoruijie", "wespeaker"]

# Their linear layers on one frame are convolutions, or the other way round.
LINEAR = ("down.weight", "up.weight", "embed.weight")


def speechbrain(state: Mapping[str, Tensor]) -> tuple[EcapaTdnnConfig, dict[str, Tensor]]:
    """`embedding_model.ckpt` of SpeechBrain; 3D-Speaker's is the same network."""
    names = {"mfa.conv.conv": "mfa", "mfa.norm.norm": "mfa_norm", "asp.tdnn.conv.conv": "pool.hidden",
             "asp.tdnn.norm.norm": "pool.norm", "asp.conv.conv": "pool.score", "asp_bn.norm": "pool_norm",
             "fc.conv": "embed", "blocks.0.conv.conv": "stem.conv", "blocks.0.norm.norm": "stem.norm"}  # fmt: skip
    for i in range(_blocks(state, "blocks.{}.tdnn1.conv.conv.weight")):
        theirs, ours = f"blocks.{i + 1}", f"blocks.{i}"
        for their, our in (("tdnn1", "pre"), ("tdnn2", "post")):
            names |= {
                f"{theirs}.{their}.conv.conv": f"{ours}.{our}.conv",
                f"{theirs}.{their}.norm.norm": f"{ours}.{our}.norm",
            }
        for k in range(15):
            names[f"{theirs}.res2net_block.blocks.{k}.conv.conv"] = f"{ours}.res2.{k}.conv"
            names[f"{theirs}.res2net_block.blocks.{k}.norm.norm"] = f"{ours}.res2.{k}.norm"
        names |= {f"{theirs}.se_block.conv1.conv": f"{ours}.se.down", f"{theirs}.se_block.conv2.conv": f"{ours}.se.up"}
    return _convert(state, names, (), ecapa_tdnn.speechbrain(), "SpeechBrain's ECAPA-TDNN")


def taoruijie(state: Mapping[str, Tensor]) -> tuple[EcapaTdnnConfig, dict[str, Tensor]]:
    """https://github.com/TaoRuijie/ECAPA-TDNN: `exps/pretrain.model`."""
    state = {n.removeprefix("module.").removeprefix("speaker_encoder."): tensor for n, tensor in state.items()}
    names = {"conv1": "stem.conv", "bn1": "stem.norm", "layer4": "mfa", "attention.0": "pool.hidden",
             "attention.2": "pool.norm", "attention.4": "pool.score", "bn5": "pool_norm", "fc6": "embed",
             "bn6": "embed_norm"}  # fmt: skip
    for i in range(_blocks(state, "layer{}.conv1.weight")):
        theirs, ours = f"layer{i + 1}", f"blocks.{i}"
        names |= {f"{theirs}.conv1": f"{ours}.pre.conv", f"{theirs}.bn1": f"{ours}.pre.norm",
                  f"{theirs}.conv3": f"{ours}.post.conv", f"{theirs}.bn3": f"{ours}.post.norm",
                  f"{theirs}.se.se.1": f"{ours}.se.down", f"{theirs}.se.se.3": f"{ours}.se.up"}  # fmt: skip
        for k in range(15):
            names |= {f"{theirs}.convs.{k}": f"{ours}.res2.{k}.conv", f"{theirs}.bns.{k}": f"{ours}.res2.{k}.norm"}
    unused = ("speaker_loss.", "torchfbank.")
    return _convert(state, names, unused, ecapa_tdnn.taoruijie(), "TaoRuijie's ECAPA-TDNN")


def wespeaker(state: Mapping[str, Tensor]) -> tuple[EcapaTdnnConfig, dict[str, Tensor]]:
    """WeSpeaker's ECAPA_TDNN_GLOB; the one without global context is not converted."""
    names = {"layer1.conv": "stem.conv", "layer1.bn": "stem.norm", "conv": "mfa", "pool.linear1": "pool.hidden",
             "pool.linear2": "pool.score", "bn": "pool_norm", "linear": "embed", "bn2": "embed_norm"}  # fmt: skip
    for i in range(_blocks(state, "layer{}.se_res2block.0.conv.weight", first=2)):
        theirs, ours = f"layer{i + 2}.se_res2block", f"blocks.{i}"
        for index, our in ((0, "pre"), (2, "post")):
            names |= {f"{theirs}.{index}.conv": f"{ours}.{our}.conv", f"{theirs}.{index}.bn": f"{ours}.{our}.norm"}
        for k in range(15):
            names |= {f"{theirs}.1.convs.{k}": f"{ours}.res2.{k}.conv", f"{theirs}.1.bns.{k}": f"{ours}.res2.{k}.norm"}
        names |= {f"{theirs}.3.linear1": f"{ours}.se.down", f"{theirs}.3.linear2": f"{ours}.se.up"}
    norm = "bn2.running_mean" in state
    preset = dataclasses.replace(ecapa_tdnn.wespeaker(), embedding_norm=norm)
    return _convert(state, names, ("projection.",), preset, "WeSpeaker's ECAPA-TDNN")


def _blocks(state: Mapping[str, Tensor], pattern: str, first: int = 1) -> int:
    count = 0
    while pattern.format(first + count) in state:
        count += 1
    return count


def _convert(
    state: Mapping[str, Tensor], names: dict[str, str], unused: tuple[str, ...], preset: EcapaTdnnConfig, origin: str
) -> tuple[EcapaTdnnConfig, dict[str, Tensor]]:
    renamed = rename(state, names, unused, origin)
    sized = _sizer(renamed, origin)
    channels, num_bins, kernel = sized("stem.conv.weight", 3)
    parts = 1
    while f"blocks.0.res2.{parts - 1}.conv.weight" in renamed:
        parts += 1
    blocks = len({name.split(".")[1] for name in renamed if name.startswith("blocks.")})
    try:
        config = dataclasses.replace(
            preset, num_bins=num_bins, channels=channels, kernel=kernel, mfa_channels=sized("mfa.weight", 3)[0],
            dilations=tuple(range(2, 2 + blocks)), res2_scale=parts,
            squeeze_channels=sized("blocks.0.se.down.weight")[0],
            attention_channels=sized("pool.hidden.weight")[0], embedding_dim=sized("embed.weight")[0],
        )  # fmt: skip
    except ConfigError as error:
        raise CheckpointError(f"the weights are not those of {origin}: {error}") from error
    for name, tensor in renamed.items():
        if name.endswith(LINEAR) and tensor.ndim == 3:
            renamed[name] = tensor.squeeze(-1)
        elif name in ("pool.hidden.weight", "pool.score.weight") and tensor.ndim == 2:
            renamed[name] = tensor[..., None]
    return config, fitting(lambda: EcapaTdnn(config), renamed, names, origin)


def _sizer(state: dict[str, Tensor], origin: str) -> Callable[..., tuple[int, ...]]:
    def sized(name: str, dimensions: int | None = None) -> tuple[int, ...]:
        found = shape(state, name, origin)
        if dimensions is not None and len(found) != dimensions:
            raise CheckpointError(f"the weights are not those of {origin}: {name} is {found}")
        return found

    return sized
