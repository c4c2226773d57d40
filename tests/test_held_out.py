"""Encoders compared on speakers that training held out, with buzzing voices."""

import numpy as np
import pytest
import torch

import speaker
from benchmarks import held_out
from engine import audio
from engine.features import kaldi_fbank
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.model import SpeakerConfig, SpeakerEncoder


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Two corpora of four voices, each with seven recordings of 1.5 s."""
    path = tmp_path_factory.mktemp("corpora")
    rng = np.random.default_rng(1)
    for corpus in ("readers", "callers"):
        for number in range(4):
            for take in range(7):
                phases = 2 * np.pi * (100 + 40 * number) * np.arange(24_000) / 16_000
                wav = 0.1 * sum(np.sin(k * phases + rng.uniform(0, 6)) / k for k in range(1, 9))
                wav = (wav + 0.01 * rng.standard_normal(24_000)).astype(np.float32)
                file = path / corpus / f"{corpus[0]}{number}" / f"{take}.wav"
                file.parent.mkdir(parents=True, exist_ok=True)
                audio.save(file, torch.from_numpy(wav)[None], 16_000)
    torch.manual_seed(0)
    network = EcapaTdnnConfig(num_bins=40, channels=32, mfa_channels=48, embedding_dim=24)
    speaker.save(path / "mine", SpeakerEncoder(SpeakerConfig(front_end=kaldi_fbank(40), network=network)).eval(), "# x")
    audio.save(path / "noise.wav", torch.from_numpy(0.1 * rng.standard_normal((1, 32_000)).astype(np.float32)), 16_000)
    return path


def held_out_arguments(corpora, *more):
    given = [corpora / "mine", "--data", corpora / "readers", "--data", corpora / "callers", "--percent", 100,
             "--cache", corpora / "cache", *more]  # fmt: skip
    return [str(a) for a in given]


def test_encoders_are_compared_on_held_out_speakers(corpora, capsys, monkeypatch):
    heard = []

    def by_pitch(encoder, wavs):
        """In place of a trained encoder: the spectrum up to 400 Hz."""
        heard.append(wavs)
        return np.abs(np.fft.rfft(wavs, 16_000))[:, 50:400:5]

    monkeypatch.setattr(held_out, "embed", by_pitch)
    (corpora / "doc.md").write_text("<!-- held-out -->\n<!-- /held-out -->\n")
    more = ("--apart", "callers", "--noise", corpora / "noise.wav", "--write", corpora / "doc.md")
    assert held_out.main(held_out_arguments(corpora, *more)) == 0
    lines = (corpora / "doc.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| mine")]
    assert [row[1:3] for row in rows] == [["the corpora", "no"], ["the corpora", "yes"], ["callers", "no"],
                                          ["callers", "yes"]]  # fmt: skip
    assert all(float(cell.split()[0]) == 0 for row in rows for cell in row[3:])
    assert [len(wavs[0]) for wavs in heard] == 4 * [16_000, 32_000, 64_000]
    for clean, noisy in ((heard[2], heard[5]), (heard[8], heard[11])):
        ratio = 10 * np.log10(np.square(clean).mean(1) / np.square(noisy - clean).mean(1))
        assert (ratio > -1).all() and (ratio < 21).all() and np.ptp(ratio) > 3
    assert "the corpora: 8 crops of 4 speakers; callers: 8 crops of 4 speakers. mine@" in "\n".join(lines)
    heard.clear()
    assert held_out.main(held_out_arguments(corpora, "--seconds", "3", "0.5")) == 0
    assert [wavs.shape for wavs in heard] == [(24, 8_000), (24, 48_000)]
    assert "| 0.5 s | 3 s |" in capsys.readouterr().out
    assert held_out.main(held_out_arguments(corpora, "--seconds", "0", "4")) == 2
    assert "--seconds from 0.1 to 60" in capsys.readouterr().err
    assert held_out.main(held_out_arguments(corpora, "--apart", "singers")) == 2
    assert "no speaker of singers; there are callers, readers" in capsys.readouterr().err
    assert held_out.main(held_out_arguments(corpora, "--percent", "0")) == 2
    assert "no two held-out speakers have 4 s of speech" in capsys.readouterr().err


def test_held_out_crops_share_no_sample(corpora):
    samples, utterances = held_out.build_cache([str(corpora / "readers")], corpora / "cache", 16_000)
    owners, wavs = held_out.crops(samples, utterances, 4)
    assert owners == [f"readers/r{number}" for number in range(4) for _ in range(2)]
    for one, other in zip(wavs[::2], wavs[1::2], strict=True):
        pieces = [{wav[at : at + 50].tobytes() for at in range(0, len(wav) - 50)} for wav in (one, other)]
        assert not pieces[0] & pieces[1]
