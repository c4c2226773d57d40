"""speaker/vbx.py against slow twins: paths counted one by one, and a bound that never falls."""

import itertools
import math

import numpy as np
import pytest

from speaker.vbx import forward_backward, resegment


def test_forward_backward_equals_the_sum_over_all_paths():
    rng = np.random.default_rng(0)
    num, states, stay = 5, 3, 0.7
    likelihood, shares = rng.normal(0, 2, (num, states)), np.array([0.5, 0.3, 0.2])
    moves = stay * np.eye(states) + (1 - stay) * shares
    gamma, total, starts = forward_backward(likelihood, moves, shares, stay)
    evidence, posterior, begun = 0.0, np.zeros((num, states)), np.zeros(states)
    for path in itertools.product(range(states), repeat=num):
        weight = shares[path[0]] * math.exp(likelihood[0, path[0]])
        for t in range(1, num):
            weight *= moves[path[t - 1], path[t]] * math.exp(likelihood[t, path[t]])
        evidence += weight
        for t, state in enumerate(path):
            posterior[t, state] += weight
            if t:  # the part of the step that is a new beginning, not a staying
                begun[state] += weight * (1 - stay) * shares[state] / moves[path[t - 1], state]
    assert total == pytest.approx(math.log(evidence), abs=1e-9)
    np.testing.assert_allclose(gamma, posterior / evidence, atol=1e-9)
    np.testing.assert_allclose(starts, begun / evidence, atol=1e-9)


def turns(rng, psi, lengths, speakers):
    means = rng.normal(0, np.sqrt(psi), (max(speakers) + 1, len(psi)))
    truth = np.repeat(speakers, lengths)
    return means[truth] + rng.normal(0, 1, (len(truth), len(psi))), truth


def test_finds_the_speakers_and_drops_those_too_many():
    rng = np.random.default_rng(1)
    psi = np.linspace(8, 1, 10)
    x, truth = turns(rng, psi, [30, 20, 25, 30, 15], [0, 1, 2, 0, 1])
    start = rng.dirichlet(np.ones(6), len(x))
    start[np.arange(len(x)), np.repeat(range(5), [30, 20, 25, 30, 15])] += 2  # a state for every turn, and one more
    gamma, shares, _ = resegment(x, psi, start, stay=0.9, evidence=1.0, prior=10.0)
    found = gamma.argmax(1)
    pairs = {(int(a), int(b)) for a, b in zip(found, truth, strict=True)}
    assert len(pairs) == 3 and len({a for a, _ in pairs}) == 3, "each found state is one true speaker"
    assert (shares > 0.01).sum() == 3 and shares.sum() == pytest.approx(1)
    np.testing.assert_allclose(gamma.sum(1), 1)


@pytest.mark.parametrize(("evidence", "prior"), [(1.0, 1.0), (0.3, 11.0), (0.5, 2.0)])
def test_the_bound_never_falls(evidence, prior):
    rng = np.random.default_rng(2)
    psi = np.linspace(4, 0.5, 8)
    x, _ = turns(rng, psi, [20, 20, 20, 20], [0, 1, 0, 2])
    _, _, bounds = resegment(x, psi, rng.dirichlet(np.ones(5), len(x)), evidence=evidence, prior=prior, least_gain=-1.0)
    assert len(bounds) == 40 and min(np.diff(bounds)) > -1e-6 * abs(bounds[0])
