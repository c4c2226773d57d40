"""The lossy network: shares and bursts as asked for, reproducible."""

import numpy as np
import pytest

from codec.channel import lost, through
from engine.errors import ConfigError


@pytest.mark.parametrize("loss, burst", [(0.05, 1.0), (0.1, 3.0), (0.3, 2.0), (0.5, 10.0)])
def test_share_and_burst_are_as_asked_for(loss, burst):
    states = lost(200_000, loss, burst, seed=1)
    assert states.mean() == pytest.approx(loss, rel=0.08)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], states.astype(int), [0]])))
    assert (edges[1::2] - edges[::2]).mean() == pytest.approx(burst, rel=0.05)


def test_the_seed_decides_and_more_packets_begin_alike():
    assert np.array_equal(lost(100, 0.2, 2, seed=5), lost(1000, 0.2, 2, seed=5)[:100])
    assert not np.array_equal(lost(1000, 0.2, 2, seed=5), lost(1000, 0.2, 2, seed=6))
    packets = [bytes([i % 256]) for i in range(5000)]
    kept = [p for p, gone in zip(packets, lost(5000, 0.2, 2, 5), strict=True) if not gone]
    assert list(through(packets, 0.2, 2, 5)) == kept
    assert list(through(packets, 0.0)) == packets


@pytest.mark.parametrize("loss, burst", [(1.0, 1), (-0.1, 1), (0.1, 0.5), (0.6, 1)])
def test_impossible_channels_are_refused(loss, burst):
    with pytest.raises(ConfigError, match="from 0 to below 1|less than one packet between"):
        lost(10, loss, burst)
