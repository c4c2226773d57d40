"""Work on many items, in order, by one process or by several."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch

B = TypeVar("B")
Item = TypeVar("Item")
Made = TypeVar("Made")
T = TypeVar("T")
BATCH = 16  # items that a process takes at once


def on_each(
    make: Callable[[], Made], work: Callable[[Made, Item], T], items: Iterable[Item], workers: int
) -> Iterator[T]:
    """What `work` makes of each item, with what `make` has made once in each process.

    Each of several processes has one thread; `make` and `work` are then functions of a module, or `partial`s of such.
    """
    items = iter(items)
    if workers <= 1:
        made = make()
        yield from (work(made, item) for item in items)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(make,)) as pool:
        batches = iter(lambda: list(itertools.islice(items, BATCH)), [])
        yield from in_order(pool, partial(_work, work=work), batches, 2 * workers)


def in_order(pool: Executor, work: Callable[[B], Iterable[T]], batches: Iterator[B], ahead: int) -> Iterator[T]:
    """What `work` makes of the batches, item by item; `ahead` of them at a time, since they wait in memory."""
    waiting = deque(pool.submit(work, batch) for batch in itertools.islice(batches, ahead))
    while waiting:
        yield from waiting.popleft().result()
        waiting.extend(pool.submit(work, batch) for batch in itertools.islice(batches, 1))


_made: list[Any] = []  # of this process, where it is one of several


def _begin(make: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    _made.append(make())


def _work(batch: list[Any], work: Callable[[Any, Any], T]) -> list[T]:
    return [work(_made[-1], item) for item in batch]
