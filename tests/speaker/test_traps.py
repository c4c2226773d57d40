"""What looks right and is not: scores of too little, names of strangers, people who are one another."""

import json
import logging

import numpy as np
import pytest
import soundfile
import torch

from engine.errors import ScoreError, StoreError
from speaker import collections, embedding_files, metrics, plda
from speaker.calibration import Calibration, fit
from speaker.checks import writable
from speaker.embed import heard, several_voices
from speaker.embedding_files import EmbeddingFile
from speaker.evidence import Evidence
from speaker.file_names import people
from speaker.gallery import Gallery
from speaker.groups import _grouped
from speaker.identify import OpenSet
from speaker.naming import match
from speaker.scoring import Cosine, score
from speaker.store import Store
from speaker.stream_cli import Matcher, _chosen
from speaker.transfer import import_prints, read_prints
from speaker.trials import Trials

# log-likelihood ratio = 20 cosine - 6
RATIOS = Calibration(["m@1:cosine"], ["seconds"], [20.0, 0.0, 0.0, 0.0], -6.0, 0.5, 100, 10, 1.0)


@pytest.fixture
def people_of_six():
    """Embeddings of 40 speakers, six utterances each, in 5 dimensions."""
    rng = np.random.default_rng(0)
    return np.repeat(rng.normal(size=(40, 5)), 6, axis=0) + 0.5 * rng.normal(size=(240, 5)), np.repeat(range(40), 6)


def test_a_plda_of_fewer_recordings_than_dimensions_is_refused(people_of_six):
    vectors, speakers = people_of_six
    with pytest.raises(ScoreError, match="8 utterances of 4 speakers tell how they spread within speakers in 4 of 5"):
        plda.train(vectors[[0, 1, 6, 7, 12, 13, 18, 19]], speakers[[0, 1, 6, 7, 12, 13, 18, 19]])
    assert np.isfinite(plda.train(vectors[:36], speakers[:36]).transform).all()


def test_a_plda_knows_how_many_recordings_a_model_has(people_of_six):
    vectors, speakers = people_of_six
    trained = plda.train(vectors[:180], speakers[:180])
    names = [f"{who}_{take}" for who, take in zip(speakers, np.tile(range(6), 40), strict=True)]
    models = {f"m{who}": [f"{who}_{take}" for take in range(1 + who % 5)] for who in range(30, 40)}
    given = collections.Collection(names, vectors, np.ones(240), "m@1")
    found = collections.enrolled(given, models, lengths=True)
    trials = Trials(
        [f"m{a}" for a in range(30, 40) for _ in range(10)], [f"{b}_5" for b in range(30, 40)] * 10, [True] * 100
    )
    scores = score(trials, found.names, found.vectors, trained, models=models).values
    ready, rows = trained.prepare(vectors), {name: row for row, name in enumerate(names)}
    expected = [
        trained.pairs(ready[[rows[u] for u in models[a]]].mean(0)[None], ready[[rows[b]]], len(models[a]))[0]
        for a, b in zip(trials.enrol, trials.test, strict=True)
    ]
    np.testing.assert_allclose(scores, expected)
    # Against the cohort, too, a model counts as what it is.
    normalized = score(trials, found.names, found.vectors, trained, models=models, cohort=vectors[:20], top=5)
    against = np.sort(trained.matrix(ready[[rows[u] for u in models["m34"]]].mean(0)[None], ready[:20], 5)[0])[-5:]
    assert normalized.cohort_means[0][40] == pytest.approx(against.mean())
    # A cosine knows no counts; the direction is that of the mean of directions.
    cosines = score(trials, found.names, found.vectors, Cosine(), models=models).values
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    mean = units[[rows[u] for u in models["m33"]]].mean(0)
    assert cosines[30] == pytest.approx(units[rows["30_5"]] @ mean / np.linalg.norm(mean))


