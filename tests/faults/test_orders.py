"""Failures that a worker is told to have: it gets somewhere between them, however much it has to read again."""

from types import SimpleNamespace
from typing import Any

import pytest
from harness.worker import MORTAL, Orders, Thrown, loop

from streamproc.state.lifecycle import Phase

RESTORED, BATCH = 600, 50


class Restoring:
    """A processor that reads records again before it takes new ones."""

    def __init__(self) -> None:
        self.counters = SimpleNamespace(records=0, flash_answers=0, epochs=0, aborted_epochs=0)
        self.partition = SimpleNamespace(next_offset=0, live_from=RESTORED, phase=Phase.RESTORING)
        self.partitions = {0: self.partition}

    def step(self) -> None:
        self.counters.records += BATCH
        self.partition.next_offset += BATCH

    def check(self) -> None:
        """There is nothing to check."""


def die(seed: int) -> Restoring:
    processor: Any = Restoring()
    with pytest.raises(Thrown):
        loop(processor, lambda: False, lambda **_: None, Orders(throw_after=200, seed=seed))
    return processor


def test_who_is_told_to_die_after_some_records_dies_after_so_many_new_ones() -> None:
    for seed in range(1, MORTAL):
        assert die(seed).partition.next_offset > RESTORED


def test_now_and_then_one_dies_while_it_restores() -> None:
    assert die(MORTAL).partition.next_offset < RESTORED
