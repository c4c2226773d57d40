"""Batch normalization after training: statistics of what it is used with, and channels that are asleep."""

import pytest
import torch
from torch import nn

import speaker
from engine.errors import ConfigError
from engine.features import kaldi_fbank
from recipes import norms
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.backbones.xvector import XvectorConfig
from speaker.model import SpeakerConfig, SpeakerEncoder


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    network = EcapaTdnnConfig(num_bins=24, channels=16, mfa_channels=24, res2_scale=4, squeeze_channels=8,
                              attention_channels=8, embedding_dim=8)  # fmt: skip
    return SpeakerEncoder(SpeakerConfig(front_end=kaldi_fbank(24), network=network)).eval()


def test_statistics_are_those_of_all_batches(encoder):
    batches = [0.1 * torch.randn(4, 8000), 0.01 * torch.randn(4, 12000)]
    seen = []
    first = norms.norms(encoder)[0]
    hook = first.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    momentum = first.momentum
    norms.settle(encoder, iter(batches))
    hook.remove()
    means = torch.stack([x.mean((0, 2)) for x in seen])
    torch.testing.assert_close(first.running_mean, means.mean(0), atol=1e-4, rtol=1e-4)
    assert first.momentum == momentum and not any(norm.training for norm in norms.norms(encoder))


def test_a_channel_that_hardly_woke_is_switched_off():
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(5))
    norm = net[0]
    norm.running_var = torch.tensor([1.0, 2.0, 1e-6, 0.0, 3.0])
    norm.running_mean = torch.tensor([0.0, 0.0, 1e-3, 0.0, 0.0])
    nn.init.constant_(norm.bias, 0.5)
    net.eval()
    awake = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0]])
    assert net(awake)[0, 2] > 100  # a thousand times its spread
    assert norms.switch_off(net) == (2, 5)
    after = net(awake)[0]
    torch.testing.assert_close(after[2:4], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(after[0], torch.tensor(1.5))
    assert norms.switch_off(nn.Sequential(nn.BatchNorm1d(5, affine=False))) == (0, 0)


def test_what_is_of_another_run_is_refused(encoder, tmp_path, monkeypatch):
    speaker.save(tmp_path / "m", encoder, "# m\n\n## Data\nnone\n")
    monkeypatch.setattr(norms, "load_recipe", lambda *_: norms.SpeakerRecipe(name="x", network=XvectorConfig()))
    with pytest.raises(ConfigError, match="is no encoder of"):
        norms.run(tmp_path / "m", tmp_path / "run", tmp_path / "cache", 2)
    with pytest.raises(ConfigError, match="one step or more"):
        norms.run(tmp_path / "m", tmp_path / "run", tmp_path / "cache", 0)