def test_a_model_with_the_name_of_a_recording_is_refused(people_of_six):
    given = collections.Collection(["a/1", "b/1", "b/2"], people_of_six[0][:3], np.ones(3), "m@1")
    with pytest.raises(ScoreError, match="1 models have the name of a recording, the first is b/1"):
        collections.enrolled(given, {"b/1": ["a/1", "b/2"]})
    same = collections.enrolled(given, {"b/1": ["b/1"], "all": ["a/1", "b/2"]})
    assert same.names == ["a/1", "b/1", "b/2", "all"] and collections.enrolled(given, {"a/1": ["a/1"]}) is given


def test_the_more_are_enrolled_the_more_alike_a_voice_must_be():
    voice = np.eye(300)[:1]
    alike = voice[0] * 0.4 + np.eye(300)[1] * np.sqrt(1 - 0.16)  # a ratio of 2
    strangers = {str(number): np.eye(300)[number] for number in range(2, 20)}
    few, many = ({"Ada": alike, **dict(list(strangers.items())[:count])} for count in (5, 18))
    assert match(voice, np.full(1, 10.0), few, RATIOS)[0][0] == "Ada"  # ln 6 = 1.8
    assert match(voice, np.full(1, 10.0), many, RATIOS) == {}  # ln 19 = 2.9
    counted = Calibration(["m@1:cosine"], ["seconds"], [20.0, 0.0, 1.0, 0.0], -6.0, 0.5, 100, 10, 1.0)
    ratios = [match(voice, np.full(1, 10.0), {"Ada": voice[0]}, counted, {"Ada": seconds})[0][1]
              for seconds in (1.0, 10.0, np.nan)]  # fmt: skip
    assert ratios[1] == ratios[2] > ratios[0] + 2


def test_people_are_folders_unless_all_lie_in_one():
    assert people(["in/ada/1.wav", "in/ada/2.wav", "in/bo/1.wav"]) == ["ada", "ada", "bo"]
    assert people(["voices/ada.wav", "voices/bo.wav"]) == ["ada", "bo"]
    assert people(["ada/1.wav"]) == ["ada"] and people(["ada.wav", "bo.wav"]) == ["ada", "bo"]


def test_a_recording_is_enrolled_once_though_its_last_digits_differ(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(3, 192)).astype(np.float32)
    with Store.open(tmp_path / "a.db", model="m@1", create=True) as store:
        assert len(store.enroll("Ada", vectors[:2], model="m@1")) == 2
        assert store.enroll("Ada", vectors[:1] * (1 + 1e-5), model="m@1") == []
        assert len(store.enroll("Bo", np.stack([vectors[0] + 1e-6, vectors[2]]), model="m@1")) == 2
        store.merge("Bo", "Ada")
        assert len(store.prints("Ada")) == 3


