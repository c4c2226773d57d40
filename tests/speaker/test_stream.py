"""speaker/stream.py, speaker/sequential.py: hops, chunking, sessions, the gate, and when to stop."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.errors import ConfigError
from engine.features import kaldi_fbank
from engine.pipeline import run
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.live import LiveEncoder
from speaker.model import SpeakerConfig, SpeakerEncoder
from speaker.sequential import SequentialTest
from speaker.stream import EmbedStage, SpeechGate

RATE = 16_000


@pytest.fixture(scope="module")
def live() -> LiveEncoder:
    torch.manual_seed(0)
    network = EcapaTdnnConfig(num_bins=10, channels=16, mfa_channels=24, squeeze_channels=4, embedding_dim=8)
    encoder = SpeakerEncoder(SpeakerConfig(front_end=kaldi_fbank(10), network=network)).eval()
    return LiveEncoder(encoder, warm_seconds=1)


def noise(seconds: float, level: float = 0.1, seed: int = 0) -> Tensor:
    return level * torch.randn(1, round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


def test_one_result_a_hop_whatever_the_chunks(live: LiveEncoder) -> None:
    wav = noise(2.7)
    results = [list(run(wav.split(size, dim=1), EmbedStage(live))) for size in (len(wav[0]), 16_000, 777)]
    for result in results:
        assert [each.seconds for each in result] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.5, 2.7])
        for found, expected in zip(result, results[0], strict=True):
            np.testing.assert_allclose(found.vectors[0], expected.vectors[0], atol=1e-5)


def test_ungated_begins_like_the_file(live: LiveEncoder) -> None:
    """Within the time that is exact."""
    wav = noise(1.0)
    first, second = run([wav], EmbedStage(live, gate=False))
    assert (first.speech, second.speech) == ([0.5], [1.0])
    with torch.no_grad():
        np.testing.assert_allclose(second.vectors[0], live.encoder(wav)[0], atol=1e-4)


def test_channels_are_sessions(live: LiveEncoder) -> None:
    one, other = noise(2, seed=1), torch.cat([torch.zeros(1, RATE), noise(1, seed=2)], dim=1)
    both = list(run([torch.cat([one, other])], EmbedStage(live, channels=2)))
    assert [each.vectors[1] is None for each in both] == [True, True, False, False]
    for channel, wav in enumerate((one, other)):
        alone = list(run([wav], EmbedStage(live)))
        for together, single in zip(both, alone, strict=True):
            assert together.speech[channel] == single.speech[0]
            if single.vectors[0] is not None:
                np.testing.assert_allclose(together.vectors[channel], single.vectors[0], atol=1e-5)


def test_nothing_new_is_not_embedded_again(live: LiveEncoder) -> None:
    wav = torch.cat([noise(1), torch.zeros(1, 3 * RATE)], dim=1)
    results = list(run([wav], EmbedStage(live)))
    assert results[-1].vectors[0] is results[4].vectors[0] is not None
    assert results[-1].speech == [pytest.approx(1.0, abs=0.05)]


def test_gate_passes_speech_and_the_edges_of_pauses() -> None:
    speech, pause = noise(1)[0], noise(1, level=0.0005)[0]
    gate = SpeechGate(RATE)
    signal = torch.cat([pause, speech, pause, speech])
    passed = torch.cat([gate.push(piece) for piece in signal.split(1_111)])
    assert gate.speech == pytest.approx(2.0, abs=0.05)
    assert len(passed) / RATE == pytest.approx(0.2 + 1 + 0.2 + 0.2 + 1, abs=0.05)  # 0.2 s at each edge of a pause
    whole = SpeechGate(RATE)
    assert torch.equal(whole.push(signal)[: len(passed)], passed)


def test_gate_is_shut_for_silence() -> None:
    gate = SpeechGate(RATE)
    assert len(gate.push(torch.zeros(RATE))) == 0 == gate.speech
    assert len(gate.push(0.0005 * noise(1)[0])) == 0


def test_a_hop_has_to_be_longer_than_nothing(live: LiveEncoder) -> None:
    with pytest.raises(ConfigError, match="too often"):
        EmbedStage(live, hop_seconds=0.001)


def test_sequential_test_stops_at_walds_bounds() -> None:
    test = SequentialTest(false_accept=0.001, false_reject=0.01)
    assert test.accept == pytest.approx(math.log(990))
    assert test.reject == pytest.approx(math.log(0.01 / 0.999))
    assert [test.update(llr) for llr in (0, 6.8, -4.5, 6.9, -9)] == ["undecided"] * 3 + ["same", "same"]
    assert SequentialTest().update(-4.7) == "different"
    for errors in ((0, 0.1), (0.5, 0.5), (0.1, 1)):
        with pytest.raises(ConfigError, match="probabilities"):
            SequentialTest(*errors)


def test_sequential_errors_stay_within_what_is_allowed() -> None:
    """Gaussian evidence with known ratios: both kinds of error are rarer than asked for."""
    rng = np.random.default_rng(0)
    for target in (True, False):
        steps = rng.normal(0.5 if target else -0.5, 1, (4_000, 200))  # log-likelihood ratios of N(.5, 1) : N(-.5, 1)
        decisions = []
        for path in steps.cumsum(1):
            test = SequentialTest(false_accept=0.02, false_reject=0.05)
            decisions.append(next(d for d in map(test.update, path) if d != "undecided"))
        wrong = decisions.count("different" if target else "same") / len(decisions)
        assert 0 < wrong < (0.05 if target else 0.02)
