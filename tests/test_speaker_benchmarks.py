"""The tables of speaker verification, made of a small untrained encoder and buzzing voices."""

import numpy as np
import pytest
import torch

import speaker
from benchmarks import calibration, conversations, diarization, verification
from engine import audio
from engine.errors import SpeechError
from engine.features import kaldi_fbank
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.calibration import fit
from speaker.model import SpeakerConfig, SpeakerEncoder
from speaker.rttm import Segment
from speaker.trials import Trials


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench")
    torch.manual_seed(0)
    network = EcapaTdnnConfig(num_bins=40, channels=32, mfa_channels=48, embedding_dim=24)
    speaker.save(path / "mine", SpeakerEncoder(SpeakerConfig(front_end=kaldi_fbank(40), network=network)).eval(), "# x")
    rng, names = np.random.default_rng(0), []
    for number in range(6):
        (path / f"s{number}").mkdir()
        for take in range(3):
            time = np.arange(24000) / 16000
            wav = sum(np.sin(2 * np.pi * (100 + 30 * number) * k * time + rng.uniform(0, 6)) / k for k in range(1, 9))
            names.append(f"s{number}/{take}.wav")
            wav = 0.1 * wav + 0.01 * rng.standard_normal(len(time))
            audio.save(path / names[-1], torch.from_numpy(wav.astype(np.float32))[None], 16000)
    pairs = [(a, b) for k, a in enumerate(names) for b in names[k + 1 :]]
    (path / "list.txt").write_text("".join(f"{int(a[:2] == b[:2])} {a} {b}\n" for a, b in pairs))
    return path


def test_verification_writes_its_table(folder):
    (folder / "card.md").write_text("# x\n<!-- verification -->\n<!-- /verification -->\n")
    arguments = ["--trials", folder / "list.txt", "--root", folder, "--models", folder / "mine", "--seconds", "0", "1"]
    assert verification.main([str(a) for a in [*arguments, "--write", folder / "card.md"]]) == 0
    rows = [line for line in (folder / "card.md").read_text().splitlines() if line.startswith("| list")]
    assert len(rows) == 1 and rows[0].count("[") == 2 and "list 18 + 135" in (folder / "card.md").read_text()


def test_the_middle_is_cut():
    wav = np.arange(100_000, dtype=np.float32)
    assert verification.middle(wav, 0) is not None and len(verification.middle(wav, 0)) == len(wav)
    cut = verification.middle(wav, 1)
    assert len(cut) == 16_000 and cut[0] == 42_000 and len(verification.middle(wav[:10], 1)) == 10


def test_calibration_needs_one_and_tells_how_true_it_is(folder):
    with pytest.raises(SpeechError, match="has no calibration"):
        calibration.measure([folder / "list.txt"], folder, [], str(folder / "mine"))
    encoder = speaker.load(folder / "mine")
    labels = np.arange(40) < 20
    made = fit([f"mine@{encoder.digest}:cosine"], np.where(labels, 0.99, 0.9)[:, None], labels,
               {"seconds": np.full((40, 2), 1.5)}, ("seconds",))  # fmt: skip
    made.save(folder / "mine" / "calibration.json")
    table = calibration.measure([folder / "list.txt"], folder, [], str(folder / "mine"))
    assert [line.split(" | ")[1] for line in table.splitlines()[2:]] == ["calibrated", "fixed threshold"] * 2
    ratios = np.array([3.0, 3, -3, -3])
    assert calibration.figures(ratios, np.array([1, 1, 0, 0]))[0] == "0.00"


def test_cosines_go_with_the_trials():
    vectors = np.eye(3)
    trials = Trials(["a", "b", "c"], ["a", "c", "c"], [True, False, True])
    assert calibration.cosines(trials, vectors, ["a", "b", "c"]).tolist() == [1, 0, 1]


@pytest.fixture
def voices(tmp_path, recordings):
    rows = [f"{path},test,bundled,bundled/{path.stem.split('_')[0]},5,16000,en,x" for path in recordings]
    (tmp_path / "manifest.csv").write_text("path,split,corpus,speaker,seconds,sample_rate,language,licence\n"
                                           + "\n".join(rows) + "\n")  # fmt: skip
    return tmp_path / "manifest.csv"


def test_conversations_are_reproducible_and_their_truth_is_heard(voices):
    found = conversations.recordings(voices, "test", seconds=1)
    made, again, noisy = (
        conversations.converse(found, np.random.default_rng(3), 2, overlap, 10, snr)
        for overlap, snr in ((0.0, None), (0.0, None), (0.2, 10.0))
    )
    assert made.truth == again.truth and (made.wav == again.wav).all() and len(noisy.truth)
    assert {segment.speaker for segment in made.truth} == {"bundled/allison", "bundled/carlo"}
    heard = diarization.truth_frames(made)
    power = np.square(np.resize(made.wav, (len(heard), 160))).mean(1)
    assert power[heard].mean() > 20 * power[~heard].mean()


def test_error_parts_of_a_made_up_answer():
    pytest.importorskip("pyannote.metrics", reason="pyannote.metrics is not installed")
    truth = [Segment(0, 4, "a"), Segment(3, 6, "b")]
    found = [Segment(0, 3, "x"), Segment(3, 5, "y"), Segment(7, 8, "y")]
    # One second of overlap and 5 to 6 s are missed, 7 to 8 s is false, all else is right.
    np.testing.assert_allclose(diarization.error_parts(truth, found, 10, 0.0), [2, 1, 0, 7], atol=1e-9)
    assert diarization.error_parts(truth, found, 10, 0.25)[3] < 7


def test_diarization_writes_its_table(voices, capsys):
    pytest.importorskip("pyannote.metrics", reason="pyannote.metrics is not installed")
    page = voices.parent / "page.md"
    page.write_text("<!-- diarization -->\n<!-- /diarization -->\n")
    arguments = ["--data", voices, "--speakers", 2, "--overlap", 0, "--num", 2, "--seconds", 8, "--least", 1]
    arguments += ["--write", page]
    names = ["energy, ahc", "energy, ahc, VBx", "energy, spectral", "true speech, ahc, number told"]
    assert diarization.main([*map(str, arguments), "--systems", *names]) == 0
    rows = [line for line in page.read_text().splitlines() if line.startswith(("| energy, ", "| true"))]
    assert len(rows) == 4 and all(line.count("[") == 2 for line in rows)
    assert "2 conversations" in page.read_text()
