"""Clustering beside obvious twins."""

import itertools

import numpy as np
import pytest

import speaker
from engine import checkpoint
from engine.errors import ConfigError
from speaker import clustering
from speaker.evidence import calibration_of
from speaker.scoring import unit

pytest.importorskip("scipy", reason="the extra diarize is not installed")


def voices(rng, num=4, each=12, dim=24, spread=0.35):
    centres = unit(rng.normal(size=(num, dim)))
    truth = rng.permutation(np.repeat(np.arange(num), each))
    return unit(centres[truth] + spread / np.sqrt(dim) * rng.normal(size=(len(truth), dim))), truth


def same(a, b):
    return ((a[:, None] == a) == (b[:, None] == b)).all()


def slow_average_linkage(scores, threshold):
    groups = [[k] for k in range(len(scores))]
    while len(groups) > 1:
        pairs = list(itertools.combinations(range(len(groups)), 2))
        means = [scores[np.ix_(groups[a], groups[b])].mean() for a, b in pairs]
        if max(means) < threshold:
            break
        a, b = pairs[int(np.argmax(means))]
        groups[a] += groups.pop(b)
    labels = np.zeros(len(scores), dtype=int)
    for number, group in enumerate(groups):
        labels[group] = number
    return labels


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.9])
def test_agglomerative_clustering_equals_the_slow_one(threshold):
    vectors = unit(np.random.default_rng(1).normal(size=(25, 5)))
    scores = vectors @ vectors.T
    found = clustering.ahc(scores, threshold)
    assert same(found, slow_average_linkage(scores, threshold))


@pytest.mark.parametrize("method", ["ahc", "spectral"])
@pytest.mark.parametrize("limit", [10, 4000])
def test_speakers_are_found_also_when_windows_are_condensed(monkeypatch, method, limit):
    monkeypatch.setitem(clustering.LIMIT, method, 24 if limit == 10 else limit)
    vectors, truth = voices(np.random.default_rng(0))
    found = clustering.assign(vectors, np.full(len(truth), 2.0), method, calibration=None, threshold=0.5,
                              num_speakers=None)  # fmt: skip
    assert same(found, truth)
    told = clustering.assign(vectors, np.full(len(truth), 2.0), method, calibration=None, threshold=0.5,
                             num_speakers=2)  # fmt: skip
    assert told.max() == 1


@pytest.mark.parametrize("num_speakers", [None, 3])
def test_odd_windows_are_no_speakers(num_speakers):
    """Windows of a second or two scatter widely, and some (a laugh, an overlap) are like no others."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        vectors, truth = voices(rng, num=3, dim=64, spread=1.6)
        vectors[::20] = unit(vectors[::20] + 0.5 * rng.normal(size=(2, 64)))
        found = clustering.assign(vectors, np.full(36, 1.5), "spectral", calibration=None, threshold=0.5,
                                  num_speakers=num_speakers)  # fmt: skip
        assert found.max() == 2
        assert sum(np.bincount(found[truth == speaker]).max() for speaker in range(3)) >= 34


def test_one_voice_and_few_windows():
    rng = np.random.default_rng(3)
    for each in (1, 2, 3, 8, 40):
        vectors, truth = voices(rng, num=1, each=each, dim=64, spread=1.0)
        assert not clustering.spectral(np.maximum(vectors @ vectors.T, 0)).any(), each
    for told, num in ((2, 2), (3, 2), (None, 2), (5, 3)):
        assert clustering.spectral(np.eye(num), told).tolist() == list(range(num))
    assert clustering.spectral(np.full((2, 2), 0.6)).tolist() == [0, 0]


def test_fewer_speakers_are_told_than_the_graph_has_pieces():
    apart = np.kron(np.eye(3), np.ones((30, 30)))
    assert clustering.spectral(apart).max() == 2
    for affinity in (apart, np.zeros((40, 40)), np.ones((40, 40)), np.eye(40)):
        found = clustering.spectral(affinity, 2)
        assert set(found.tolist()) <= {0, 1}
    found = clustering.spectral(apart, 2)
    assert all(len(set(part)) == 1 for part in found.reshape(3, 30).tolist()), "no voice is torn apart"


@pytest.mark.parametrize("each", [15, 40])
def test_many_speakers(each):
    vectors, truth = voices(np.random.default_rng(2), num=25, each=each, dim=64, spread=1.0)
    found = clustering.assign(vectors, np.full(len(truth), 1.5), "spectral", calibration=None, threshold=0.5,
                              num_speakers=None)  # fmt: skip
    assert 22 <= found.max() + 1 <= 28


def test_calibrated_ratios_are_what_spectral_clustering_goes_by():
    calibration = calibration_of(checkpoint.find("ecapa"), speaker.load("ecapa"))
    vectors, truth = voices(np.random.default_rng(0), num=3, each=20, dim=192, spread=1.0)
    found = clustering.assign(vectors, np.full(60, 1.5), "spectral", calibration=calibration, threshold=0.0,
                              num_speakers=None, min_seconds=5.0)  # fmt: skip
    assert same(found, truth)


def test_one_window_and_small_clusters():
    one = clustering.assign(np.ones((1, 4)), np.ones(1), "ahc", calibration=None, threshold=0.5, num_speakers=None)
    assert one.tolist() == [0]
    vectors = unit(np.array([[1, 0, 0.0]] * 5 + [[0, 1, 0]] * 5 + [[0.3, 0, 1]]))
    found = clustering.assign(vectors, np.ones(11), "ahc", calibration=None, threshold=0.5, num_speakers=None,
                              min_seconds=2.0)  # fmt: skip
    assert same(found, np.array([0] * 5 + [1] * 5 + [0]))
    with pytest.raises(ConfigError, match="ahc and spectral"):
        clustering.assign(vectors, np.ones(11), "x", calibration=None, threshold=0.5, num_speakers=None)
