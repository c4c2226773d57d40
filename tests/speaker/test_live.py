"""speaker/live.py: after every piece the embedding of the file up to there, or near it, at a constant cost."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from engine.errors import AudioError
from engine.features import (
    FrontEnd,
    FrontEndConfig,
    kaldi_fbank,
    kaldi_mfcc,
    nemo_mel,
    speechbrain_fbank,
    taoruijie_fbank,
    vbx_fbank,
)
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.backbones.resnet import ResNetConfig
from speaker.backbones.titanet import TitaNetConfig
from speaker.backbones.xvector import XvectorConfig
from speaker.live import LiveEncoder, LiveSession
from speaker.live_features import LiveFeatures
from speaker.model import SpeakerConfig, SpeakerEncoder

RATE = 16_000
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
    "kaldi": kaldi_fbank(10),
    "vbx": vbx_fbank(10),
    "mfcc": kaldi_mfcc(10, 12, normalization="none"),
    "speechbrain": speechbrain_fbank(10),
    "nemo": nemo_mel(10),
    "taoruijie": taoruijie_fbank(10),
}
LOCAL = ("xvector", "resnet", "bottleneck")  # look at the whole utterance in their pooling alone


def encoder(network: str, front_end: str, **changes: object) -> SpeakerEncoder:
    """With random weights and statistics."""
    torch.manual_seed(0)
    config = dataclasses.replace(FRONT_ENDS[front_end], **changes)  # type: ignore[arg-type]
    model = SpeakerEncoder(SpeakerConfig(front_end=config, network=NETWORKS[network]))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def signal(seconds: float, seed: int = 0) -> Tensor:
    """Noise whose level and colour change, so that no part of it is like another."""
    noise = torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(seed))
    swell = torch.linspace(0.01, 0.3, len(noise)) * (1 + torch.linspace(0, 20, len(noise)).sin() / 2)
    return swell * torch.nn.functional.avg_pool1d(noise[None], 3, 1, 1)[0]


def fed(session: LiveSession, wav: Tensor, sizes: tuple[int, ...]) -> None:
    """Push in pieces of these sizes, again and again."""
    start = 0
    while start < len(wav):
        for size in sizes:
            session.push(wav[start : start + size])
            start += size


@pytest.mark.parametrize("network", LOCAL)
@pytest.mark.parametrize("front_end", ["vbx", "mfcc"])
@torch.no_grad()
def test_equals_the_file_up_to_here(network: str, front_end: str) -> None:
    model = encoder(network, front_end, sliding_frames=60)
    live, wav = LiveEncoder(model), signal(9)
    assert live.exact
    session, done = live.open(), 0
    for stop in (3_000, 9_000, 9_001, 17_777, 40_000, 80_123, 144_000):
        fed(session, wav[done:stop], (1, 700, 3_333))
        done = stop
        torch.testing.assert_close(live.embed([session]), model(wav[None, :stop]), atol=1e-5, rtol=1e-5)
    assert session.settled > 0


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("front_end", FRONT_ENDS)
@torch.no_grad()
def test_is_exact_while_warming_up_and_near_afterwards(network: str, front_end: str) -> None:
    model = encoder(network, front_end)
    live, wav = LiveEncoder(model, warm_seconds=2), signal(6)
    session = live.open()
    session.push(wav[: 2 * RATE])
    # NeMo's squares over a mean of zero and the running sums differ in the last digits
    torch.testing.assert_close(live.embed([session]), model(wav[None, : 2 * RATE]), atol=1e-4, rtol=1e-4)
    fed(session, wav[2 * RATE : 4 * RATE], (5_000,))
    live.embed([session])
    fed(session, wav[4 * RATE :], (5_000,))
    cosine = torch.cosine_similarity(live.embed([session]), model(wav[None]))
    assert float(cosine) > (0.99999 if live.exact else 0.9)
    assert session.settled > 0


@pytest.mark.parametrize("network", ["ecapa_tdnn", "ecapa_reflect", "titanet", "resnet", "xvector"])
@torch.no_grad()
def test_sessions_in_one_batch_do_not_touch_each_other(network: str) -> None:
    model = encoder(network, "kaldi")
    live = LiveEncoder(model, warm_seconds=1)
    signals = [signal(3.3, 1), signal(2.1, 2), signal(0.4, 3)]
    alone, together = [live.open() for _ in signals], [live.open() for _ in signals]
    for part in range(3):
        for one, other, wav in zip(alone, together, signals, strict=True):
            piece = wav[len(wav) * part // 3 : len(wav) * (part + 1) // 3]
            one.push(piece)
            other.push(piece)
        if part == 0:  # the last one has not begun to speak
            expected, found = [live.embed([s]) for s in alone[:2]], live.embed(together[:2])
        else:
            expected, found = [live.embed([s]) for s in alone], live.embed(together)
        torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@torch.no_grad()
def test_memory_does_not_grow(front_end: str) -> None:
    model = encoder("ecapa_tdnn", front_end, sliding_frames=60)
    live = LiveEncoder(model, warm_seconds=1)
    session, kept = live.open(), []
    for second in range(12):
        session.push(signal(1, second))
        live.embed([session])
        kept.append(session.features._raw.shape[1] + len(session.features._samples))
    assert max(kept[4:]) == kept[4] < 5 * RATE / 10


def test_what_cannot_be_embedded() -> None:
    model = encoder("xvector", "kaldi")
    live = LiveEncoder(model)
    session = live.open()
    session.push(torch.zeros(model.min_samples - 1))
    with pytest.raises(AudioError, match=f"needs {model.min_samples}"):
        live.embed([session])
    session.push(torch.zeros(1))
    assert live.embed([session]).isfinite().all()
    with pytest.raises(AudioError, match="NaN"):
        session.push(torch.tensor([float("nan")]))


def test_only_a_local_network_behind_a_local_front_end_is_exact() -> None:
    local = [name for name in NETWORKS if LiveEncoder(encoder(name, "vbx")).exact]
    assert local == ["resnet", "bottleneck", "xvector"]
    ends = [name for name in FRONT_ENDS if LiveEncoder(encoder("xvector", name)).exact]
    assert ends == ["vbx", "mfcc"]


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_features_equal_those_of_the_signal_so_far(front_end: str) -> None:
    config: FrontEndConfig = FRONT_ENDS[front_end]
    features, wav, done = LiveFeatures(config, 0), signal(3), 0
    for stop in (100, 5_000, 5_161, 30_000, 48_000):
        for piece in wav[done:stop].split(1_234):
            features.push(piece)
        done = stop
        if stop < config.min_samples:
            assert features.num_frames == 0
            continue
        expected = FrontEnd(config)(wav[None, :stop])[0][0]
        torch.testing.assert_close(features(0, features.num_frames), expected, atol=2e-4, rtol=1e-4)
