"""Contexts that come back from a store that is about as fast as to compute them: both do a part of it."""

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from planning import Planning

from streamproc.messages import Query
from streamproc.schedule.plan import Plan
from streamproc.state.session import Shape
from streamproc.state.tier import Tier

SMALL = 4  # tokens of a block
PREFIX = tuple(range(10))


class Store:
    """Sends so many blocks a second, one after the other, in the order in which they are asked for."""

    room = 0

    def __init__(self, blocks: Mapping[bytes, Any], blocks_per_s: float, latency_s: float) -> None:
        self.blocks, self.blocks_per_s, self.latency_s = blocks, blocks_per_s, latency_s
        self.now_s = self.free_s = 0.0
        self.coming: list[tuple[float, Sequence[bytes], Future[Mapping[bytes, Any]]]] = []
        self.num_sent = 0

    def has(self, name: bytes) -> bool:
        return name in self.blocks

    def fetch(self, names: Sequence[bytes]) -> "Future[Mapping[bytes, Any]]":
        start_s = max(self.free_s, self.now_s + self.latency_s)
        self.free_s = start_s + len(names) / self.blocks_per_s
        self.coming.append((self.free_s, names, Future()))
        return self.coming[-1][2]

    def put(self, name: bytes, data: Any) -> None:
        raise AssertionError(name)

    def go_to(self, now_s: float) -> None:
        """So late it is; what has come by then has come at its time."""
        while self.coming and self.coming[0][0] <= now_s:
            self.now_s, names, future = self.coming.pop(0)
            self.num_sent += len(names)
            future.set_result({name: self.blocks[name] for name in names})
        self.now_s = now_s


class Timed(Planning):
    """Steps take 2 ms and a millisecond for each token; where there is none, until something comes."""

    def __init__(self, store: Store, is_stored: bool, recomputes: bool) -> None:
        tier = Tier(0, store if is_stored else None, most_coming=64, now=lambda: store.now_s)
        shape = Shape(PREFIX, 10_000, 5_000)
        super().__init__(4_000, SMALL, 100, shape, step_s=0.1, tier=tier, recomputes=recomputes)
        self.store = store

    def seconds_of(self, plan: Plan) -> float:
        return 2e-3 + 1e-3 * plan.num_tokens

    def step(self) -> Plan:
        plan = super().step()
        next_s = self.store.coming[0][0] if self.store.coming else self.store.now_s
        self.store.go_to(max(self.store.now_s + self.seconds_of(plan), 0.0 if plan.chunks else next_s))
        return plan


def contexts(planning: Planning, count: int) -> None:
    rng = random.Random(7)
    for _ in range(count):
        session = planning.session()
        planning.record(session, tuple(rng.randrange(100) for _ in range(601)))


def restart(store: Store, count: int, is_stored: bool, recomputes: bool) -> tuple[float, Timed]:
    """All contexts come back, and each is asked something -> seconds until all is answered, and the new worker."""
    planning = Timed(store, is_stored, recomputes)
    contexts(planning, count)
    forks = [planning.ask(session, Query("q", "q", max_tokens=4), (7, 8, 9)) for session in planning.sessions]
    planning.drain()
    planning.workload.check()
    planning.texts = [fork.text for fork in forks]
    return store.now_s, planning


def stored(count: int) -> dict[bytes, Any]:
    """The blocks of all contexts."""
    first = Planning(4_000, SMALL, 400, Shape(PREFIX, 10_000, 5_000))
    contexts(first, count)
    first.drain()
    found = {}
    for session in first.sessions:
        for index in range(session.current.num_tokens // SMALL):
            block = session.current.block_table[index]
            found[session.current.name(index, SMALL)] = first.runner._bytes_of(block)
    return found


@pytest.mark.parametrize(("blocks_per_s", "share"), [(125, 0.75), (250, 0.7), (400, 0.85)])
def test_a_store_about_as_fast_as_to_compute_and_the_device_share_the_work(blocks_per_s: float, share: float) -> None:
    """250 blocks a second are the 1,000 tokens that the device computes in one. Answers are held to the oracle."""
    blocks = stored(12)
    seconds, texts = {}, set()
    for name, is_stored, recomputes in (("restored", True, False), ("computed", False, False), ("chosen", True, True)):
        seconds[name], planning = restart(Store(blocks, blocks_per_s, 0.02), 12, is_stored, recomputes)
        texts.add(tuple(planning.texts))
    assert len(texts) == 1
    assert seconds["chosen"] < share * min(seconds["restored"], seconds["computed"])


@pytest.mark.parametrize("blocks_per_s", [2_500, 25_000])
def test_a_fast_store_sends_all(blocks_per_s: float) -> None:
    blocks = stored(12)
    store = Store(blocks, blocks_per_s, 0.002)
    _, planning = restart(store, 12, True, True)
    assert planning.scheduler.tier.num_loaded > 0.98 * len(set(blocks))
    assert planning.num_tokens < 0.1 * len(blocks) * SMALL


def test_of_a_very_slow_store_little_is_asked() -> None:
    blocks = stored(12)
    always, _ = restart(Store(blocks, 10, 0.05), 12, True, False)
    never, _ = restart(Store(blocks, 10, 0.05), 12, False, False)
    store = Store(blocks, 10, 0.05)
    seconds, _ = restart(store, 12, True, True)
    assert never < seconds < 2 * never < always / 10
    assert store.num_sent < len(blocks) / 4
