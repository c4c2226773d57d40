"""Lists, tables and folders as people have them, that scores would be wrong by without a word."""

import logging
import math

import numpy as np
import pytest

import speaker
from engine.errors import ScoreError
from engine.features import kaldi_fbank
from speaker import calibration, collections, plda, plots
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.evidence import cohort_of
from speaker.metrics import Cost
from speaker.model import SpeakerConfig, SpeakerEncoder
from speaker.store import same_model


def test_folders_of_videos_are_told_from_folders_of_people(caplog):
    videos = [f"id{person}/v{video}/{take}.wav" for person in range(12) for video in range(3) for take in range(2)]
    with caplog.at_level(logging.WARNING):
        assert len(set(collections.speakers_of(videos, None))) == 36
    assert "36 folders of recordings, each taken for a speaker, lie in 12 others, such as id0" in caplog.text
    caplog.clear()
    corpora = [f"c{corpus}/p{person}/1.wav" for corpus in range(12) for person in range(60)]
    for people in ([f"train/p{person}/{take}.wav" for person in range(50) for take in range(3)], corpora):
        collections.speakers_of(people, None)
    assert not caplog.records


@pytest.mark.parametrize("name", ["ecapa (1)", "R&D", "v@2", "a:b"])
def test_a_folder_of_weights_has_any_name(tmp_path, name):
    network = EcapaTdnnConfig(num_bins=40, channels=16, mfa_channels=24, embedding_dim=8)
    speaker.save(tmp_path / name, SpeakerEncoder(SpeakerConfig(front_end=kaldi_fbank(40), network=network)), "# x")
    encoder = speaker.load(tmp_path / name)
    found = calibration.Calibration([f"plain@{encoder.digest}:cosine"], [], [1.0], 0.0, 0.5, 10, 5, 0.0)
    found.check_systems([f"{encoder.identity}:cosine"])
    with pytest.raises(ScoreError, match="was made for"):
        found.check_systems([f"{encoder.identity}:cosine+as200"])
    np.savez(tmp_path / name / "cohort.npz", names=["a/1"], embeddings=np.ones((1, 8)), model=encoder.identity)
    assert cohort_of(tmp_path / name, encoder.identity) is not None


def test_models_are_the_same_by_their_weights():
    assert same_model("a@1", "b@1") and same_model("a@2@1", "b@1") and same_model("unknown", "unknown")
    assert not same_model("a@1", "a@2") and not same_model("unknown", "a@1")


def test_a_plda_is_not_adapted_to_a_handful():
    model = plda.Plda(np.zeros(8), np.eye(8), np.zeros(8), np.eye(8), np.ones(8))
    rows = np.random.default_rng(0).normal(size=(9, 8))
    with pytest.raises(ScoreError, match="8 embeddings do not tell how a new domain spreads in 8 dimensions"):
        plda.adapt(model, rows[:8])
    assert len(plda.adapt(model, rows).psi) == 8


@pytest.mark.parametrize("prior", [1e-6, 0.01, 0.5, 1 - 1e-6])
def test_a_calibration_for_any_prior(prior):
    """At low priors and high ones the errors weigh little, and what keeps weights finite must not outweigh them."""
    rng = np.random.default_rng(0)
    labels = np.arange(40_000) < 20_000
    scores = np.where(labels, 2.0, -2.0) + rng.normal(size=len(labels))
    found = calibration.fit(["x"], scores[:, None], labels, prior=prior)
    x, y = np.stack([scores, np.ones(len(scores))], 1), np.where(labels, 1.0, -1.0)
    share, at_prior = np.where(labels, prior, 1 - prior), math.log(prior / (1 - prior))
    wrong = share / (1 + np.exp(y * (x @ [found.weights[0], found.offset] + at_prior)))
    assert np.abs(x.T @ (y * wrong)).max() < 2e-3 * wrong.sum(), "not where the loss is least"


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_a_calibration_of_tiny_and_huge_scores(scale):
    labels = np.arange(200) < 100
    scores = np.where(labels, 1.0, -1.0) + np.random.default_rng(0).normal(size=200)
    plain, other = (calibration.fit(["x"], s[:, None], labels) for s in (scores, scale * scores))
    np.testing.assert_allclose(other.llr(scale * scores[:, None], {}), plain.llr(scores[:, None], {}), rtol=1e-6)


def test_a_threshold_for_any_cost():
    assert Cost(1e-200, 1e-200, 1.0).threshold == pytest.approx(400 * math.log(10))
    assert Cost(0.01, 1.0, 1.0).threshold == pytest.approx(math.log(99))


def test_an_utterance_enrols_once(tmp_path):
    (tmp_path / "spk2utt").write_text("ann a.wav b.wav a.wav\n")
    with pytest.raises(ScoreError, match="line 1: an utterance of ann stands there twice"):
        collections.read_spk2utt(tmp_path / "spk2utt")


def test_names_are_no_formulas(tmp_path):
    pyplot = plots._pyplot()
    figure, axes = pyplot.subplots()
    plots.embedding_map(axes, np.eye(4), [r"$\x{a$", r"$\x{a$", "b", "b"])
    figure.savefig(tmp_path / "map.png")
    pyplot.close(figure)
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_scores_that_are_all_alike_are_drawn(tmp_path):
    """A broken system's: its picture shows it, without a warning of a division by nothing."""
    labels, sides = np.array([True, False, True, False]), [f"speaker{number}" for number in range(4)]
    pages = plots.save_all(tmp_path, np.full(4, 0.5), labels, (sides, sides), are_ratios=True)
    assert [page.name for page in pages] == ["det.png", "scores.png", "calibration.png"]
