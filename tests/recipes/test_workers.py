"""The same work by one process and by several."""

from functools import partial
from operator import add

import numpy as np
import pytest
import torch

from recipes.harness.workers import BATCH, on_each


def threads(made, item):
    return made, item, torch.get_num_threads()


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_once_and_in_order(workers):
    items = range(3 * BATCH + 5)
    found = list(on_each(partial(add, 40, 2), threads, items, workers))
    assert [(made, item) for made, item, _ in found] == [(42, item) for item in items]
    assert workers == 1 or all(count == 1 for *_, count in found)
    assert list(on_each(partial(add, 40, 2), threads, [], workers)) == []


def test_an_error_of_a_worker_is_raised():
    with pytest.raises(TypeError):
        list(on_each(partial(np.zeros, 3), add, [np.ones(3), "x"], 2))
