"""The benchmark of enrolment quality, on buzzing voices and an untrained encoder."""

import numpy as np
import pytest
import torch

import speaker
from benchmarks import enrolment_quality
from engine import audio
from engine.errors import SpeechError
from engine.features import kaldi_fbank
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.model import SpeakerConfig, SpeakerEncoder


def test_a_table_and_the_noise(tmp_path, capsys):
    torch.manual_seed(0)
    network = EcapaTdnnConfig(num_bins=20, channels=16, mfa_channels=24, embedding_dim=8)
    speaker.save(tmp_path / "mine", SpeakerEncoder(SpeakerConfig(front_end=kaldi_fbank(20), network=network)), "# x")
    rng, rows = np.random.default_rng(0), ["path,split,corpus,speaker"]
    time = np.arange(11 * 16000) / 16000
    for number in range(3):
        wav = 0.1 * sum(np.sin(2 * np.pi * (100 + 60 * number) * k * time) / k for k in range(1, 9)) * (time % 1 < 0.6)
        audio.save(tmp_path / f"{number}.wav", torch.from_numpy(wav.astype(np.float32))[None], 16000)
        rows.append(f"{number}.wav,test,buzz,s{number}")
    noise = 0.1 * rng.standard_normal(16000).astype(np.float32)
    audio.save(tmp_path / "n.wav", torch.from_numpy(noise)[None], 16000)
    (tmp_path / "m.csv").write_text("\n".join([*rows, "n.wav,noise,hiss,n"]) + "\n")
    manifest = str(tmp_path / "m.csv")
    arguments = ["--data", manifest, "--noise", manifest, "--model", str(tmp_path / "mine"), "--clips", "4"]
    assert enrolment_quality.main(arguments) == 0
    told = capsys.readouterr().out
    assert "| buzz | 3 | 4 + 4 |" in told and "all noise, 4 mixtures: correlation" in told
    assert enrolment_quality.main(["--data", manifest, "--split", "none", "--model", str(tmp_path / "mine")]) == 2


def test_too_little_speech_and_silent_noise_end_it(tmp_path):
    rng = np.random.default_rng(0)
    sounds = {"short": 0.1 * rng.standard_normal(8000), "long": 0.1 * rng.standard_normal(48_000), "no": np.zeros(8000)}
    for name, wav in sounds.items():
        audio.save(tmp_path / f"{name}.wav", torch.from_numpy(wav.astype(np.float32))[None], 8000)
    short, long, silent = ({"x": {"s": [tmp_path / f"{name}.wav"]}} for name in sounds)
    with pytest.raises(SpeechError, match="no speaker has 5 s"):
        enrolment_quality.noises(short, long, 2, rng, 8000)
    with pytest.raises(SpeechError, match="is silent"):
        enrolment_quality.noises(long, silent, 2, rng, 8000)


def test_clips_have_the_rate_of_the_encoder(tmp_path, monkeypatch):
    network = EcapaTdnnConfig(num_bins=20, channels=16, mfa_channels=24, embedding_dim=8)
    encoder = SpeakerEncoder(SpeakerConfig(front_end=kaldi_fbank(20, sample_rate=8000), network=network)).eval()
    files = [tmp_path / f"{name}.wav" for name in "ab"]
    for path in files:
        audio.save(path, 0.1 * torch.randn(1, 11 * 16_000, generator=torch.Generator().manual_seed(0)), 16_000)
    heard = []
    monkeypatch.setattr(
        enrolment_quality, "window_embeddings", lambda _, wav, rate: heard.append((len(wav), rate)) or np.zeros((0, 8))
    )
    enrolment_quality.voices(encoder, {"x": {path.stem: [path] for path in files}}, 2, np.random.default_rng(0))
    assert {rate for _, rate in heard} == {8000} and all(abs(length - 80_000) <= 1 for length, _ in heard)


def test_area_equals_counting_pairs():
    rng = np.random.default_rng(0)
    values, two = rng.integers(0, 6, 40) / 6, rng.random(40) < 0.5
    pairs = [(a < b) + 0.5 * (a == b) for a in values[two] for b in values[~two]]
    assert abs(enrolment_quality.area(values, two) - np.mean(pairs)) < 1e-12
