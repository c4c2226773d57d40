"""VBx: forward-backward beside the sum over all paths, a bound that rises, speakers found."""

import itertools

import numpy as np
import pytest

from engine.errors import ConfigError
from speaker.vbx import VbxConfig, forward_backward, vbx


def test_forward_backward_equals_the_sum_over_all_paths():
    rng = np.random.default_rng(0)
    emit, prior, loop = rng.normal(0, 2, (5, 3)), rng.dirichlet(np.ones(3)), 0.7
    total, gamma, entered = 0.0, np.zeros((5, 3)), np.zeros(3)
    # Between two windows the state is kept, or drawn anew; the draw may give it again.
    for path in itertools.product(range(3), repeat=5):
        for drawn in itertools.product((False, True), repeat=4):
            p = prior[path[0]] * np.exp(emit[0, path[0]])
            for t in range(1, 5):
                p *= np.exp(emit[t, path[t]])
                p *= (1 - loop) * prior[path[t]] if drawn[t - 1] else loop * (path[t] == path[t - 1])
            total += p
            gamma[np.arange(5), path] += p
            for t in (0, *(t for t in range(1, 5) if drawn[t - 1])):
                entered[path[t]] += p
    found = forward_backward(emit, prior, loop)
    np.testing.assert_allclose(found[0], gamma / total, atol=1e-12)
    np.testing.assert_allclose(found[1], entered / total, atol=1e-12)
    assert found[2] == pytest.approx(np.log(total))


def conversation(rng, num=3, dim=12, turns=20, length=10):
    psi = np.linspace(8, 0.5, dim)
    voices = rng.normal(0, 1, (num, dim)) * np.sqrt(psi)
    truth = np.repeat(rng.integers(0, num, turns), length)
    return voices[truth] + rng.normal(0, 1, (len(truth), dim)), psi, truth


@pytest.mark.parametrize("seed", range(5))
def test_the_evidence_lower_bound_never_decreases(seed):
    rng = np.random.default_rng(seed)
    x, psi, truth = conversation(rng)
    bounds = vbx(x, psi, rng.integers(0, 6, len(truth)), VbxConfig(fa=0.4, fb=2.0, tolerance=-1.0))[1]
    assert len(bounds) == 40 and (np.diff(bounds) > -1e-7 * np.abs(bounds[:-1])).all()


def test_labels_with_errors_and_too_many_speakers_are_mended():
    rng = np.random.default_rng(0)
    x, psi, truth = conversation(rng)
    start = np.where(rng.random(len(truth)) < 0.2, rng.integers(0, 6, len(truth)), truth)
    found = vbx(x, psi, start, VbxConfig(fa=0.5, fb=2.0))[0].argmax(1)
    assert len(np.unique(found)) == len(np.unique(truth))
    assert (found == truth).mean() > 0.99 > (start == truth).mean()


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="loop_prob"):
        VbxConfig(loop_prob=1.0)
