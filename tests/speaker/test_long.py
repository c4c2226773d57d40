"""speaker/long.py: chunk by chunk is the same as in one go, and takes no more memory for more hours."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine.errors import AudioError
from engine.features import (
    FrontEnd,
    FrontEndConfig,
    kaldi_fbank,
    kaldi_mfcc,
    nemo_mel,
    speechbrain_fbank,
    taoruijie_fbank,
)
from speaker import long, long_features
from speaker.backbones import BACKBONES
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.backbones.resnet import ResNetConfig
from speaker.backbones.titanet import TitaNetConfig
from speaker.backbones.xvector import XvectorConfig
from speaker.long import Backbone, embed_features
from speaker.long_features import LongFeatures
from speaker.model import SpeakerConfig, SpeakerEncoder
from speaker.moments import Moments

ECAPA = {"num_bins": 10, "channels": 16, "mfa_channels": 24, "squeeze_channels": 4, "embedding_dim": 8}
NETWORKS = {
    "titanet": TitaNetConfig(num_bins=10, channels=16, epilog_channels=24, embedding_dim=8),
    "resnet": ResNetConfig(num_bins=10, channels=4, embedding_dim=8),
    "bottleneck": ResNetConfig(num_bins=10, channels=4, blocks=(1, 2, 1, 1), bottleneck=True),
    "ecapa_tdnn": EcapaTdnnConfig(**ECAPA),  # type: ignore[arg-type]
    "ecapa_reflect": EcapaTdnnConfig(**ECAPA, padding="reflect", mfa_norm=True),  # type: ignore[arg-type]
    "xvector": XvectorConfig(num_bins=10, channels=8, stats_channels=12, embedding_dim=8),
}
FRONT_ENDS = {
    "kaldi": kaldi_fbank(),
    "vbx": kaldi_fbank(64, high_hz=7600.0, framing="whole", log_eps=1.0, normalization="sliding_mean"),
    "mfcc": kaldi_mfcc(normalization="none"),
    "speechbrain": speechbrain_fbank(),
    "nemo": nemo_mel(),
    "taoruijie": taoruijie_fbank(),
}


def built(name: str) -> nn.Module:
    """In eval mode and double precision, with random weights and statistics."""
    torch.manual_seed(0)
    config = NETWORKS[name]
    model = next(network(config) for network, kind in BACKBONES.values() if isinstance(config, kind))  # type: ignore
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            if module.affine:
                nn.init.normal_(module.bias)
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval().double()


def speech(num_frames: int) -> Tensor:
    """Features (10, T) that change in the course of the file, as a wrong mean or weight would show otherwise not."""
    noise = torch.randn(10, num_frames, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise * torch.linspace(0.5, 3, num_frames) + torch.linspace(-2, 2, num_frames)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("num_frames", "chunk"), [(16, 8), (130, 1000), (301, 8), (700, 97)])
@torch.no_grad()
def test_chunks_change_nothing(name: str, num_frames: int, chunk: int) -> None:
    model, features = built(name), speech(num_frames)
    direct = model(features[None])[0]
    found = embed_features(model, lambda a, b: features[:, a:b], num_frames, chunk)  # type: ignore[arg-type]
    torch.testing.assert_close(found, direct, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_single_precision_is_enough(name: str) -> None:
    model, features = built(name).float(), speech(3000).float()
    direct = model.double()(features[None].double())[0]
    found = embed_features(model.float(), lambda a, b: features[:, a:b], 3000)  # type: ignore[arg-type]
    assert found.dtype == torch.float32
    assert 1 - torch.cosine_similarity(found.double(), direct, dim=0) < 1e-9


@pytest.mark.parametrize("name", NETWORKS)
def test_memory_does_not_grow(name: str) -> None:
    model = built(name)

    def largest(num_frames: int) -> int:
        sizes = []

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
                result = func(*args, **(kwargs or {}))
                sizes.extend(each.numel() for each in [result] if isinstance(each, Tensor))
                return result

        def features(start: int, stop: int) -> Tensor:
            return torch.ones(10, stop - start, dtype=torch.float64)

        with Watch():
            embed_features(model, features, num_frames, 64)  # type: ignore[arg-type]
        return max(sizes)

    assert largest(800) == largest(400)


def test_backbones_tell_what_is_needed() -> None:
    for name in NETWORKS:
        model = built(name)
        for attribute in Backbone.__annotations__:
            assert hasattr(model, attribute), (name, attribute)
        assert model.halo % model.stride == 0 == model.chunk_frames % model.stride  # type: ignore[operator]


def test_too_little_says_how_much_is_needed() -> None:
    for name, needed in [("titanet", 2), ("resnet", 9), ("ecapa_reflect", 5), ("xvector", 16)]:
        with pytest.raises(AudioError, match=f"{needed - 1} frames are too few; this model needs at least {needed}"):
            embed_features(built(name), lambda a, b: speech(b)[:, a:], needed - 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1.0, 100.0])  # scores that far apart overflow and vanish where not shifted
def test_moments_merge_exactly(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 1000 + torch.randn(3, 500, generator=generator, dtype=torch.float64)
    scores = scale * torch.randn(3, 500, generator=generator, dtype=torch.float64).cumsum(-1)
    weighted, plain = Moments(), Moments()
    for start, stop in [(0, 1), (1, 200), (200, 203), (203, 500)]:
        weighted.add(x[:, start:stop], scores[:, start:stop])
        plain.add(x[:, start:stop])
    weights = scores.softmax(-1)
    mean = (weights * x).sum(-1)
    for found, expected in zip(
        [*weighted.result(x.dtype), *plain.result(x.dtype)],
        [mean, (weights * (x - mean[:, None]) ** 2).sum(-1), x.mean(-1), x.var(-1, unbiased=False)],
        strict=True,
    ):
        torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=1e-12)


# From samples


def sound(num_samples: int) -> Tensor:
    """Samples (N,) that become louder, with a quiet part."""
    generator = torch.Generator().manual_seed(0)
    wav = 0.1 * torch.randn(num_samples, generator=generator) * torch.linspace(0.01, 1, num_samples)
    wav[num_samples // 3 : num_samples // 2] *= 1e-4
    return wav


@pytest.mark.parametrize("name", FRONT_ENDS)
@pytest.mark.parametrize("block", [4_999, 10**6])
def test_features_are_those_of_the_front_end(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_features, "PIECE_FRAMES", 64)
    config, hop = FRONT_ENDS[name], 160
    # Ends before, in and behind the context of a piece, and in the first one.
    for num_samples in (800, 64 * hop, 64 * hop + 77, 68 * hop - 1, 68 * hop, 128 * hop + 3 * hop, 400 * hop + 39):
        wav = sound(num_samples)[None]
        expected = FrontEnd(config)(wav)[0][0]
        features = LongFeatures(config, wav[0].split(block))
        assert features.num_frames == expected.shape[1] == config.num_frames(num_samples)
        for start, stop in [(0, features.num_frames), (features.num_frames // 3, features.num_frames // 2 + 1)]:
            torch.testing.assert_close(features(start, stop), expected[:, start:stop], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_embedding_is_that_of_the_encoder(name: str) -> None:
    front_end = FrontEndConfig(num_bins=10)
    encoder = SpeakerEncoder(SpeakerConfig(front_end=front_end, network=NETWORKS[name])).eval()
    encoder.backbone = built(name).float()
    wav = sound(200_000)[None]
    with torch.no_grad():
        direct = encoder(wav)[0]
    found = long.embed(encoder, wav.split(16_000, dim=1))
    assert found.shape == direct.shape == (encoder.embedding_dim,)
    assert 1 - torch.cosine_similarity(found.double(), direct.double(), dim=0) < 1e-9


def test_unusable_samples_are_errors() -> None:
    encoder = SpeakerEncoder(SpeakerConfig(front_end=FrontEndConfig(num_bins=10), network=NETWORKS["resnet"])).eval()
    with pytest.raises(AudioError, match="the file is too short for this model: it needs 400 samples"):
        long.embed(encoder, [torch.zeros(1, 100), torch.zeros(1, 200)])
    with pytest.raises(AudioError, match="the file is too short for this model: it needs 400 samples"):
        long.embed(encoder, [])
    with pytest.raises(AudioError, match="6 frames are too few; this model needs at least 9"):
        long.embed(encoder, sound(1300)[None].split(100, dim=1))
    with pytest.raises(AudioError, match="NaN"):
        long.embed(encoder, [torch.zeros(1, 16_000), torch.full((1, 5), torch.nan)])
