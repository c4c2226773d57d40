"""`speaker adapt`: the mean of other recordings, as far as it is not chance, taken off by the last layer."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

import speaker
from engine.errors import ScoreError
from engine.features import kaldi_fbank
from speaker import plda
from speaker.adapt import adapt, embedded, shift_of
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.calibration import Calibration
from speaker.cli import app
from speaker.collections import Collection
from speaker.diarize import back_end
from speaker.evidence import evidence_of, system_of
from speaker.model import SpeakerConfig, SpeakerEncoder

RATE, DIM = 16_000, 16
NETWORK = EcapaTdnnConfig(num_bins=24, channels=32, mfa_channels=48, res2_scale=4, squeeze_channels=8,
                          attention_channels=8, embedding_dim=DIM, dilations=(2, 3))  # fmt: skip


def voices(rng, shift, people, takes=2):
    names = [f"{person}/{take}.wav" for person in range(people) for take in range(takes)]
    means = np.repeat(rng.normal(size=(people, DIM)), takes, axis=0)
    return names, means + 0.2 * rng.normal(size=means.shape) + shift


def test_a_mean_that_is_chance_is_left_and_one_that_is_not_is_taken():
    rng = np.random.default_rng(0)
    shares = [shift_of(*voices(rng, 0.0, 20)).share for _ in range(200)]
    assert np.mean(shares) < 0.15  # of what it is, chance would leave nothing
    far = np.full(DIM, 0.6)
    few, many = shift_of(*voices(rng, far, 12)), shift_of(*voices(rng, far, 400))
    assert 0.6 < few.share < many.share and many.share > 0.98 and (many.people, many.recordings) == (400, 800)
    np.testing.assert_allclose(many.offset, far, atol=0.15)
    # Shrunk, it is nearer to the truth than the mean itself.
    errors = {"mean": 0.0, "shrunk": 0.0}
    for _ in range(200):
        names, vectors = voices(rng, 0.25, 12)
        found = shift_of(names, vectors)
        errors["shrunk"] += np.square(found.offset - 0.25).sum()
        errors["mean"] += np.square(vectors.mean(0) - 0.25).sum()
    assert errors["shrunk"] < 0.9 * errors["mean"]


def test_who_counts_as_a_person():
    rng = np.random.default_rng(0)
    names, vectors = voices(rng, 1.0, 6, takes=4)
    with pytest.raises(ScoreError, match="recordings of 6 people: their mean"):
        shift_of(names, vectors)
    flat = [f"all/{name.replace('/', '_')}" for name in names]
    assert shift_of(flat, vectors).people == 24


@pytest.fixture
def model(tmp_path):
    """With a calibration and a PLDA of windows."""
    torch.manual_seed(0)
    made = SpeakerEncoder(SpeakerConfig(front_end=kaldi_fbank(24), network=NETWORK)).eval()
    speaker.save(tmp_path / "mine", made, "# mine\n\nEER 1 %.\n")
    identity = speaker.load(tmp_path / "mine").identity
    Calibration([f"{identity}:cosine"], ["seconds"], [9.0, 0.0, 0.0, 0.0], -3.0, 0.1, 100, 50, 0.5).save(
        tmp_path / "mine" / "calibration.json"
    )
    rng = np.random.default_rng(1)
    names, vectors = voices(rng, 0.0, 30, takes=4)
    rows = np.array([int(name.split("/")[0]) for name in names])
    replace(plda.train(vectors, rows, 8), model=identity).save(tmp_path / "mine" / "diarization.npz")
    return tmp_path / "mine"


@pytest.fixture
def recordings(tmp_path):
    """One for each of 12 people, in one folder."""
    rng, time = np.random.default_rng(2), np.arange(RATE) / RATE
    (tmp_path / "in").mkdir()
    for person in range(12):
        wav = 0.1 * np.sign(np.sin(2 * np.pi * (90 + 11 * person) * time)) + 0.01 * rng.standard_normal(RATE)
        soundfile.write(tmp_path / "in" / f"{person}.wav", wav, RATE)
    return tmp_path / "in"


def test_the_command_makes_a_model_that_is_centred_and_complete(model, recordings, tmp_path):
    out, run = tmp_path / "ours", CliRunner()
    (recordings / "broken.wav").write_text("hello")
    done = run.invoke(app, ["adapt", str(recordings), "--model", str(model), "--out", str(out)])
    assert done.exit_code == 1 and "mean of 12 people, 12 recordings: " in done.stdout  # broken.wav is listed
    assert "broken.wav" in done.stderr
    before, after = speaker.load(model), speaker.load(out)
    paths = sorted(recordings.glob("[0-9]*.wav"))
    (was, _), (is_, _) = embedded(before, paths), embedded(after, paths)
    shift = shift_of(was.names, was.vectors)
    assert 0.5 < shift.share <= 1
    np.testing.assert_allclose(is_.vectors, was.vectors - shift.offset, atol=1e-4 * np.abs(was.vectors).max())
    # What came with the model is now of this one.
    assert evidence_of(out, after).calibration.weights == evidence_of(model, before).calibration.weights
    ready, old = back_end(after, out).plda, back_end(before, model).plda
    # A folder may be renamed: a model is what its weights are.
    assert back_end(speaker.load(out.rename(tmp_path / "renamed")), tmp_path / "renamed").plda is not None
    (tmp_path / "renamed").rename(out)
    np.testing.assert_allclose(ready.prepare(is_.vectors), old.prepare(was.vectors), atol=1e-3)
    card = (out / "README.md").read_text()
    assert before.identity in card and "EER 1 %" in card and card.startswith("# ours\n")
    # From embeddings that are there already, the same.
    np.savez(tmp_path / "e.npz", names=was.names, embeddings=was.vectors.astype(np.float32),
             model=before.identity, seconds=was.seconds)  # fmt: skip
    done = run.invoke(app, ["adapt", str(tmp_path / "e.npz"), "--model", str(model), "--out", str(tmp_path / "same")])
    assert done.exit_code == 0
    np.testing.assert_allclose(
        embedded(speaker.load(tmp_path / "same"), paths)[0].vectors, is_.vectors, atol=1e-4 * np.abs(was.vectors).max()
    )


def test_what_cannot_be_adapted(model, recordings, tmp_path):
    run, out = CliRunner(), tmp_path / "ours"
    for number in range(3, 12):
        (recordings / f"{number}.wav").unlink()
    given = ["adapt", str(recordings), "--model", str(model)]
    for extra, message in (
        (["--out", str(out)], "recordings of 3 people"),
        (["--out", str(model)], "exists; --force overwrites it"),
        (["--out", str(model), "--force"], "is the model itself"),
    ):
        done = run.invoke(app, [*given, *extra])
        assert done.exit_code != 0 and message in str(done.exception) and not out.exists()
    # Silence has an embedding too, and is nobody.
    for number in range(20):
        soundfile.write(recordings / f"silent{number}.wav", np.zeros(RATE), RATE)
    done = run.invoke(app, [*given, "--out", str(out)])
    assert "recordings of 3 people" in str(done.exception) and "silent7.wav: 0.00 s of speech" in done.stderr
    encoder = speaker.load(model)
    other = Collection([f"{i}/a" for i in range(20)], np.ones((20, DIM)), np.ones(20), "other@0123456789ab")
    with pytest.raises(ScoreError, match="the embeddings are of other@"):
        adapt(encoder, model, other, out)


def test_the_map_that_knows_the_cohort_comes_along_and_that_of_other_weights_does_not(model, tmp_path):
    encoder = speaker.load(model)
    names, vectors = voices(np.random.default_rng(3), 1.0, 20, takes=1)
    given = Collection(names, vectors, np.ones(len(names)), encoder.identity)
    near = Calibration([system_of(encoder.identity)], ["cohort"], [9.0, -1.0, -1.0], 0.0, 0.1, 9, 3, 0.5)
    near.save(model / "verification.json")
    np.savez(model / "cohort.npz", names=names, embeddings=vectors.astype(np.float32), model=encoder.identity)
    adapt(encoder, model, given, tmp_path / "ours")
    found = evidence_of(tmp_path / "ours", speaker.load(tmp_path / "ours"))
    assert found.calibration.weights == near.weights and found.cohort is not None
    replace(near, systems=["other@2:cosine+cohort50"]).save(model / "verification.json")
    with pytest.raises(ScoreError, match=r"verification\.json: .*was made for other@2"):
        adapt(speaker.load(model), model, given, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
