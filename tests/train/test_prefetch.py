"""Working ahead: order, errors, and how much is alive at once."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from jaxwrap.train.prefetch import prefetch


def test_order_is_kept_and_what_the_maker_raised_is_raised_in_its_turn() -> None:
    assert list(prefetch(k * k for k in range(2, 6))) == [4, 9, 16, 25]
    assert list(prefetch([])) == []

    def fails() -> Iterator[int]:
        yield 1
        raise RuntimeError("picture 3")

    found = prefetch(fails())
    assert next(found) == 1
    with pytest.raises(RuntimeError, match="picture 3"):
        next(found)


def test_no_more_items_are_alive_than_promised() -> None:
    class Item:
        """What a weak reference can point to."""

        def __init__(self) -> None:
            self.samples = np.zeros(10)

    alive: weakref.WeakSet[Item] = weakref.WeakSet()
    most = 0

    def make() -> Iterator[Item]:
        for _ in range(40):
            item = Item()
            alive.add(item)
            yield item
            del item

    for item in prefetch(make(), depth=3):
        time.sleep(0.005)  # slower than the maker, so that the queue is full
        most = max(most, len(alive))
        del item
    # Full queue 3, one made and waiting to be put, one in hand.
    assert 3 <= most <= 5


def test_closing_early_ends_the_thread_and_the_generator() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    before = threading.active_count()
    items = prefetch(endless())
    next(items)
    items.close()
    assert closed.is_set()
    assert threading.active_count() == before
