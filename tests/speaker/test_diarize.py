"""Who spoke when, from a file to segments, as a user meets it."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import speaker
from engine import audio
from engine.errors import SpeechError
from speaker import windows
from speaker.cli import app
from speaker.diarize import BackEnd, DiarizationConfig, diarize
from speaker.evidence import calibration_of
from speaker.naming import match
from speaker.rttm import read_rttm

pytest.importorskip("scipy", reason="the extra diarize is not installed")


@pytest.fixture(scope="module")
def encoder():
    return speaker.load("ecapa")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, recordings):
    """Two voices taking turns, twice; one of them alone; other things that are given to commands."""
    path = tmp_path_factory.mktemp("diarize")
    of = {p.stem: audio.load(p, 16000, mono=True)[0] for p in recordings}
    pause = torch.zeros(1, 8000)
    turns = [of["allison_1"], pause, of["carlo_1"], pause, of["allison_2"], pause, of["carlo_2"]]
    audio.save(path / "two.wav", torch.cat(turns, dim=1), 16000)
    audio.save(path / "one.wav", of["allison_1"], 16000)
    audio.save(path / "stereo.wav", of["carlo_1"].expand(2, -1), 16000)
    audio.save(path / "phone.wav", audio.resample(of["carlo_1"], 16000, 8000), 8000)
    audio.save(path / "silence.wav", torch.zeros(1, 48000), 16000)
    audio.save(path / "tiny.wav", 0.1 * torch.randn(1, 100), 16000)
    audio.save(path / "nan.wav", torch.full((1, 48000), 0.3), 16000, subtype="FLOAT")
    (path / "nan.wav").write_bytes((path / "nan.wav").read_bytes()[:-4] + np.float32(np.nan).tobytes())
    return path


@pytest.fixture
def run(folder, monkeypatch):
    monkeypatch.chdir(folder)

    def call(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def test_two_voices_are_told_apart_and_named(run, folder, recordings):
    pytest.importorskip("matplotlib")
    run("embed", recordings[0], recordings[2], "--out", "e.npz")
    with np.load("e.npz") as parts:
        np.savez("who.npz", names=["allison/1", "carlo/1"], embeddings=parts["embeddings"], model=parts["model"])
    found = run("diarize", "two.wav", "--num-speakers", 2, "--rttm", "two.rttm", "--plot", "two.png",
                "--json", "--enrolled", "who.npz")  # fmt: skip
    told = json.loads(found.stdout)
    assert told["speakers"] == ["allison", "carlo"] and min(told["log_likelihood_ratios"].values()) > 0
    segments = read_rttm(folder / "two.rttm")["two"]
    first = audio.probe(recordings[0]).duration
    second = first + 0.5 + audio.probe(recordings[2]).duration
    assert {s.speaker for s in segments if s.end < first + 0.2} == {"allison"}
    # Somebody enrolled under a name like a number is one person, and so is the other voice.
    with np.load("e.npz") as parts:
        np.savez("odd.npz", names=["speaker_2/1"], embeddings=parts["embeddings"][:1], model=parts["model"])
        np.savez("alien.npz", names=["a/1"], embeddings=parts["embeddings"][:1], model=np.array("x@0123456789ab"))
    odd = json.loads(run("diarize", "two.wav", "--num-speakers", 2, "--json", "--enrolled", "odd.npz").stdout)
    assert odd["speakers"] == ["speaker_2", "speaker_3"]
    with pytest.raises(Exception, match="alien.npz is of x@0123456789ab"):
        run("diarize", "two.wav", "--enrolled", "alien.npz")
    with pytest.raises(SpeechError, match="and so does --num-speakers"):
        run("diarize", "two.wav", "--num-speakers", 2, "--threshold", "0")
    assert {s.speaker for s in segments if first + 0.2 < s.start and s.end < second + 0.2} == {"carlo"}
    assert (folder / "two.png").stat().st_size > 5_000
    with pytest.raises(SpeechError, match="--force"):
        run("diarize", "two.wav", "--rttm", "two.rttm")


def test_one_voice_is_one_speaker(run):
    lines = run("diarize", "one.wav").stdout.splitlines()
    assert lines[0].split() == ["start", "end", "speaker"]
    assert {line.split()[2] for line in lines[1:]} == {"speaker_1"}


def test_a_threshold_is_for_agglomerative_clustering(run):
    """It may be given alone: at a ratio that no pair has everybody is one, or each window is somebody."""
    for ratio, many in ((-1000, False), (1000, True)):
        told = json.loads(run("diarize", "two.wav", "--threshold", ratio, "--json").stdout)
        assert (len(told["speakers"]) > 1) == many
    with pytest.raises(SpeechError, match="a threshold is for the clustering 'ahc'"):
        DiarizationConfig(cosine_threshold=0.5)
    with pytest.raises(SpeechError, match="leave --cluster ahc out"):
        diarize(speaker.load("ecapa"), "two.wav", config=DiarizationConfig(cluster="ahc"), models=BackEnd())


def test_stereo_and_telephone_are_said(run, caplog):
    assert "speaker_1" in run("diarize", "stereo.wav", "--num-speakers", "1").stdout
    assert "2 channels are mixed to one" in caplog.text
    assert "speaker_1" in run("diarize", "phone.wav", "--num-speakers", "1").stdout
    assert "recorded at 8000 Hz" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["silence.wav"], "no speech found in 3.0 s"),
        (["tiny.wav"], "0.01 s are too short"),
        (["nan.wav"], "NaN or infinity"),
        (["none.wav"], "no such file"),
        (["one.wav", "--num-speakers", "99"], "99 speakers are more than the"),
        (["one.wav", "--num-speakers", "0"], "at least 1"),
        (["one.wav", "--vad", "webrtc"], "energy, silero"),
        (["one.wav", "--cluster", "kmeans"], "ahc, spectral"),
        (["one.wav", "--plot", "x.pdf"], "must end in .png"),
        (["one.wav", "--cluster", ""], "ahc, spectral"),
        (["one.wav", "--cluster", "spectral", "--threshold", "0"], "--threshold is for --cluster ahc"),
        (["one.wav", "--threshold", "nan"], "--threshold nan: it is a log-likelihood ratio"),
        (["one.wav", "--rttm", "one.wav", "--force"], "one.wav is read by this command too"),
        (["one.wav", "--rttm", "none/one.rttm"], "no such folder"),
    ],
)
def test_what_is_wrong_is_said(run, arguments, message):
    with pytest.raises(SpeechError, match=message):
        run("diarize", *arguments)


def test_samples_in_memory_give_what_the_file_gives(encoder, folder):
    wav = audio.load(folder / "two.wav")[0][0]
    assert diarize(encoder, wav[:30_000], 1).segments[-1].end == 1.875  # within a frame of voice activity
    from_file, from_memory = diarize(encoder, folder / "two.wav", 2), diarize(encoder, wav, 2)
    assert from_file.segments == from_memory.segments


def test_windows_are_embedded_as_if_alone(encoder):
    wav = 0.1 * torch.randn(16000 * 9, generator=torch.Generator().manual_seed(0))
    cuts = windows.cut(np.array([[0.0, 5.2], [5.5, 5.6], [6.0, 7.2], [8.9, 9.0]]), 2.0, 0.5, 0.5, 9.0)
    assert cuts.seconds.min() >= 0.5 - 1e-9 and cuts.spans.max() <= 9.0 and cuts.spans[:, 0].min() >= 0
    assert cuts.spans[cuts.stretch == 0][-1, 1] == pytest.approx(5.2)
    found = windows.embed(encoder, wav[None].split(7777, dim=1), cuts)
    for (start, end), vector in zip(cuts.spans, found, strict=True):
        alone = encoder(wav[None, round(start * 16000) : round(end * 16000)])[0].numpy()
        np.testing.assert_allclose(vector, alone, atol=2e-3 * np.abs(alone).max())


def test_names_are_given_one_to_one_and_only_to_who_is_known(encoder):
    from engine import checkpoint

    calibration = calibration_of(checkpoint.find("ecapa"), encoder)
    axes = np.eye(4)
    found = match(axes[:3], np.full(3, 10.0), {"b": axes[1], "a": axes[0] + 0.2 * axes[1], "z": axes[3]}, calibration)
    assert {row: name for row, (name, _) in found.items()} == {0: "a", 1: "b"}
    with pytest.raises(SpeechError, match="no calibration"):
        match(axes[:1], np.ones(1), {"a": axes[0]}, None)
