"""Files whole: what comes through a pipe or from a recorder that was killed is coded like the file itself."""

import io
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

import codec
from codec import files
from codec.config import EscLiveConfig
from codec.live import EscLive
from engine import audio, checkpoint

TINY = EscLiveConfig(
    channels=(16, 16, 16, 16),
    encoder_depths=(1, 0, 0, 1),
    decoder_depths=(1, 0, 0, 0, 0, 1),
    codebook_dims=(4, 4, 4, 4, 4, 4),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    checkpoint.save(folder, EscLive(TINY), kind="esc_live", config=TINY, card="# tiny")
    return codec.load(folder)


@pytest.fixture
def speech(tmp_path, recordings):
    """Three seconds of a bundled recording, more than a pipe takes at once."""
    wav, rate = audio.load(recordings[0])
    audio.save(tmp_path / "a.wav", wav[:, : 3 * rate], rate)
    return tmp_path / "a.wav"


def encoded(model, source, target):
    files.encode_file(model, str(source), str(target), force=True)
    return target.read_bytes()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_with_a_name_is_coded_from_its_beginning(model, speech, tmp_path):
    expected = encoded(model, speech, tmp_path / "a.esc")
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(speech.read_bytes(),), daemon=True)
    writer.start()
    assert encoded(model, tmp_path / "pipe", tmp_path / "b.esc") == expected
    writer.join(10)


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="this system names no descriptors")
def test_the_output_of_a_process_is_coded_from_its_beginning(model, speech, tmp_path):
    expected = encoded(model, speech, tmp_path / "a.esc")
    copy = "import shutil, sys; shutil.copyfileobj(open(sys.argv[1], 'rb'), sys.stdout.buffer)"
    with subprocess.Popen([sys.executable, "-c", copy, str(speech)], stdout=subprocess.PIPE) as process:
        assert encoded(model, f"/dev/fd/{process.stdout.fileno()}", tmp_path / "b.esc") == expected


def test_what_a_killed_recorder_left_is_coded_from_a_file_and_from_standard_input(model, speech, tmp_path, monkeypatch):
    expected = encoded(model, speech, tmp_path / "a.esc")
    data = bytearray(speech.read_bytes())
    data[4:8] = data[40:44] = bytes(4)  # a header of 44 bytes, whose sizes were never filled in
    speech.write_bytes(data)
    assert encoded(model, speech, tmp_path / "b.esc") == expected
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    assert encoded(model, "-", tmp_path / "c.esc") == expected
