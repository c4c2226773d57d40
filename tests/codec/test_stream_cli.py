"""`codec stream`: real processes and pipes; formats, losses, interruption, broken pipes, damage."""

import io
import os
import signal
import subprocess
import sys
import zlib

import numpy as np
import pytest
import soundfile
import torch

import codec
from codec.packet_stream import PacketReader
from codec.packets import Packet
from engine import audio

COMMAND = [sys.executable, "-c", "from codec.cli import main; main()", "stream"]


def stream(*arguments, data, status=0, root=None):
    done = subprocess.run([*COMMAND, *arguments], input=data, capture_output=True, timeout=120)
    assert done.returncode == status, done.stderr.decode()
    return done.stdout, done.stderr.decode()


@pytest.fixture(scope="module", autouse=True)
def here(root):
    """The commands run from the checkout, installed or not."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(root)
    yield
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.fixture(scope="module")
def pcm(recordings):
    """int16 (n,): two seconds of speech at 16 kHz."""
    return audio.to_pcm16(audio.load(recordings[0], 16000, mono=True)[0][0, 8000:40001]).numpy()


@pytest.fixture(scope="module")
def packets(pcm):
    return stream("encode", "-b", "6", "--packet", "40", "--redundancy", "2", data=pcm.tobytes())[0]


def test_raw_there_and_back_equals_offline(pcm, packets):
    heard = np.frombuffer(stream("decode", data=packets)[0], dtype="<i2")
    model = codec.load("esc_live")
    wav = torch.from_numpy(pcm.astype(np.float32))[None] / 32768
    offline = audio.to_pcm16(model.decode(model.encode(wav, levels=4), num_samples=len(pcm)))[0].numpy()
    assert len(heard) == len(pcm) and np.abs(heard.astype(int) - offline).max() <= 1


def test_wav_at_another_rate_keeps_its_rate_and_length(pcm, tmp_path):
    wav = audio.resample(torch.from_numpy(pcm.astype(np.float32)) / 32768, 16000, 44100)
    soundfile.write(tmp_path / "in.wav", np.stack([wav, wav], 1), 44100)
    coded, _ = stream("encode", "-b", "3", data=(tmp_path / "in.wav").read_bytes())
    assert len(stream("decode", data=coded)[0]) == 2 * len(wav)
    assert len(stream("decode", "--rate", "8000", data=coded)[0]) == 2 * -(-len(wav) * 8000 // 44100)


def test_losses_and_their_concealment(pcm, packets):
    thinned, _ = stream("channel", "--loss", "20", "--burst", "2", "--seed", "3", data=packets)
    assert len(thinned) < 0.95 * len(packets)
    heard, _ = stream("decode", "--jitter", "1", data=thinned)
    assert len(heard) == 2 * len(pcm)  # the end too, should it be lost: the stream says how much there was
    assert stream("channel", "--loss", "0", data=packets)[0] == packets


def test_the_end_of_the_input_may_be_half_a_sample(pcm):
    coded, told = stream("encode", data=pcm.tobytes() + b"\x01")
    assert "ends inside a sample" in told and len(stream("decode", data=coded)[0]) == 2 * len(pcm)
    assert stream("decode", data=stream("encode", data=b"")[0])[0] == b""


def test_streams_cut_off_or_damaged_are_heard_as_far_as_they_go(pcm, packets):
    heard, told = stream("decode", data=packets[: len(packets) // 2])
    assert "cut off" in told and 0.3 * len(pcm) < len(heard) / 2 < 0.6 * len(pcm)
    hurt = bytearray(packets)
    start = len(PacketReader(io.BytesIO(packets)).header.to_bytes())
    hurt[start + 3] ^= 0x38  # another number of levels than there are
    heard, told = stream("decode", data=bytes(hurt))
    assert "a packet is dropped" in told and "1 damaged" in told and np.abs(np.frombuffer(heard, "<i2")).max() < 32767


def test_a_silent_end_is_as_long_as_it_was(pcm):
    """Silence that is not sent: no packet tells of its end."""
    rng = np.random.default_rng(0)
    quiet = np.concatenate([pcm, rng.integers(-8, 8, 33_000).astype(pcm.dtype)])
    coded, _ = stream("encode", "--dtx", data=quiet.tobytes())
    assert len(stream("decode", data=coded)[0]) == 2 * len(quiet)


def test_a_packet_of_another_model_is_dropped(packets):
    """Well formed, with more levels than there are: it must not end the call."""
    reader = PacketReader(io.BytesIO(packets))
    form, bodies = reader.header.packet_format, list(reader)
    packet = form.unpack(bodies[9])
    more = np.concatenate([packet.codes] * 2)[:7]
    odd = bytearray(reader.header.to_bytes())
    for number, body in enumerate(bodies):
        body = form.pack(Packet(packet.sequence, more, packet.redundant)) if number == 9 else body
        odd += len(body).to_bytes(2, "big") + body
    heard, told = stream("decode", data=bytes(odd))
    assert "7 levels" in told and "the model has 6 levels" in told and "1 damaged" in told
    assert len(heard) > 0.9 * 2 * 32_000


def test_a_file_of_another_kind_is_no_raw_sound(recordings):
    told = stream("encode", data=recordings[0].read_bytes(), status=2)[1]
    assert "begins with b'fLaC'" in told and "ffmpeg" in told


def test_errors_say_the_way_out(packets, pcm):
    assert "no stream of packets" in stream("decode", data=pcm.tobytes(), status=2)[1]
    assert "stream is empty" in stream("decode", data=b"", status=2)[1]
    assert "offers 1.5, 3" in stream("encode", "-b", "5", data=b"", status=2)[1]
    assert "one of 20, 40" in stream("encode", "--packet", "30", data=b"", status=2)[1]
    assert "bursts" in stream("channel", "--burst", "0", data=packets, status=2)[1]
    assert "below 100, not 200" in stream("channel", "--loss", "200", data=packets, status=2)[1]
    other = bytearray(packets)
    body = len(PacketReader(io.BytesIO(packets)).header.to_bytes())
    other[13:19] = b"strange"[:6]
    other[body - 4 : body] = zlib.crc32(other[: body - 4]).to_bytes(4, "big")
    told = stream("decode", data=bytes(other), status=2)[1]
    assert b"strang".hex() in told and "esc_live" in told and "--model" in told


def test_frames_come_out_while_the_input_is_open_and_an_interrupt_ends_the_call(pcm):
    """A second goes in, nearly all of its packets come out before anything is closed; Ctrl-C then finishes the rest."""
    process = subprocess.Popen([*COMMAND, "encode"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    process.stdin.write(pcm[:16000].tobytes())
    process.stdin.flush()
    reader = PacketReader(process.stdout)
    packets = iter(reader)
    got = [next(packets) for _ in range(48)]
    process.send_signal(signal.SIGINT)
    got += list(packets)
    assert process.wait(60) == 0 and reader.num_samples == 16000 and len(got) == 51 and not reader.cut_off
    process.stdin.close()
    process.stdout.close()


def test_a_reader_that_goes_away_ends_it_quietly(pcm, tmp_path):
    (tmp_path / "in.raw").write_bytes(pcm.tobytes() * 4)
    with (tmp_path / "in.raw").open("rb") as source:
        process = subprocess.Popen([*COMMAND, "encode"], stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout
        process.stdout.close()
        assert process.wait(60) == 1 and process.stderr and process.stderr.read() == b""
        process.stderr.close()
