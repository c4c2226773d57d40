"""Search, against loops that do the obvious."""

import numpy as np
import pytest

from engine.errors import StoreError
from speaker.gallery import Gallery


@pytest.fixture(scope="module")
def gallery():
    rng = np.random.default_rng(0)
    prints = rng.normal(size=(2000, 64)) * np.geomspace(3, 0.3, 64)
    return Gallery([f"s{number % 900:03}" for number in range(2000)], prints)


def slowly(gallery_prints, names, query):
    """Cosine to the mean of each speaker's unit prints, one at a time."""
    found = []
    for name in sorted(set(names)):
        mine = [p / np.linalg.norm(p) for p, n in zip(gallery_prints, names, strict=True) if n == name]
        mean = np.mean(mine, axis=0)
        found.append((float(mean @ query / np.linalg.norm(mean) / np.linalg.norm(query)), name))
    return sorted(found, reverse=True)


def test_exact_search_is_the_obvious_one():
    rng = np.random.default_rng(1)
    prints, names = rng.normal(size=(60, 8)), [f"s{k}" for k in rng.integers(20, size=60)]
    gallery, queries = Gallery(names, prints), rng.normal(size=(7, 8))
    for query, matches in zip(queries, gallery.search(queries, top=4), strict=True):
        expected = slowly(prints, names, query)[:4]
        assert [match.name for match in matches] == [name for _, name in expected]
        np.testing.assert_allclose([match.cosine for match in matches], [s for s, _ in expected], atol=1e-6)
    assert len(gallery.search(queries, top=1000)[0]) == len(gallery)


def test_two_stages_rank_candidates_by_all_dimensions(gallery):
    queries = gallery.prints[:300]
    exact = gallery.search(queries, top=3)
    assert gallery.search(queries, top=3, first_dims=16, candidates=len(gallery)) == exact
    few = gallery.search(queries, top=1, first_dims=16, candidates=20)
    recall = np.mean([a[0].name == b[0].name for a, b in zip(few, exact, strict=True)])
    fewer = gallery.search(queries, top=1, first_dims=2, candidates=2)
    assert recall > 0.9 > np.mean([a[0].name == b[0].name for a, b in zip(fewer, exact, strict=True)])
    with pytest.raises(StoreError, match="first_dims"):
        gallery.search(queries, first_dims=65)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_approximate_index_tells_its_recall(gallery, kind):
    pytest.importorskip("faiss", reason="the extra `faiss` is not installed")
    exact = gallery.search(gallery.prints[:200], top=1)
    told = gallery.use_index(kind, effort=1)
    assert told == gallery.recall
    poor = gallery.search(gallery.prints[:200], top=1)
    assert np.mean([a[0].name == b[0].name for a, b in zip(poor, exact, strict=True)]) == pytest.approx(told, abs=0.12)
    assert gallery.use_index(kind, effort=400) >= max(told, 0.97)
    assert gallery.use_index("exact") == 1


def test_what_does_not_fit_is_told(gallery):
    for bad in (np.ones((1, 3)), np.ones(64), np.zeros((1, 64)), np.full((1, 64), np.inf)):
        with pytest.raises(StoreError):
            gallery.search(bad)
    with pytest.raises(StoreError, match=r"a single one \(1, 64\)"):
        gallery.search(np.ones(64))
    with pytest.raises(StoreError, match="names"):
        Gallery(["a"], np.ones((2, 3)))
