"""What comes only once is held, what has a name is opened by it."""

import io
import os
import sys
import threading
from types import SimpleNamespace

import pytest
import soundfile
import torch

from engine import audio
from engine.errors import AudioError
from engine.sources import held, opened


@pytest.fixture
def pipe(tmp_path):
    """A named pipe, and a function that lets bytes come out of it."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writers = []

    def fill(data):
        writers.append(threading.Thread(target=path.write_bytes, args=(data,), daemon=True))
        writers[-1].start()
        return path

    yield fill
    for writer in writers:
        writer.join(10)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3"])
@pytest.mark.parametrize("seconds", [0.1, 20])  # less and more than a pipe takes at once
def test_a_pipe_is_read_from_its_beginning(tmp_path, pipe, name, seconds):
    audio.save(tmp_path / name, 0.1 * torch.randn(1, int(16000 * seconds)), 16000)
    data = (tmp_path / name).read_bytes()
    expected = audio.load(tmp_path / name)[0]
    assert torch.equal(audio.load(pipe(data))[0], expected)
    assert torch.equal(torch.cat(list(audio.blocks(pipe(data))), dim=1), expected)
    assert audio.probe(pipe(data)).num_samples == expected.shape[1]


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3"])
def test_standard_input_and_file_objects(monkeypatch, container):
    data = io.BytesIO()
    soundfile.write(data, 0.1 * torch.randn(4000).numpy(), 16000, format=container)
    expected, _ = audio.load(io.BytesIO(data.getvalue()))
    assert expected.shape == (1, 4000)

    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    assert torch.equal(audio.load(Pipe(data.getvalue()))[0], expected)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Pipe(data.getvalue())))
    assert torch.equal(audio.load("-")[0], expected)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Pipe(b"hello")))
    with pytest.raises(AudioError, match="standard input is not audio"):
        audio.load("-")


def test_a_pipe_is_held_for_who_reads_it_twice(pipe, tmp_path):
    file = held(pipe(b"some bytes"))
    assert isinstance(file, io.BytesIO) and file.read() == b"some bytes"
    assert file.name == str(tmp_path / "pipe")
    assert held(tmp_path / "x.wav") == tmp_path / "x.wav"
    with pytest.raises(AudioError, match="pipe is a pipe that holds nothing; it can be read only once"):
        held(pipe(b""))
    with pytest.raises(AudioError, match="pipe is not audio"):
        audio.load(pipe(b"hello"))


def test_a_file_with_a_name_is_closed_again(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    with opened(tmp_path / "a") as found:
        assert found.file.read() == b"abc" and (found.name, found.path) == (
            str(tmp_path / "a"),
            os.fsencode(tmp_path / "a"),
        )
    assert found.file.closed
    with opened(io.BytesIO(b"abc")) as found:
        assert (found.name, found.path) == ("the file object", None)
    assert not found.file.closed
