"""Long and many: a stream keeps its count and its memory, sessions come and go without a trace.

The full length is simulated with `SOAK_HOURS=3 pytest tests/codec/test_soak.py`; by default it is shortened.
"""

import gc
import os
import resource

import pytest
import torch

from codec.config import EscLiveConfig
from codec.live import EscLive
from codec.stream import live_decoder, live_encoder
from engine.sessions import Sessions

HOURS = float(os.environ.get("SOAK_HOURS", 0.015))


@pytest.fixture(scope="module")
def model() -> EscLive:
    torch.manual_seed(0)
    return EscLive(
        EscLiveConfig(
            channels=(16, 16, 16, 32), encoder_depths=(1, 1, 1, 1), decoder_depths=(1,) * 6, codebook_dims=(4,) * 6,
            codebook_size=16,
        )
    ).eval()  # fmt: skip


def tensors_alive() -> int:
    gc.collect()
    return sum(1 for thing in gc.get_objects() if type(thing) is torch.Tensor)


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_a_long_stream_neither_drifts_nor_grows(model):
    """48 kHz in and out, in chunks of 10 ms and a bit: after hours the output is where it was after seconds."""
    encoder, decoder = live_encoder(model, 48000), live_decoder(model, 48000)
    chunk = 0.1 * torch.randn(1, 481)
    total = int(HOURS * 3600 * 48000)
    said = heard = 0
    lags, alive, memory = [], [], []
    while said < total:
        said += chunk.shape[1]
        for codes in encoder.push(chunk):
            heard += sum(wav.shape[1] for wav in decoder.push(codes))
        lags.append(said - heard)
        if said // (total // 20) > len(alive):
            alive.append(tensors_alive())
            memory.append(peak_megabytes())
    tail = len(lags) // 4
    assert max(lags[-tail:]) <= max(lags[tail : 2 * tail]) + 960 and min(lags) > 0
    assert max(alive[5:]) - min(alive[5:]) <= 8
    assert memory[-1] - memory[5] < 8
    heard += sum(wav.shape[1] for codes in encoder.flush() for wav in decoder.push(codes))
    heard += sum(wav.shape[1] for wav in decoder.flush())
    assert 0 <= heard - said < 2 * 960


def test_a_thousand_sessions_leave_nothing_behind(model):
    sessions = Sessions(model.initial_encoder_state, lambda wav, state: model.encode(wav, state=state))
    frame = 0.1 * torch.randn(320)

    def come_and_go(count: int) -> None:
        for _ in range(count):
            talking = [sessions.open() for _ in range(4)]
            sessions.step(dict.fromkeys(talking, frame))
            for session in talking:
                sessions.close(session)

    come_and_go(20)
    before, memory = tensors_alive(), peak_megabytes()
    come_and_go(250)
    assert tensors_alive() == before and peak_megabytes() - memory < 8
    assert len(sessions) == 0 and sessions.capacity == 1
