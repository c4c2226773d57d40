"""Embedding that is killed and continues: nothing twice, and the result of a run that was never interrupted."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import speaker
from engine import audio
from engine.errors import ScoreError
from engine.features import kaldi_fbank
from speaker import resumable
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.embedding_files import read
from speaker.model import SpeakerConfig, SpeakerEncoder
from speaker.recordings import list_recordings
from speaker.resumable import embed_resumably, partial_path

COUNT = 12


def small(seed):
    torch.manual_seed(seed)
    network = EcapaTdnnConfig(num_bins=20, channels=16, mfa_channels=24, embedding_dim=8)
    return SpeakerEncoder(SpeakerConfig(front_end=kaldi_fbank(20), network=network)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("resumable")
    (path / "in").mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(COUNT):
        wav = 0.1 * torch.randn(1, 8000 + 1000 * (number * 7 % 5), generator=generator)
        audio.save(path / "in" / f"{number:02d}.wav", wav, 16000)
    (path / "in" / "99.wav").write_text("hello")
    for seed, name in enumerate(("mine", "other")):
        speaker.save(path / name, small(seed), "# x")
    return path


@pytest.fixture
def windows_of_three(monkeypatch):
    monkeypatch.setattr(resumable, "READ_AHEAD", 3)
    monkeypatch.setattr(resumable, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(resumable, "SAVE_SHARE", 1e9)


@pytest.fixture
def embedded(monkeypatch):
    """Names of the files that were embedded, in order."""
    found = []
    embed_files = resumable.embed_files

    def counting(encoder, paths, *arguments, **options):
        found.extend(path.name for path in paths)
        return embed_files(encoder, paths, *arguments, **options)

    monkeypatch.setattr(resumable, "embed_files", counting)
    return found


class Crash(BaseException):
    pass


def crash_after(count):
    def progress(done):
        if done >= count:
            raise Crash

    return progress


def test_a_crashed_run_continues_and_equals_the_whole(folder, tmp_path, windows_of_three, embedded):
    encoder, recordings = speaker.load(folder / "mine"), list_recordings([folder / "in"])
    embed_resumably(encoder, recordings, tmp_path / "whole.npz")
    assert len(embedded) == COUNT + 1
    embedded.clear()
    out = tmp_path / "e.npz"
    with pytest.raises(Crash):
        embed_resumably(encoder, recordings, out, progress=crash_after(6))
    assert embedded == [f"{n:02d}.wav" for n in range(6)] and partial_path(out).exists() and not out.exists()
    embedded.clear()
    _, failed = embed_resumably(encoder, recordings, out)
    assert embedded == [*(f"{n:02d}.wav" for n in range(6, COUNT)), "99.wav"]
    assert list(failed) == [str(folder / "in" / "99.wav")]
    assert not partial_path(out).exists()
    whole, continued = read(tmp_path / "whole.npz"), read(out)
    assert continued.names == whole.names and len(whole.names) == COUNT and continued.model == whole.model
    np.testing.assert_array_equal(continued.vectors, whole.vectors)  # to the bit: the batches are the same
    np.testing.assert_array_equal(continued.seconds, whole.seconds)


def test_a_run_is_continued_by_its_own_model_and_options_alone(folder, tmp_path, windows_of_three, embedded):
    encoder, recordings, out = speaker.load(folder / "mine"), list_recordings([folder / "in"]), tmp_path / "e.npz"
    with pytest.raises(Crash):
        embed_resumably(encoder, recordings, out, progress=crash_after(6))
    other = speaker.load(folder / "other")
    with pytest.raises(ScoreError, match=r"beginning of a run with mine@\w+, this one is with other@.*--force"):
        embed_resumably(other, recordings, out)
    with pytest.raises(ScoreError, match=r"this one is with mine@\w+, bfloat16; give the same"):
        embed_resumably(encoder, recordings, out, bfloat16=True)
    embedded.clear()
    embed_resumably(other, recordings, out, force=True)
    assert len(embedded) == COUNT + 1 and read(out).model.startswith("other@")
    with pytest.raises(ScoreError, match=r"e.npz exists; --force overwrites it"):
        embed_resumably(encoder, recordings, out)
    partial_path(out).write_text("hello")
    with pytest.raises(ScoreError, match="no unfinished run"):
        embed_resumably(encoder, recordings, out, force=True)


def test_a_recording_that_changed_is_embedded_again(folder, tmp_path, windows_of_three, embedded):
    encoder, out = speaker.load(folder / "mine"), tmp_path / "e.npz"
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / "in" / f"{number}.wav").write_bytes((folder / "in" / f"{number:02d}.wav").read_bytes())
    recordings = list_recordings([tmp_path / "in"])
    with pytest.raises(Crash):
        embed_resumably(encoder, recordings, out, progress=crash_after(3))
    (tmp_path / "in" / "1.wav").write_bytes((folder / "in" / "05.wav").read_bytes())
    embedded.clear()
    embed_resumably(encoder, recordings, out)
    assert embedded == ["1.wav", "3.wav"]
    np.testing.assert_allclose(
        read(out).vectors[1], encoder(audio.load(folder / "in" / "05.wav")[0])[0].numpy(), atol=1e-5
    )


def test_sigkill_loses_nothing_that_was_saved(folder, tmp_path, root):
    """The command itself, slowed down so that it can be killed in the middle."""
    out = tmp_path / "e.npz"
    program = (
        "import time\nfrom speaker import cli, resumable\n"
        "resumable.READ_AHEAD, resumable.SAVE_SECONDS, resumable.SAVE_SHARE = 2, 0.0, 1e9\n"
        "embed_files = resumable.embed_files\n"
        "def slowly(encoder, paths, **options):\n    time.sleep({pause})\n    print(len(paths), flush=True)\n"
        "    return embed_files(encoder, paths, **options)\n"
        "resumable.embed_files = slowly\ncli.main()\n"
    )
    arguments = ["embed", str(folder / "in"), "--model", str(folder / "mine"), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}

    def start(pause):
        return subprocess.Popen([sys.executable, "-c", program.format(pause=pause), *arguments], env=environment,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip

    with start(pause=0.3) as first:
        deadline = time.monotonic() + 60
        while not partial_path(out).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
    assert partial_path(out).exists() and not out.exists()
    with np.load(partial_path(out)) as parts:
        done = len(parts["names"])
    with start(pause=0) as second:
        told, problems = second.communicate(timeout=60)
    assert second.returncode == 1 and "continuing" in problems and "99.wav is not audio" in problems
    counts = [int(line) for line in told.splitlines() if line.isdigit()]
    assert 2 <= done < COUNT and sum(counts) == COUNT + 1 - done
    assert f"{COUNT} embeddings of 8 numbers" in told and not partial_path(out).exists()
    encoder = speaker.load(folder / "mine")
    for name, vector in zip(read(out).names, read(out).vectors, strict=True):
        np.testing.assert_allclose(vector, encoder(audio.load(name)[0])[0].numpy(), atol=1e-5)
