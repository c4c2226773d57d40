"""ONNX Runtime in place of PyTorch: the same codes and sound, states that change hands."""

import sys

import pytest
import torch

import codec
from codec.config import EscLiveConfig
from codec.live import EscLive
from codec.onnx_live import OnnxLive
from codec.stream import live_decoder, live_encoder
from engine import audio
from engine.errors import AudioError, ConfigError, SpeechError
from engine.pipeline import run
from engine.sessions import Sessions

pytest.importorskip("onnx", reason="builds the graphs")
pytest.importorskip("onnxruntime", reason="runs the graphs")


@pytest.fixture(scope="module")
def model():
    return codec.load("esc_live")


@pytest.fixture(scope="module")
def fast(model):
    return OnnxLive(model)


@pytest.fixture(scope="module")
def speech(recordings):
    """(1, n): all recordings, whole frames."""
    wav = torch.cat([audio.load(path, 16000, mono=True)[0] for path in recordings], dim=1)
    return wav[:, : wav.shape[1] // 320 * 320]


def test_codes_and_sound_of_real_speech_are_the_same(model, fast, speech):
    assert speech.shape[1] > 1000 * 320
    whole = model.encode(speech)[..., : speech.shape[1] // 320]
    state = fast.initial_encoder_state(1)
    codes = torch.cat([fast.encode(part, state=state) for part in speech.split(3200, dim=1)], dim=-1)
    assert (codes == whole).float().mean() > 0.999  # near ties may fall the other way
    state = fast.initial_decoder_state(1)
    heard = torch.cat([fast.decode(part, state=state) for part in whole.split(7, dim=-1)], dim=1)
    torch.testing.assert_close(heard[:, 160:], model.decode(whole), atol=1e-4, rtol=0)


@pytest.mark.parametrize("levels", range(1, 7))
@pytest.mark.parametrize("batch", [1, 3])
def test_every_rate_and_batch_of_any_model(levels, batch):
    """A model with random weights everywhere, scales in another order, several blocks a stage."""
    torch.manual_seed(levels)
    model = EscLive(
        EscLiveConfig(
            channels=(16, 16, 32, 32), encoder_depths=(1, 2, 1, 1), decoder_depths=(2, 1, 1, 1, 1, 1), head_channels=8,
            codebook_dims=(4, 3, 4, 4, 5, 4), codebook_size=32, level_scales=(3, 2, 2, 1, 1, 0),
        )
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    fast = OnnxLive(model)
    wav = 0.1 * torch.randn(batch, 320 * 12)
    states = fast.initial_encoder_state(batch), model.initial_encoder_state(batch)
    codes = [m.encode(wav, levels=levels, state=state) for m, state in zip((fast, model), states, strict=True)]
    assert torch.equal(*codes) and codes[0].shape == (batch, levels, 3, 12)
    for a, b in zip(states[0].tensors(), states[1].tensors(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    heard = [m.decode(codes[0], state=m.initial_decoder_state(batch)) for m in (fast, model)]
    torch.testing.assert_close(*heard, atol=1e-4, rtol=1e-4)


def test_a_session_changes_hands_in_mid_stream(model, fast, speech):
    wav = speech[:, 32000:64000]
    expected = model.encode(wav)[..., :100]
    state, codes = model.initial_encoder_state(1), []
    for i, part in enumerate(wav.split(3200, dim=1)):
        backend = (model, fast)[i % 2]
        codes.append(backend.encode(part, state=state))
        state = backend.initial_encoder_state(1).load_bytes(state.to_bytes())
    assert (torch.cat(codes, dim=-1) == expected).float().mean() > 0.999


def test_sessions_and_stages_take_it(model, fast, speech):
    sessions = Sessions(fast.initial_encoder_state, lambda wav, state: fast.encode(wav, state=state))
    talking = [sessions.open() for _ in range(3)]
    frames = speech[:, 32000:33600].split(320, dim=1)
    got = [sessions.step(dict.fromkeys(talking[: 1 + i % 3], frame[0])) for i, frame in enumerate(frames)]
    alone = model.encode(torch.cat(frames, dim=1))[0, ..., :5]
    assert torch.equal(torch.cat([step[talking[0]] for step in got], dim=-1), alone)
    codes = list(run(speech[:, 32000:40000].split(441, dim=1), live_encoder(fast, 16000, levels=2)))
    heard = torch.cat(list(run(codes, live_decoder(fast, 16000))), dim=1)
    offline = model.decode(model.encode(speech[:, 32000:40000], levels=2))
    torch.testing.assert_close(heard, offline, atol=1e-4, rtol=0)


def test_bad_input_is_named(fast, monkeypatch):
    state = fast.initial_encoder_state(1)
    with pytest.raises(AudioError, match="multiple of 320"):
        fast.encode(torch.zeros(1, 100), state=state)
    with pytest.raises(AudioError, match="NaN"):
        fast.encode(torch.full((1, 320), float("nan")), state=state)
    with pytest.raises(ConfigError, match="levels must be 1 to 6"):
        fast.encode(torch.zeros(1, 320), levels=7, state=state)
    with pytest.raises(ConfigError, match="codes must be 0 to 1023"):
        fast.decode(torch.full((1, 6, 3, 1), 1024), state=fast.initial_decoder_state(1))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SpeechError, match=r"pip install 'voxcode\[onnx\]'"):
        OnnxLive(fast.model)