def test_prints_that_tell_no_model_or_no_seconds(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    names, unknown = ["a/1.wav", "b/1.wav"], np.full(2, np.nan)
    nobody = tmp_path / "nobody.npz"
    embedding_files.write(nobody, EmbeddingFile(names, vectors, np.ones(2), ""))
    with pytest.raises(StoreError, match="it does not say of which model"):
        read_prints(nobody)
    source = tmp_path / "source.npz"
    embedding_files.write(source, EmbeddingFile(names, vectors, unknown, "m@1"))
    with Store.open(tmp_path / "a.db", model="m@1", create=True) as store:
        assert import_prints(store, source) == 2
        assert [p.quality for p in store.prints()] == [{}, {}]
        assert "NaN" not in json.dumps([each.seconds for each in store.speakers()])
        assert np.isnan(store.gallery().seconds).all()
    prints = collections.Collection(["a", "b"], vectors.astype(float), np.array([1.0, np.nan]), "m@1")
    assert _chosen(prints, ["a"]).names == ["a"]  # what is not asked for may be incomplete


@pytest.mark.parametrize(
    "changes",
    [
        {"seconds": np.ones(1)},
        {"seconds": np.ones(3)},
        {"seconds": np.ones((2, 2))},
        {"embeddings": np.float32(1)},
        {"embeddings": np.ones((3, 8), np.float32)},
        {"names": np.arange(2)},
        {"names": np.array([b"a", b"b"])},
    ],
)
def test_embeddings_of_another_make_are_one_clear_error(tmp_path, changes):
    whole = {"names": np.array(["a/1", "b/1"]), "embeddings": np.ones((2, 8), np.float32), "seconds": np.ones(2)}
    np.savez(tmp_path / "x.npz", **{**whole, **changes})
    with pytest.raises(ScoreError, match="holds no embeddings"):
        embedding_files.read(tmp_path / "x.npz")
    with pytest.raises(StoreError, match="holds no prints"):
        read_prints(tmp_path / "x.npz")


def test_a_score_that_is_no_number_is_not_the_best():
    for measure in (metrics.eer, metrics.min_dcf, metrics.act_dcf, metrics.cllr, metrics.min_cllr):
        with pytest.raises(ScoreError, match="1 scores are not numbers"):
            measure([1.0, np.nan], [0.0])
        with pytest.raises(ScoreError, match="got 0 and 1"):
            measure([], [0.0])


def test_a_folder_is_no_file_to_write_forced_or_not(tmp_path):
    for force in (False, True):
        with pytest.raises(ScoreError, match="is a folder; name a file"):
            writable(tmp_path, force, [])


def test_two_people_on_two_channels_are_told_of(tmp_path, caplog):
    one, other = 0.1 * np.random.default_rng(0).standard_normal((2, 32_000))
    caplog.set_level(logging.WARNING)
    for number, (channels, said) in enumerate([
        ((one, other), True), ((one, -one), True), ((one, one), False), ((one, 0.3 * one + 0.05 * other), False),
        ((one, 0 * one), False), ((0 * one, 0 * one), False),
    ]):  # fmt: skip
        caplog.clear()
        assert several_voices(torch.from_numpy(np.stack(channels)).float()) == said
        soundfile.write(tmp_path / f"{number}.wav", np.stack(channels, 1), 16_000)
        heard(tmp_path / f"{number}.wav", 16_000)
        assert ("its 2 channels differ" in caplog.text) == said


def test_silence_does_not_make_a_calibration_know_short_recordings():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(0.6, 0.1, 50), rng.normal(0.1, 0.1, 50)])[:, None]
    labels, seconds = np.arange(100) < 50, rng.uniform(1.5, 5, (100, 2))
    seconds[7, 0] = 0.0
    least = seconds[seconds > 0].min()
    assert fit(["m@1:cosine"], scores, labels, {"seconds": seconds}, ()).shortest == least
    assert fit(["m@1:cosine"], scores, labels, {"seconds": seconds}, ("seconds",)).shortest == least


def test_unknown_seconds_in_a_gallery_stay_unknown():
    assert np.isnan(Gallery(["a", "b"], np.eye(2), [1.0, np.nan]).seconds[1])


def test_codes_are_groups_though_they_are_numbers():
    assert _grouped(["0", "1", "0", ""], ["0", "1", "1", "1"]) == ["0", "1", "different", "unknown"]
    assert _grouped(["7", "7"], ["7", "7"]) is None


def test_a_calibration_that_asks_for_more_than_prints_tell_is_refused_at_once():
    asking = Calibration(["m@1:cosine"], ["seconds", "magnitude"], [20.0] + [0.0] * 5, -6.0, 0.5, 100, 10, 1.0)
    with pytest.raises(ScoreError, match="asks for magnitude, and of voiceprints only seconds is known"):
        match(np.eye(3)[:1], np.ones(1), {"Ada": np.eye(3)[0]}, asking)
    with pytest.raises(ScoreError, match="asks for magnitude"):
        OpenSet(Gallery(["a", "b"], np.eye(60)[:2]), np.eye(60), Evidence(asking))
    prints = collections.Collection(["a"], np.eye(60)[:1], np.ones(1), "m@1")
    with pytest.raises(ScoreError, match="asks for magnitude"):
        Matcher(prints, Evidence(asking), 0.01, 0.01)
    assert Matcher(prints, Evidence(RATIOS), 0.01, 0.01).directions
