"""More records than the worker can compute, on a real Kafka: no partition keeps another one waiting."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from fakes import FakeEngine, FakeFlight, FakeRenderer, FakeRunner
from workers import BLOCK, Site, ThreadWorker, make_config, until, with_slot

from streamproc.config import Topics
from streamproc.kafka import source
from streamproc.kafka.stretch import Stretch
from streamproc.messages import Query
from streamproc.positions import End, Start
from streamproc.records import Trade, encode_record
from streamproc.schedule.plan import Plan
from streamproc.state import waiting

pytestmark = pytest.mark.broker

NUM_PARTITIONS = 4
TRIGGERED = [Query("always-2", "Is {last} {count}?", every=2, max_tokens=5)]
STEP_S = 0.01
NUM_BEHIND = 6_000  # records of every partition but the last


class Slow(FakeRunner):
    """A device that takes its time for every step."""

    def __init__(self) -> None:
        super().__init__(4_000, BLOCK)

    def launch(self, plan: Plan) -> FakeFlight:
        ready_s = time.monotonic() + STEP_S

        class Flight(FakeFlight):
            def is_done(self, timeout_s: float) -> bool:
                time.sleep(max(0.0, min(timeout_s, ready_s - time.monotonic())))
                return time.monotonic() >= ready_s

        return Flight(self, plan)


@pytest.fixture
def site(bootstrap_servers: str, make_topics: Callable[..., Topics]) -> Site:
    config = make_config(make_topics(NUM_PARTITIONS), bootstrap_servers, context_tokens=4096)
    return Site(replace(config, worker=replace(config.worker, backlog_tokens=500)), NUM_PARTITIONS)


def fill(site: Site, number: int, first: int, count: int) -> None:
    sym = f"S{number}"
    for offset in range(first, first + count):
        value = encode_record(Trade(sym, 1_000 + offset, f"{90 + offset * 7 % 23}.5", "1"))
        site._producer.send(site.config.topics.records, sym.encode(), value, number)
    assert site._producer.flush(20) == 0


def test_a_partition_comes_back_and_is_answered_while_the_others_have_far_more_than_can_be_computed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MOST_RECORDS", 1_000)
    site.register(TRIGGERED)
    last = NUM_PARTITIONS - 1
    fill(site, last, 0, 4)
    with ThreadWorker(site.config):
        site.settle()
    for number in range(last):
        fill(site, number, 0, NUM_BEHIND)
    with ThreadWorker(site.config, FakeEngine(Slow(), FakeRenderer())) as running:
        partitions = running.processor.partitions
        until(lambda: last in partitions and partitions[last].is_live, "the last partition to come back")
        assert min(partitions[number].next_offset for number in range(last)) < NUM_BEHIND / 2
        fill(site, last, 4, 20)
        until(lambda: partitions[last].committed[0] == 24, "its new records")
        assert max(partitions[number].next_offset for number in range(last)) < NUM_BEHIND
        until(lambda: running.processor.source._stopped == set(range(last)), "the others to be stopped")  # type: ignore[attr-defined]


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_what_is_stopped_is_fetched_again_in_order_whoever_comes_and_goes_meanwhile(
    protocol: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MOST_RECORDS", 40)
    monkeypatch.setattr(source, "BATCH", 20)
    session = {"session.timeout.ms": "6000"} if protocol == "classic" else {}
    site.config = replace(site.config, kafka={**site.config.kafka, "group.protocol": protocol, **session})
    site.register(TRIGGERED)
    for number in range(NUM_PARTITIONS):
        fill(site, number, 0, 300)
    stopped: list[frozenset[int]] = []
    with ThreadWorker(with_slot(site.config, "a"), FakeEngine(Slow(), FakeRenderer())) as first:
        until(lambda: first.processor.source._stopped, "fetching stopped")  # type: ignore[attr-defined]
        with ThreadWorker(with_slot(site.config, "b"), FakeEngine(Slow(), FakeRenderer())) as second:
            until(lambda: len(second.owned) == NUM_PARTITIONS // 2, "half of the partitions")
            until(lambda: second.processor.source._stopped, "fetching stopped")  # type: ignore[attr-defined]
        until(lambda: len(first.owned) == NUM_PARTITIONS, "all partitions again")
        until(lambda: stopped.append(first.processor.source._stopped) or site.is_settled(), "all records", 90)
        assert first.processor.source._stopped == frozenset()
    assert len(set(stopped)) > 1
    assert site.triggered(TRIGGERED) == site.expected(TRIGGERED)
    assert len({answer.id for answer in site.answers()}) == len(site.answers())


def take(stretch: Stretch, count: int) -> list[int]:
    """Partitions of so many records more; fewer where no more come for a second."""
    found: list[int] = []
    quiet_s = time.monotonic() + 1.0
    while len(found) < count and time.monotonic() < quiet_s:
        if batch := stretch.poll(0.05):
            found += [message.partition for message in batch]
            quiet_s = time.monotonic() + 1.0
    return found


@pytest.mark.parametrize("num_after", [0, 40])  # records after the stretch's end: then partitions end one by one
def test_a_stretch_brings_nothing_of_partitions_that_are_held_and_all_of_them_later(
    num_after: int, site: Site
) -> None:
    for number in range(NUM_PARTITIONS):
        fill(site, number, 0, 30)
    stretch = Stretch(site.config, Start(), End())
    try:
        for number in range(NUM_PARTITIONS):
            fill(site, number, 30, num_after)
        stretch.hold({0, 2})
        assert sorted(take(stretch, 61)) == 30 * [1] + 30 * [3]
        assert not stretch.is_read
        stretch.hold({2})
        assert take(stretch, 31) == 30 * [0]
        stretch.hold(())
        assert take(stretch, 31) == 30 * [2]
        assert stretch.is_read
    finally:
        stretch.close()
