"""A network that loses packets in bursts: Gilbert (1960) and Elliott (1963) with a good state that loses nothing and a
bad one that loses everything, reproducible by its seed.

With the probabilities p of entering and r of leaving the bad state, the mean burst is 1 / r packets and the share of
lost ones p / (p + r); both are what users give, so r = 1 / burst and p = r loss / (1 - loss).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from engine.errors import ConfigError


def lost(num_packets: int, loss: float, burst: float = 1.0, seed: int = 0) -> NDArray[np.bool_]:
    """Which of the packets are lost: `loss` of all (0 to 1) in bursts of `burst` packets on average (from 1 up).

    The same seed gives the same losses, and more packets begin with those of fewer.
    """
    if not 0 <= loss < 1 or not 1 <= burst < math.inf:
        raise ConfigError(f"the share of losses is from 0 to below 1 and bursts are from 1 up, not {loss} and {burst}")
    leave = 1 / burst
    enter = leave * loss / (1 - loss)
    if enter > 1:
        raise ConfigError(
            f"{100 * loss:g} % of losses in bursts of {burst:g} would need less than one packet between bursts; "
            f"take bursts of at least {loss / (1 - loss):.2f}"
        )
    chances = np.random.default_rng(seed).random(num_packets + 1)
    states = np.empty(num_packets, dtype=bool)
    bad = bool(chances[0] < loss)
    for i, chance in enumerate(chances[1:]):
        states[i] = bad
        bad = chance >= leave if bad else chance < enter
    return states


def through(packets: Iterable[bytes], loss: float, burst: float = 1.0, seed: int = 0) -> Iterator[bytes]:
    """Yield the packets that arrive."""
    kept: NDArray[np.bool_] = np.zeros(0, dtype=bool)
    for i, packet in enumerate(packets):
        if i >= len(kept):
            kept = ~lost(2 * i + 1024, loss, burst, seed)
        if kept[i]:
            yield packet
