"""Restore or recompute: the choice in figures."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from streamproc.schedule.recompute import MIND_S, Recompute
from streamproc.schedule.steptime import Load, StepTimes
from streamproc.state.blocks import BlockPool
from streamproc.state.fetches import FRESH_S
from streamproc.state.generation import Generation
from streamproc.state.tier import Tier
from streamproc.state.workload import Workload

BLOCK = 16
TOKEN_BYTES = 131_072  # of an 8B in bfloat16: 32 layers, 8 heads of 128, K and V
H100 = 8192 / 0.254  # tokens a second, of 8k
SLOW_CPU, CPU = 20.0, 200.0
GB, MB = 1e9, 1e6
NUM_TOKENS = 8192
MOST_COMING = 32  # blocks of 2 MiB


@dataclass
class Site:
    """A device and a store of these speeds, both measured; nothing of any context is in memory."""

    tokens_per_s: float
    bytes_per_s: float
    latency_s: float = 0.0
    now_s: float = 100.0
    asked: list[tuple[Sequence[bytes], "Future[Mapping[bytes, Any]]"]] = field(default_factory=list)
    is_measured: bool = True
    room: int = 0

    def __post_init__(self) -> None:
        self.times = StepTimes()
        for step in range(24):
            load = Load()
            load.add(1024 * (step % 5), 256 * (1 + step % 8))
            self.times.observe(load, load.rows / self.tokens_per_s)
        self.workload = Workload(BlockPool(4, BLOCK))
        self.tier = Tier(0, self, MOST_COMING, now=lambda: self.now_s)
        self.recompute = Recompute(self.times, self.tier, self.workload, 2048, 10.0)
        for count in (MOST_COMING, MOST_COMING // 4) if self.is_measured else ():
            self.measure(count)
        self.num_contexts = 0

    def measure(self, num_blocks: int) -> None:
        """So many blocks come."""
        future: Future[Mapping[bytes, Any]] = Future()
        names = frozenset(bytes([255, i]) for i in range(num_blocks))
        self.tier.fetches.begin(names, future)
        self.now_s += self.seconds(num_blocks)
        future.set_result(dict.fromkeys(names, 1))
        self.tier.fetches.collect()

    def seconds(self, num_blocks: int) -> float:
        return self.latency_s + num_blocks * BLOCK * TOKEN_BYTES / self.bytes_per_s

    def has(self, name: bytes) -> bool:
        return True

    def fetch(self, names: Sequence[bytes]) -> "Future[Mapping[bytes, Any]]":
        self.asked.append((names, Future()))
        return self.asked[-1][1]

    def put(self, name: bytes, data: Any) -> None:
        raise AssertionError(name)

    def context(self, num_tokens: int = NUM_TOKENS) -> Generation:
        """One that is stored whole, behind by all of it."""
        self.num_contexts += 1
        ids = tuple((self.num_contexts * 7919 + i) % 1000 for i in range(num_tokens))
        generation = Generation(self.num_contexts, ids, 0, 0)
        self.workload.grow(generation)
        return generation

    def finish(self) -> None:
        """All contexts are computed."""
        for generation in list(self.workload.growing.values()):
            self.workload.drop(generation)

    def come(self, seconds: float) -> None:
        """What was asked for last comes after so long."""
        names, future = self.asked[-1]
        self.now_s += seconds
        future.set_result(dict.fromkeys(names, 1))
        self.tier.collect()

    def computes(self, generation: Generation, at: int = 0) -> bool:
        """Whether it is computed from the block of this index on, as one plan sees it."""
        self.recompute.begin()
        return self.recompute.choose(generation, at, MOST_COMING)


@pytest.mark.parametrize(("tokens_per_s", "bytes_per_s", "expected"), [
    (H100, 0.5 * GB, True),
    (H100, 1 * GB, True),       # 254 ms against 1.07 s
    (H100, 2 * GB, True),
    (H100, 3 * GB, False),      # slower, but not clearly
    (H100, 4.2 * GB, False),
    (H100, 7 * GB, False),
    (H100, 50 * GB, False),
    (CPU, 1 * GB, False),       # 41 s against 1.07 s
    (CPU, 100 * MB, False),
    (CPU, 10 * MB, True),       # 41 s against 107 s
    (SLOW_CPU, 10 * MB, False),
])  # fmt: skip
def test_eight_thousand_tokens_of_an_8b(tokens_per_s: float, bytes_per_s: float, expected: bool) -> None:
    site = Site(tokens_per_s, bytes_per_s)
    assert site.computes(site.context()) == expected


def test_a_few_tokens_are_not_worth_a_choice_and_latency_is_worth_one() -> None:
    few, far = Site(H100, 1 * GB), Site(H100, 7 * GB, latency_s=0.5)
    assert not few.computes(few.context(256))
    assert far.tier.fetches.rate.latency_s == pytest.approx(0.5, rel=0.1)
    assert far.computes(far.context(2048))      # 64 ms against 0.54 s
    far.finish()
    assert not far.computes(far.context(65_536))    # 2.0 s against 1.7 s


def test_what_is_not_measured_is_fetched() -> None:
    site = Site(H100, 1 * MB, is_measured=False)
    assert not site.computes(site.context())
    site = Site(H100, 1 * GB, is_measured=False)
    site.recompute._times = StepTimes()
    site.measure(1)
    assert not site.computes(site.context(4096))    # half a second
    for rows in (1, 2, 3, 1, 2, 3, 2, 1):   # of such steps all takes as long
        load = Load()
        load.add(0, rows)
        site.recompute._times.observe(load, 1.0)
    site.bytes_per_s = 10 * MB  # 107 s against 8192 / 12 steps of 1 s
    for _ in range(20):
        site.measure(MOST_COMING)
    assert not site.computes(site.context())


def test_where_all_wait_for_long_and_the_device_has_done_nothing_one_tries_it_out() -> None:
    site = Site(H100, 1 * GB)
    site.recompute._times = StepTimes()
    first, second = site.context(), site.context()
    assert site.computes(first)
    assert [site.recompute.covers(first, index) for index in range(6)] == [True] * 4 + [False] * 2
    assert not site.computes(second)


def test_before_anything_has_come_nobody_waits_for_ever() -> None:
    site = Site(H100, 1 * GB, is_measured=False)
    first, second = site.context(), site.context()
    assert not site.computes(first)
    site.tier.offer([first.name(index, BLOCK) for index in range(MOST_COMING)])
    assert not site.computes(second)
    site.now_s += 0.254 * 1.5 + 0.06
    assert site.computes(second)
    assert not site.computes(first)     # it was asked for: to compute what comes at any moment is in vain


def test_who_comes_first_waits_and_who_would_wait_for_longer_is_computed_in_turn() -> None:
    """Both lines go on at the same speed: they are as long as each other, but for the margin."""
    site = Site(H100, 4.2 * GB)
    contexts = [site.context() for _ in range(8)]

    def plan() -> list[bool]:
        site.recompute.begin()
        return [site.recompute.choose(context, 0, MOST_COMING) for context in contexts]

    chosen = plan()
    assert chosen == [False, True, False, False, True, False, True, False]
    assert plan() == chosen


def test_what_is_on_its_way_counts_and_counts_once() -> None:
    site = Site(H100, 4.2 * GB)
    first, second = site.context(), site.context()
    for _ in range(2):      # nothing of it is asked for, then some is
        site.recompute.begin()
        assert not site.recompute.choose(first, 0, MOST_COMING)
        assert site.recompute._num_ahead == NUM_TOKENS // BLOCK
        site.tier.offer([first.name(index, BLOCK) for index in range(MOST_COMING)])
    assert site.recompute.choose(second, 0, MOST_COMING)


def test_a_choice_holds_for_some_blocks_and_is_made_again() -> None:
    site = Site(H100, 1 * GB)
    context = site.context()
    assert site.computes(context)
    covered = [site.recompute.covers(context, index) for index in range(NUM_TOKENS // BLOCK)]
    assert covered == [True] * MOST_COMING + [False] * (NUM_TOKENS // BLOCK - MOST_COMING)
    site.bytes_per_s = 50 * GB
    for _ in range(20):
        site.measure(MOST_COMING)
    context.advance(BLOCK * 5)
    assert site.computes(context, 5)        # begun is begun
    context.advance(BLOCK * (MOST_COMING - 5))
    assert not site.computes(context, MOST_COMING)


def test_cells_that_were_lost_are_chosen_for_anew() -> None:
    site = Site(H100, 1 * GB)
    context = site.context()
    assert site.computes(context)
    context.advance(BLOCK * 9)
    assert site.computes(context, 9)
    context.forget_cells()
    site.recompute.begin()
    assert not site.recompute.covers(context, 0)
    assert site.recompute._device_s == 0


def test_it_changes_its_mind_late_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "streamproc")
    site = Site(H100, 1 * GB)
    assert site.computes(site.context())
    site.computes(site.context())
    (line,) = caplog.messages
    assert line == (
        "snapshots: computing is faster than this store (32259 tokens/s against 7629 tokens/s): blocks are computed "
        "until it is quicker"
    )
    site.bytes_per_s = 3 * GB       # not clearly slower, and slower all the same
    site.now_s += MIND_S
    for _ in range(20):
        site.measure(MOST_COMING)
    site.finish()
    assert site.computes(site.context())
    site.bytes_per_s = 5 * GB
    for _ in range(20):
        site.measure(MOST_COMING)
    site.finish()
    assert not site.computes(site.context())
    assert len(caplog.messages) == 2
    assert "blocks are fetched" in caplog.messages[1]


def test_a_slow_store_is_looked_at_now_and_then() -> None:
    site = Site(H100, 1 * GB)
    assert site.computes(site.context())
    assert site.asked == []     # it was measured just now
    site.now_s += FRESH_S
    context = site.context()
    assert site.computes(context)
    ((names, _),) = site.asked
    probed = range(MOST_COMING - len(names), MOST_COMING)
    assert list(names) == [context.name(index, BLOCK) for index in probed]      # computing reaches them last
    site.computes(site.context())
    assert len(site.asked) == 1
    site.come(0.001)
    site.finish()
    assert site.computes(site.context())        # one does not settle it
    assert len(site.asked) == 2     # it was much quicker than it had been: looked at again at once
    for _ in range(5):
        site.come(0.001)
        site.tier._arrived.clear()
        site.finish()
        if not site.computes(site.context()):
            return
    raise AssertionError("it is quick again, and nobody sees that")


def test_the_time_of_a_block_is_what_lies_between_two_that_come() -> None:
    """A store sends one after the other: who asked early has waited for others."""
    site = Site(H100, 1 * GB, is_measured=False)
    fetches = site.tier.fetches
    futures: list[Future[Mapping[bytes, Any]]] = [Future() for _ in range(4)]
    for number, future in enumerate(futures):
        fetches.begin(frozenset({bytes([number, 1]), bytes([number, 2])}), future)
    site.now_s += 0.5
    for number, future in enumerate(futures):
        site.now_s += 0.2
        future.set_result(dict.fromkeys((bytes([number, 1]), bytes([number, 2])), 1))
    fetches.collect()
    assert fetches.rate.block_s == pytest.approx(0.1, rel=0.01)
    assert fetches.rate.latency_s == pytest.approx(0.5, rel=0.01)


def test_what_could_not_be_read_says_nothing_of_how_fast_a_store_is() -> None:
    site = Site(H100, 1 * GB, is_measured=False)
    for answer in ({}, {b"a": None}):
        future: Future[Mapping[bytes, Any]] = Future()
        site.tier.fetches.begin(frozenset({b"a"}), future)
        future.set_result(answer)
        site.tier.collect()
    assert not site.tier.fetches.rate.is_known


def test_the_copies_that_a_step_makes_count_as_fetching() -> None:
    """The store sends them in 154 ms; the device takes 10 s to copy so many in."""
    site = Site(H100, 7 * GB)
    assert not site.computes(site.context())
    for _ in range(30):
        site.recompute.loaded(10, 0.2)
    assert site.computes(site.context())
