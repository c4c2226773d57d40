import numpy as np
import pytest

from recipes.harness.collapse import collapse


def simplex(classes):
    """As many unit vectors, all at one angle."""
    vectors = np.eye(classes) - 1 / classes
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_spread_within_over_spread_between():
    means = np.array([[1.0, 0.0], [-1.0, 0.0]])
    points = np.repeat(means, 2, axis=0) + np.array([[0, 0.5], [0, -0.5]] * 2)
    assert collapse(points, np.array([3, 3, 7, 7]))["collapse"] == pytest.approx(0.25)


def test_complete_collapse():
    """To a simplex, where there is room for one, and else to an orthogonal frame and its mirror image."""
    for means in (simplex(5), np.concatenate([np.eye(3), -np.eye(3)])):
        found = collapse(np.repeat(means, 3, axis=0), np.repeat(np.arange(len(means)), 3))
        assert found == pytest.approx({"collapse": 0, "norms": 0, "angles": 1, "astray": 0}, abs=1e-12)


def test_means_that_crowd_and_crops_that_stray():
    crowded = np.array([[1.0, 0.0, 0.0], [0.99, 0.1, 0.0], [0.0, 0.0, 1.0], [0.0, 0.1, 0.99]])
    found = collapse(np.repeat(crowded, 2, axis=0), np.repeat(np.arange(4), 2))
    assert found["angles"] > 1.5 and found["astray"] == 0
    # Of the first class one crop lies where the other class does, and the other as far from both.
    points = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert collapse(points, np.array([0, 0, 1, 1]))["astray"] == 25
    assert collapse(points[:2], np.array([0, 1])).keys() == {"collapse", "norms", "angles"}
    assert collapse(points[:2], np.array([0, 0])) == collapse(points[:0], np.array([], int)) == {}
    assert collapse(np.ones((4, 2)), np.array([0, 0, 1, 1])) == {}, "an encoder that says the same of everybody"
