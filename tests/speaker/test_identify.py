"""speaker/gallery.py, speaker/identify.py: the best match, and false alarms as often as asked for."""

import numpy as np
import pytest

from engine.errors import ScoreError, StoreError
from speaker.calibration import Calibration
from speaker.gallery import Gallery
from speaker.identify import OpenSet, posteriors

DIM = 48


def speakers(rng, count):
    return rng.standard_normal((count, DIM)) * np.linspace(1.5, 0.5, DIM)


def prints(rng, voices, spread=0.6):
    return voices + spread * rng.standard_normal(voices.shape)


def gallery_of(rng, count):
    voices = speakers(rng, count)
    return Gallery([f"s{i:04}" for i in range(count)], prints(rng, voices)), voices


def test_search_finds_the_mean_of_the_prints():
    rng = np.random.default_rng(0)
    voices = speakers(rng, 30)
    names = [f"s{i}" for i in range(30)] * 3
    gallery = Gallery(names, np.concatenate([prints(rng, voices) for _ in range(3)]), np.ones(90))
    assert len(gallery) == 30 and gallery.seconds.tolist() == [3.0] * 30
    queries = prints(rng, voices)
    found = gallery.search(queries, top=3)
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    for query, matches in zip(unit, found, strict=True):
        slow = sorted(((float(gallery.means[i] @ query), name) for i, name in enumerate(gallery.names)), reverse=True)
        assert [m.name for m in matches] == [name for _, name in slow[:3]]
        assert [m.cosine for m in matches] == pytest.approx([cosine for cosine, _ in slow[:3]], abs=1e-6)


def test_two_stages_with_all_candidates_are_exact_and_with_few_nearly():
    rng = np.random.default_rng(1)
    gallery, voices = gallery_of(rng, 500)
    queries = prints(rng, voices[:100])
    exact = [matches[0].name for matches in gallery.search(queries)]
    every = gallery.search(queries, first_dims=8, candidates=500)
    assert [matches[0].name for matches in every] == exact
    few = gallery.search(queries, first_dims=16, candidates=50)
    assert np.mean([a[0].name == b for a, b in zip(few, exact, strict=True)]) > 0.9
    with pytest.raises(StoreError, match="first_dims is 1 to 48"):
        gallery.search(queries, first_dims=49)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_approximate_index_tells_its_recall(kind):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(2)
    gallery, voices = gallery_of(rng, 3000)
    assert 0.8 < gallery.use_index(kind) <= 1
    found = gallery.search(prints(rng, voices[:50], 0.1))
    assert np.mean([matches[0].name == f"s{i:04}" for i, matches in enumerate(found)]) > 0.8


@pytest.mark.parametrize("count", [10, 100, 2000])
def test_strangers_are_taken_for_somebody_as_often_as_allowed(count):
    rng = np.random.default_rng(count)
    cohort = prints(rng, speakers(rng, 400), 0.2)
    wrong, total, right = 0, 0, []
    for _ in range(max(1, 200 // count)):
        gallery, voices = gallery_of(rng, count)
        decide = OpenSet(gallery, cohort)
        needed = decide.threshold(0.05)
        strangers = prints(rng, speakers(rng, 1000))
        wrong, total = wrong + int((decide.standardized(strangers).max(1) >= needed).sum()), total + 1000
        again = decide.standardized(prints(rng, voices))
        right += (again.argmax(1) == np.arange(count))[again.max(1) >= needed].tolist()
    assert wrong / total < 0.05 * 1.3 and (wrong / total > 0.005)
    assert np.mean(right) > 0.99


def test_the_threshold_grows_with_the_gallery():
    rng = np.random.default_rng(5)
    cohort = prints(rng, speakers(rng, 200))
    thresholds = [OpenSet(gallery_of(rng, count)[0], cohort).threshold(0.01) for count in (20, 200, 2000)]
    assert thresholds == sorted(thresholds) and thresholds[-1] > thresholds[0] + 0.3


def test_posteriors_are_bayes_rule():
    each, unknown = posteriors(np.log([8.0, 2.0, 0.5]), prior=0.6)
    weights = np.array([0.2 * 8, 0.2 * 2, 0.2 * 0.5, 0.4])
    np.testing.assert_allclose([*each, unknown], weights / weights.sum())
    each, unknown = posteriors(np.array([800.0, 0.0]), prior=0.5)
    assert each[0] == pytest.approx(1) and unknown == pytest.approx(0)
    with pytest.raises(ScoreError, match="between 0 and 1"):
        posteriors(np.zeros(2), prior=1)


def test_an_answer_says_all_there_is():
    rng = np.random.default_rng(6)
    gallery, voices = gallery_of(rng, 20)
    calibration = Calibration(["m@1:cosine"], [], [10.0], -4.0, 0.5, 10, 5, 0.5)
    decide = OpenSet(gallery, prints(rng, speakers(rng, 100)), calibration)
    answer = decide.identify(prints(rng, voices[7:8], 0.1)[0], seconds=3.0)
    assert answer.speaker == answer.best == "s0007" and answer.candidates[0][0] == "s0007"
    assert answer.llr == pytest.approx(10 * answer.cosine - 4) and 0 < answer.unknown < answer.posterior < 1
    assert answer.as_text().startswith("s0007: score")
    nobody = decide.identify(speakers(rng, 1)[0], seconds=3.0)
    assert nobody.speaker is None and nobody.as_text().startswith("nobody we know, the nearest is s")
    with pytest.raises(ScoreError, match="how alike strangers are"):
        OpenSet(gallery, prints(rng, speakers(rng, 10)))
