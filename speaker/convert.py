"""Other projects' speaker encoders -> model folders of ours, with the front end that belongs to them.

Files are read as data: pickles with torch's loader for weights alone, a `.nemo` file as a tar of which only the weights
are read, into memory, wherever its members would like to be written.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from engine.checkpoint import drop_extras
from engine.errors import CheckpointError, ConfigError
from engine.features import FrontEndConfig, kaldi_fbank, nemo_mel, speechbrain_fbank, taoruijie_fbank, vbx_fbank
from engine.foreign import load_pickle, state_dict
from speaker import convert_ecapa, convert_nemo, convert_vbx, convert_wespeaker_resnet, convert_wespeaker_xvector
from speaker.model import SpeakerConfig, SpeakerEncoder, save

__all__ = ["ORIGINS", "convert", "read_weights"]

Converter = Callable[[Mapping[str, Tensor]], tuple[Any, dict[str, Tensor]]]

# Origin -> the networks it knows, each with the front end of that project for so many bins.
ORIGINS: dict[str, list[tuple[Converter, Callable[[int], FrontEndConfig]]]] = {
    "speechbrain": [(convert_ecapa.speechbrain, speechbrain_fbank)],
    "taoruijie": [(convert_ecapa.taoruijie, taoruijie_fbank)],
    "wespeaker": [
        (convert_ecapa.wespeaker, lambda bins: kaldi_fbank(bins, window="hamming")),
        (convert_wespeaker_resnet.backbone, lambda bins: kaldi_fbank(bins, window="hamming")),
        (convert_wespeaker_xvector.backbone, lambda bins: kaldi_fbank(bins, window="hamming")),
    ],
    "3dspeaker": [(convert_ecapa.speechbrain, lambda bins: kaldi_fbank(bins))],
    "vbx": [(convert_vbx.backbone, vbx_fbank)],
    "nemo": [(convert_nemo.backbone, nemo_mel)],
}
# 3D-Speaker's ECAPA-TDNN has the names of SpeechBrain's but another front end: only its user can tell them apart.
RECOGNIZED = ("speechbrain", "taoruijie", "wespeaker", "vbx", "nemo")
MAX_MEMBER = 1 << 31  # bytes of weights inside of a .nemo file

CARD = """# {name}

Speaker encoder ({kind}, {parameters:.2f} M parameters), converted from {origin}'s `{file}`. Training, data, licence and
figures are those of the original; nothing was measured here.
"""


def convert(source: Path, out: Path, origin: str = "auto") -> tuple[SpeakerEncoder, str]:
    """Read weights, write the folder `out`; return the encoder and the origin, recognized where it is "auto".

    Raises CheckpointError for what cannot be read, is of none of the origins, or has unknown or missing tensors.
    """
    if origin != "auto" and origin not in ORIGINS:
        raise ConfigError(f"unknown origin {origin!r}; there are auto, {', '.join(ORIGINS)}")
    weights = read_weights(source)
    problems = []
    for candidate in RECOGNIZED if origin == "auto" else [origin]:
        for converter, front_end in ORIGINS[candidate]:
            try:
                network, state = converter(weights)
            except CheckpointError as error:
                problems.append(str(error))
                continue
            encoder = SpeakerEncoder(SpeakerConfig(front_end=front_end(network.num_bins), network=network)).eval()
            encoder.backbone.load_state_dict(state)
            encoder.name = out.resolve().name
            parameters = sum(p.numel() for p in encoder.parameters()) / 1e6
            card = CARD.format(
                name=encoder.name, kind=encoder.config.kind, parameters=parameters, origin=candidate, file=source.name
            )
            drop_extras(out)
            save(out, encoder, card)
            return encoder, candidate
    raise CheckpointError(f"{source}: " + "; ".join(problems))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a .safetensors, .nemo, or any file of torch.save (.ckpt, .pt, .pth, .model)."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return state_dict(safetensors.torch.load_file(path), str(path))
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    if path.suffix == ".nemo":
        return _nemo(path)
    return state_dict(load_pickle(path, str(path)), str(path))


def _nemo(path: Path) -> dict[str, Tensor]:
    try:
        with tarfile.open(path) as archive:
            members = [m for m in archive if m.isfile() and Path(m.name).name == "model_weights.ckpt"]
            if len(members) != 1 or members[0].size > MAX_MEMBER:
                raise CheckpointError(
                    f"{path} is no .nemo file: it holds {len(members)} model_weights.ckpt, expected one"
                )
            file = archive.extractfile(members[0])
            assert file is not None
            return state_dict(load_pickle(file, f"{path}: {members[0].name}"), str(path))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise CheckpointError(f"{path} is no .nemo file, which is a tar: {error}") from error
