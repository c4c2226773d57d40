"""The commands that give an encoder its calibration, cohort and PLDA, from recordings on."""

import csv
import json
import shutil

import numpy as np
import pytest
import soundfile
import torch

import speaker
from engine.errors import ScoreError
from engine.features import kaldi_fbank
from recipes import calibrate, diarization
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.diarize import back_end
from speaker.evidence import evidence_of
from speaker.model import SpeakerConfig, SpeakerEncoder

RATE = 16_000
CARD = "# mine\n\n## Calibration\nNot measured.\n"
NETWORK = EcapaTdnnConfig(num_bins=24, channels=32, mfa_channels=48, res2_scale=4, squeeze_channels=8,
                          attention_channels=8, embedding_dim=16, dilations=(2, 3))  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three corpora of 32 speakers, each with a hum of its own; a recording of nobody."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    time = np.arange(9 * RATE // 2) / RATE
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "split", "corpus", "speaker", "seconds"])
        for number in range(96):
            corpus = f"corpus{number % 3}"
            for take in range(2):
                name = f"{number}_{take}.wav"
                hum = 0.05 * np.sin(2 * np.pi * 50 * (1 + number % 3) * time)
                buzz = 0.1 * np.sign(np.sin(2 * np.pi * (90 + 4 * number) * time))
                soundfile.write(folder / name, hum + buzz + 0.01 * rng.standard_normal(len(time)), RATE)
                table.writerow([name, "train", corpus, str(number), 4.5])
        table.writerow(["0_0.wav", "train", "corpus0", "corpus0/unlabelled", 4.5])
    return folder


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    made = SpeakerEncoder(SpeakerConfig(front_end=kaldi_fbank(24), network=NETWORK)).eval()
    speaker.save(tmp_path / "mine", made, CARD)
    return tmp_path / "mine"


def run(encoder, data, *extra, command=calibrate):
    return command.main(
        [str(encoder), "--data", str(data / "manifest.csv"), "--cache", str(data / "cache"), "--percent", "15", *extra]
    )


def test_balanced_once_without_the_directions_of_the_corpora(encoder, data, capsys):
    before = speaker.load(encoder).digest
    given = ["--balance", "0.5", "--nuisance", "2", "--balance-without", "corpus2"]
    assert run(encoder, data, *given) == 0
    out = capsys.readouterr().out
    loaded = speaker.load(encoder)
    assert "cohort.npz" in out and "one speaker" in out and loaded.digest != before
    assert (
        "2 directions in which corpora differ were taken away, wide directions were narrowed (`recipes.calibrate "
        "--balance 0.5 --nuisance 2`; mean and spread without the speakers of corpus2).\nNot measured."
    ) in (encoder / "README.md").read_text()
    assert evidence_of(encoder, loaded) is not None
    with np.load(encoder / "cohort.npz") as cohort:
        corpora = np.array([name.split("/")[0] for name in cohort["names"]])
        directions = cohort["embeddings"] / np.linalg.norm(cohort["embeddings"], axis=1, keepdims=True)
    assert sorted(set(corpora)) == ["corpus0", "corpus1", "corpus2"] and len(corpora) < 96
    means = np.stack([directions[corpora == name].mean(0) for name in sorted(set(corpora))])
    assert np.linalg.norm(means - means.mean(0), axis=1).max() < 0.2
    # Again it would be another encoder, and the card could not say so.
    files = {path.name: path.read_bytes() for path in encoder.iterdir()}
    assert run(encoder, data, *given) == 2
    assert "balanced already" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in encoder.iterdir()} == files
    assert run(encoder, data) == 0  # the calibration alone may be made anew


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--nuisance", "2"], "--nuisance and --balance-without go with --balance"),
        (["--centre", "--balance-without", "corpus0"], "go with --balance"),
        (["--balance", "0.5", "--nuisance", "3"], "--nuisance 3 needs 4 corpora of 20 speakers or more; these "
         "manifests have enough for"),
        (["--balance", "0.5", "--leave-out", "corpse1"], "no speaker of corpse1; there are corpus0, "),
        (["--balance", "0.5", "--noise", "nowhere.wav"], "nowhere.wav"),
        (["--balance", "0.5", "--percent", "0.001"], "no two held-out speakers"),
        (["--balance", "0.5", "--prior", "3"], "between 0 and 1, got 3"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_written(encoder, data, capsys, extra, message):
    files = {path.name: path.read_bytes() for path in encoder.iterdir()}
    assert run(encoder, data, *extra) == 2
    assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in encoder.iterdir()} == files


def test_a_calibration_of_another_cohort_does_not_stay(encoder, data):
    assert run(encoder, data, "--near") == 0
    assert json.loads((encoder / "verification.json").read_text())["quality"] == ["seconds", "cohort"]
    assert run(encoder, data) == 0
    assert not (encoder / "verification.json").exists()


def test_a_plda_of_other_weights_is_refused(encoder, data, tmp_path, capsys):
    assert run(encoder, data) == 0
    assert run(encoder, data, "--dim", "8", command=diarization) == 0
    assert "windows of" in capsys.readouterr().out
    loaded = speaker.load(encoder)
    assert back_end(loaded, encoder).plda.model == loaded.identity
    other = tmp_path / "other"
    shutil.copytree(encoder, other)
    with torch.no_grad():
        next(loaded.parameters()).add_(0.1)
    speaker.save(other, loaded, CARD)
    (other / "calibration.json").unlink()
    with pytest.raises(ScoreError, match="was trained on embeddings of mine@"):
        back_end(speaker.load(other), other)
    # Balancing makes other weights, and takes it away.
    assert run(encoder, data, "--balance", "0.5") == 0
    assert not (encoder / "diarization.npz").exists()


def test_no_windows_for_a_plda_is_an_error(encoder, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(3 * RATE), RATE)
    (tmp_path / "manifest.csv").write_text("path,split,corpus,speaker,seconds\na.wav,train,c,1,3\na.wav,train,c,2,3\n")
    assert run(encoder, tmp_path, command=diarization) == 2
    assert "no speaker has 4 windows of 2 s" in capsys.readouterr().err
