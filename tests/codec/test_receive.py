"""Sending and receiving: no loss, no difference; losses fade and heal; silence costs next to nothing."""

import numpy as np
import pytest
import torch

import codec
from codec.jitter import JitterBuffer, Slot
from codec.packets import PacketFormat
from codec.receive import ReceiveStage
from codec.send import SendStage
from codec.silence import ActivityDetector, ComfortNoise, describe
from engine import audio
from engine.errors import ConfigError
from engine.pipeline import Rebuffer, run


@pytest.fixture(scope="module")
def model():
    return codec.load("esc_live")


@pytest.fixture(scope="module")
def speech(recordings):
    return audio.load(recordings[0], 16000, mono=True)[0][:, :48000]


def send(model, wav, frames=1, **options):
    sender = SendStage(model, **options)
    return list(run([wav], Rebuffer(frames * 320, tail=160, unit=320), sender)), sender


def receive(model, packets, frames=1, depth=0):
    buffer, form, stage = JitterBuffer(frames, depth), PacketFormat(), ReceiveStage(model)
    slots = [slot for p in packets for slot in buffer.push(form.unpack(p))] + buffer.flush()
    return torch.cat([wav for slot in slots for wav in stage.push(slot)], dim=1)


@pytest.mark.parametrize("frames, redundancy", [(1, 0), (3, 2)])
def test_without_losses_it_is_the_codec(model, speech, frames, redundancy):
    packets, _ = send(model, speech, frames, levels=3, redundancy=redundancy)
    heard = receive(model, packets, frames)
    offline = model.decode(model.encode(speech, levels=3))
    torch.testing.assert_close(heard[:, : offline.shape[1]], offline[:, : heard.shape[1]], atol=1e-5, rtol=0)


def test_one_lost_packet_is_heard_for_a_moment_only(model, speech):
    packets, _ = send(model, speech)
    whole, gap = receive(model, packets), receive(model, packets[:60] + packets[61:])
    assert whole.shape == gap.shape
    difference = (whole - gap)[0].abs()
    assert not difference[: 60 * 320 - 160].any() and difference[60 * 320 - 160 : 61 * 320].any()
    assert difference[75 * 320 :].square().mean() < 0.02 * whole[0, 75 * 320 :].square().mean()


def test_long_losses_fade_to_silence_and_end_without_a_click(model, speech):
    packets, _ = send(model, speech)
    heard = receive(model, packets[:60] + packets[90:])[0]
    start = 60 * 320 - 160
    assert heard[start : start + 320].abs().max() > 0
    assert not heard[start + 8 * 320 : start + 29 * 320].any()
    jumps = heard.diff().abs()
    assert jumps[start : start + 31 * 320].max() <= 1.5 * receive(model, packets)[0].diff().abs().max()


def test_redundancy_heals_better_than_repetition(model, speech):
    packets, _ = send(model, speech, redundancy=1)
    lost = set(range(30, 140, 5))
    arrived = [p for i, p in enumerate(packets) if i not in lost]
    plain = [p for i, p in enumerate(send(model, speech)[0]) if i not in lost]
    whole = receive(model, packets)
    error = [float((receive(model, p) - whole).square().mean()) for p in (arrived, plain)]
    assert error[0] < 0.8 * error[1]
    with pytest.raises(ConfigError, match="0 to 7 frames"):
        SendStage(model, redundancy=8)


def test_nothing_ever_came_is_silence(model):
    assert not ReceiveStage(model).push(Slot(3, None))[0].any()


def room(num_samples, level=1e-3, seed=0):
    return level * torch.randn(1, num_samples, generator=torch.Generator().manual_seed(seed))


def test_pauses_cost_next_to_nothing_and_speech_stays(model, speech):
    wav = torch.cat([speech[:, 8000:24000], room(48000), speech[:, 24000:40000]], dim=1) + room(80000, seed=1)
    everything, _ = send(model, wav)
    packets, sender = send(model, wav, dtx=True)
    # 3 s of pause in 5 s of sound; the hang-over and pauses between words take and give a little.
    assert 100 <= sender.num_silent <= 160
    assert sum(map(len, packets)) < 0.6 * sum(map(len, everything))
    heard, full = receive(model, packets), receive(model, everything)
    assert heard.shape == full.shape
    inside = slice(28000, 60000)  # well inside the pause
    ratio = heard[0, inside].square().mean() / wav[0, inside].square().mean()
    assert 0.25 < ratio < 4  # the room sounds about as loud as it is
    said = slice(1000, 15000)
    torch.testing.assert_close(heard[0, said], full[0, said], atol=1e-5, rtol=0)


def test_the_background_keeps_its_level_and_colour():
    coloured = torch.nn.functional.conv1d(room(64000, 0.01)[None], torch.ones(1, 1, 8) / 8)[0]
    made = ComfortNoise(16000).frames(describe(coloured[0]), 64000)
    assert 10 * np.log10(float(made.square().mean() / coloured.square().mean())) == pytest.approx(0, abs=1)
    bands = [10 * torch.log10(torch.stft(w, 512, window=torch.hann_window(512), return_complex=True).abs()
                           .square().mean(1)[1:].reshape(8, -1).sum(1)) for w in (made, coloured[0])]  # fmt: skip
    assert float((bands[0] - bands[1]).abs().mean()) < 4
    pieces = ComfortNoise(16000)
    joined = torch.cat([pieces.frames(describe(coloured[0]), n) for n in (1, 319, 640, 40)])
    assert torch.equal(joined, made[:1000])
    assert not ComfortNoise(16000).frames(b"cut", 320).any()


def test_the_detector_hears_who_speaks_at_once_and_without_a_pause():
    detector = ActivityDetector()
    assert all(detector.is_speech(0.05 * torch.randn(320)) for _ in range(500))
    quiet = [detector.is_speech(1e-3 * torch.randn(320)) for _ in range(60)]
    assert quiet[0] and not any(quiet[20:])
    louder = [detector.is_speech(4e-3 * torch.randn(320)) for _ in range(400)]  # the room gets louder
    assert louder[0] and not any(louder[200:])
    assert detector.is_speech(0.05 * torch.randn(320))
    assert not any(ActivityDetector().is_speech(torch.zeros(320)) for _ in range(30))
