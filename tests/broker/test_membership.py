"""Workers of one group that come, go, die and come back, on a real Kafka, with both group protocols."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from fakes import FakeEngine, FakeFlight, FakeRenderer, FakeRunner
from workers import BLOCK, Site, ThreadWorker, as_toml, fake_engine, make_config, until, with_slot

from streamproc.config import Config, Topics
from streamproc.errors import Fenced
from streamproc.kafka import slot
from streamproc.messages import Query
from streamproc.records import Trade
from streamproc.schedule.plan import Plan
from streamproc.state import waiting

pytestmark = pytest.mark.broker

NUM_PARTITIONS = 3
TRIGGERED = [Query("always-2", "Is {last} {count}?", every=2, max_tokens=5)]
SCRIPT = Path(__file__).parents[1] / "support" / "poison_worker.py"
PROTOCOLS = ["consumer", "classic"]
SESSION_MS = {"consumer": {}, "classic": {"session.timeout.ms": "6000"}}


@pytest.fixture
def site(bootstrap_servers: str, make_topics: Callable[..., Topics]) -> Site:
    return Site(make_config(make_topics(NUM_PARTITIONS), bootstrap_servers), NUM_PARTITIONS)


def with_kafka(config: Config, **properties: str) -> Config:
    return replace(config, kafka={**config.kafka, **{name.replace("_", "."): v for name, v in properties.items()}})


def with_protocol(site: Site, protocol: str) -> None:
    site.config = replace(
        site.config, kafka={**site.config.kafka, "group.protocol": protocol, **SESSION_MS[protocol]}
    )


def trades(start: int, count: int) -> list[Trade]:
    return [Trade(f"BE{i % 16}", 1_000 + i, f"{90 + i * 7 % 23}.{i % 10}", "1") for i in range(start, start + count)]


def check(site: Site) -> None:
    assert site.triggered(TRIGGERED) == site.expected(TRIGGERED)
    ids = [answer.id for answer in site.answers()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_workers_come_and_go_while_records_flow_and_no_answer_is_lost_or_repeated(protocol: str, site: Site) -> None:
    with_protocol(site, protocol)
    site.register(TRIGGERED)
    stopped, sent = threading.Event(), [0]

    def produce() -> None:
        while not stopped.wait(0.01):
            site.send_records(trades(sent[0], 8))
            sent[0] += 8

    thread = threading.Thread(target=produce)
    with ThreadWorker(with_slot(site.config, "a")) as first:
        thread.start()
        try:
            for turn in range(2):
                second = ThreadWorker(with_slot(site.config, f"b{turn}"))
                until(lambda w=second: w.owned and len(first.owned + w.owned) == NUM_PARTITIONS, "a share for both")
                time.sleep(0.3)
                second.stop()
                until(lambda: len(first.owned) == NUM_PARTITIONS, "all partitions back")
        finally:
            stopped.set()
            thread.join()
        site.settle()
    check(site)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_restart_in_a_slot_gets_its_partitions_back_without_a_rebalance(protocol: str, site: Site) -> None:
    with_protocol(site, protocol)
    site.register(TRIGGERED)
    with ThreadWorker(with_slot(site.config, "a"), instance_id="a") as other:
        worker = ThreadWorker(with_slot(site.config, "b"), instance_id="b")
        until(lambda: worker.owned and len(other.owned + worker.owned) == NUM_PARTITIONS, "a share for both")
        site.send_records(trades(0, 64))
        site.settle()
        owned, others = worker.owned, other.owned
        seen: list[object] = []
        other.processor.assigned = seen.append  # type: ignore[method-assign,assignment]
        other.processor.revoked = seen.append  # type: ignore[method-assign,assignment]
        worker.stop()
        worker = ThreadWorker(with_slot(site.config, "b"), instance_id="b")
        until(lambda: worker.owned == owned, "its partitions back")
        site.send_records(trades(64, 64))
        site.settle()
        assert other.owned == others
        assert seen in ([], [{}])
        del other.processor.assigned, other.processor.revoked
        worker.stop()
    check(site)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[[Config], subprocess.Popen[bytes]]]:
    """A static worker process, killed with the test at the latest."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(config: Config) -> subprocess.Popen[bytes]:
        file = tmp_path / "streamproc.toml"
        file.write_text(as_toml(config))
        processes.append(subprocess.Popen([sys.executable, str(SCRIPT), "nothing", str(file)]))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_restart_after_a_kill_waits_until_kafka_has_let_go_of_its_slot(
    protocol: str,
    site: Site,
    process: Callable[[Config], subprocess.Popen[bytes]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with_protocol(site, protocol)
    site.register(TRIGGERED)
    site.send_records(trades(0, 40))
    killed = process(site.config)
    site.settle()
    killed.kill()
    killed.wait()
    site.send_records(trades(40, 40))
    with ThreadWorker(site.config, instance_id=site.config.worker.slot) as worker:
        site.settle()
        told = [line for line in worker.warnings if "is still taken" in line]
    assert len(told) == (protocol == "consumer")
    assert not [line for line in caplog.messages if "instance ID" in line], "the client says it at every try"
    assert all("slot a of group" in line and "worker.slot of its own" in line for line in told)
    check(site)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_two_living_workers_in_one_slot_are_told_in_one_line(
    protocol: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot, "RELEASE_S", 2.0)
    with_protocol(site, protocol)
    site.register(TRIGGERED)
    first = ThreadWorker(site.config, instance_id="a")
    until(lambda: len(first.owned) == NUM_PARTITIONS, "all partitions with the first")
    second = ThreadWorker(site.config, instance_id="a")
    refused, other = (second, first) if protocol == "consumer" else (first, second)
    until(lambda: refused.has_ended, "the end of one of them")
    with pytest.raises(Fenced, match=r"in slot a: give each worker its own worker\.slot") as problem:
        refused.stop()
    assert "\n" not in str(problem.value)
    site.send_records(trades(0, 64))
    site.settle()
    other.stop()
    check(site)


def test_a_consumer_that_fell_asleep_is_made_anew(site: Site) -> None:
    config = replace(site.config, worker=replace(site.config.worker, stall_s=1))
    site.register(TRIGGERED)
    with ThreadWorker(config) as worker:
        site.send_records(trades(0, 64))
        site.settle()
        source = worker.processor.source
        asleep = source._consumer  # type: ignore[attr-defined]
        asleep.pause([TopicPartition(config.topics.records, number) for number in range(NUM_PARTITIONS)])
        time.sleep(1.5)
        assert worker.warnings == []
        site.send_records(trades(64, 64))
        site.settle()
        told = [line for line in worker.warnings if "records wait" in line]
    assert len(told) == 1
    assert "none has come for 1 s: joining the group anew" in told[0]
    check(site)


class Busy(FakeRunner):
    """A device that takes long for its first step."""

    def __init__(self, seconds: float) -> None:
        super().__init__(2_000, BLOCK)
        self.until_s, self.seconds = 0.0, seconds

    def launch(self, plan: Plan) -> FakeFlight:
        if plan.chunks and not self.until_s:
            self.until_s = time.monotonic() + self.seconds
        runner = self

        class Flight(FakeFlight):
            def is_done(self, timeout_s: float) -> bool:
                time.sleep(timeout_s)
                return time.monotonic() > runner.until_s

        return Flight(self, plan)


def test_a_busy_device_never_makes_the_worker_miss_a_poll_even_while_fetching_is_stopped(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MOST_RECORDS", 10)
    with_protocol(site, "classic")  # with the new one the library takes no interval below 45 s
    worker = replace(site.config.worker, backlog_tokens=200)
    config = replace(
        site.config, worker=worker, kafka={**site.config.kafka, "max.poll.interval.ms": "6000"}
    )
    site.register(TRIGGERED)
    site.send_records(trades(0, 64))
    with ThreadWorker(config, FakeEngine(Busy(9.0), FakeRenderer())) as running:
        until(lambda: len(running.owned) == NUM_PARTITIONS, "all partitions")
        lost: list[object] = []
        running.processor.lost = lost.append  # type: ignore[method-assign,assignment]
        until(lambda: running.processor._pressure.is_high, "records wait")
        site.send_records(trades(64, 64))
        until(lambda: running.processor.source._stopped, "fetching stopped")  # type: ignore[attr-defined]
        site.settle()
    assert lost == []
    assert running.warnings == []
    assert running.processor.counters.aborted_epochs == 0
    check(site)


def test_a_slow_device_does_not_hold_up_a_hand_over_for_longer_than_it_may(site: Site) -> None:
    config = replace(site.config, worker=replace(site.config.worker, revoke_ms=300))
    site.register(TRIGGERED)
    engine = fake_engine()
    run = engine.runner.run
    engine.runner.run = lambda plan: time.sleep(0.1 * bool(plan.chunks)) or run(plan)  # type: ignore[method-assign]
    with ThreadWorker(config, engine) as first:
        until(lambda: len(first.owned) == NUM_PARTITIONS, "all partitions with the first")
        took: list[float] = []
        revoked = first.processor.revoked

        def timed(numbers: list[int]) -> None:
            began = time.monotonic()
            revoked(numbers)
            took.append(time.monotonic() - began)

        first.processor.revoked = timed  # type: ignore[method-assign,assignment]
        site.send_records(trades(0, 400))
        with ThreadWorker(with_slot(site.config, "b")):
            until(lambda: took, "a revocation")
            assert took[0] < 1.2
            del first.processor.revoked
            site.settle(60)
    check(site)


def test_a_new_owner_waits_for_the_end_of_a_transaction_that_its_predecessor_left_open(site: Site) -> None:
    """Its offsets are not to be had before: the broker aborts it when its time is up."""
    site.register(TRIGGERED)
    site.send_records(trades(0, 40))
    consumer = Consumer({**site.config.kafka, "group.id": site.config.worker.group, "group.protocol": "classic"})
    consumer.subscribe([site.config.topics.records])
    until(lambda: consumer.poll(0.1) or consumer.assignment(), "an assignment")
    dead = Producer({**site.config.kafka, "transactional.id": "dead", "transaction.timeout.ms": 18_000})
    dead.init_transactions(10)
    dead.begin_transaction()
    offsets = [TopicPartition(site.config.topics.records, number, 2) for number in range(NUM_PARTITIONS)]
    dead.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), 10)
    consumer.close()
    with ThreadWorker(site.config) as worker:
        site.settle(60)
    assert worker.warnings == []
    check(site)
