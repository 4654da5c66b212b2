"""Where the log no longer fits what was committed: told in one line, and stopped or gone on from as the user says."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from fakes import FakeEngine
from gap_site import TRIGGERED, commit_by_hand, goes_on, one_partition, refusal, trades, with_policy, work
from workers import Site, ThreadWorker, create_topics, fake_engine, make_config, until

from streamproc.config import Topics
from streamproc.errors import Refused
from streamproc.kafka import recovery
from streamproc.kafka.identity import Identities
from streamproc.messages import Ask
from streamproc.records import Trade, encode_record
from streamproc.state.origin import Origin

pytestmark = pytest.mark.broker

@pytest.fixture
def site(bootstrap_servers: str, make_topics: Callable[..., Topics]) -> Site:
    return one_partition(bootstrap_servers, make_topics)


@pytest.fixture
def admin(bootstrap_servers: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap_servers})


def delete_up_to(admin: AdminClient, site: Site, offset: int) -> None:
    where = TopicPartition(site.config.topics.records, 0, offset)
    for future in admin.delete_records([where]).values():
        future.result()


def answered_offsets(site: Site) -> list[int]:
    return [answer.as_of.offset for answer in site.answers() if answer.as_of]


def test_records_deleted_before_they_were_processed(site: Site, admin: AdminClient) -> None:
    work(site, 0, 40)
    site.send_records(trades(40, 40))
    delete_up_to(admin, site, 60)
    line = refusal(site)
    assert f"{site.config.topics.records} partition 0: records 40 to 59 were deleted" in line
    assert "records 40 to 59 were deleted" in goes_on(site, 80)
    assert not set(range(40, 60)) & set(answered_offsets(site))
    assert answered_offsets(site)[-1] >= 115


def test_a_topic_that_was_deleted_and_made_again_is_told_from_the_one_that_was_read(
    site: Site, admin: AdminClient
) -> None:
    work(site, 0, 60)
    topic = site.config.topics.records
    admin.delete_topics([topic])[topic].result()
    until(lambda: topic not in admin.list_topics(timeout=5).topics, "the topic's end")
    create_topics(admin, NewTopic(topic, 1, 1))
    site = Site(site.config, 1)
    num_before = len(site.answers())
    site.send_records(trades(100, 30))
    assert f"{topic} partition 0: the topic was deleted and made again" in refusal(site)
    assert "it starts over in the new one" in goes_on(site, 130)
    expected = site.expected(TRIGGERED)
    assert len(site.answers()) - num_before == len(expected)
    assert site.triggered(TRIGGERED)[-1].offset == expected[-1].offset


def test_offsets_of_the_group_that_are_gone_are_not_taken_for_a_new_group(site: Site, admin: AdminClient) -> None:
    work(site, 0, 60)
    group = site.config.worker.group
    until(lambda: not admin.describe_consumer_groups([group])[group].result().members, "the group's rest")
    admin.delete_consumer_groups([group])[group].result()
    assert f"the committed offset of group {group} is gone, its 3 sessions are not" in refusal(site)
    assert "answers again what it reads again" in goes_on(site, 60)


def test_an_offset_beyond_the_end_of_the_log(site: Site) -> None:
    work(site, 0, 40)
    consumer = Consumer({**site.config.kafka, "group.id": site.config.worker.group})
    where = [TopicPartition(site.config.topics.records, 0, 1_000)]
    consumer.commit(offsets=where, asynchronous=False)
    consumer.close()
    assert "offset 1000 is committed, the log ends at 40: records were lost" in refusal(site)
    with ThreadWorker(with_policy(site.config, "rebuild")) as worker:
        until(lambda: worker.owned, "its partition")
        site.send_records(trades(40, 20))
        site.settle()
    assert any("it goes on from the log's end" in line for line in worker.warnings)
    assert work(site, 60, 20) == []
    assert site.triggered(TRIGGERED) == site.expected(TRIGGERED)


def test_asks_that_are_gone_are_told_and_do_not_stop_the_worker(site: Site) -> None:
    work(site, 0, 10)
    commit_by_hand(site, site.config.topics.asks, 77)
    with ThreadWorker(site.config) as worker:
        until(lambda: worker.owned, "its partition")
        site.ask(Ask("ask", "A", "how?", max_tokens=3))
        until(site.replies, "the reply")
    assert any("offset 77 is committed, the log holds 0 to 0" in line for line in worker.warnings)


@contextmanager
def held(worker: ThreadWorker) -> Iterator[None]:
    """The worker stands still between two steps."""
    step, is_held, goes_on = worker.processor.step, threading.Event(), threading.Event()

    def wait() -> None:
        is_held.set()
        goes_on.wait(60)
        step()

    worker.processor.step = wait  # type: ignore[method-assign]
    assert is_held.wait(60)
    yield
    worker.processor.step = step  # type: ignore[method-assign]
    goes_on.set()


@pytest.mark.parametrize("policy", ["fail", "rebuild"])
def test_records_deleted_under_a_worker_that_lags(policy: str, site: Site, admin: AdminClient) -> None:
    config = with_policy(site.config, policy)
    worker = ThreadWorker(config)
    site.send_records(trades(0, 20))
    site.settle()
    consumer = worker.processor.source._consumer  # type: ignore[attr-defined]
    where = [TopicPartition(config.topics.records, 0)]
    with held(worker):      # it polls nothing, and its client fetches nothing
        consumer.pause(where)
        site.send_records(trades(20, 40))
        delete_up_to(admin, site, 50)
        consumer.resume(where)
    if policy == "fail":
        until(lambda: worker.has_ended, "the end of the worker")
        with pytest.raises(Refused, match="records 20 to 49 were deleted before they were processed"):
            worker.stop()
        return
    site.settle()
    worker.stop()
    assert any("records 20 to 49 were deleted" in line for line in worker.warnings)
    assert not set(range(20, 50)) & set(answered_offsets(site))
    assert answered_offsets(site)[-1] >= 57


def add_partitions(admin: AdminClient, topics: list[str], count: int) -> None:
    for future in admin.create_partitions([NewPartitions(topic, count) for topic in topics]).values():
        future.result()


def test_partitions_that_are_added_are_picked_up(site: Site, admin: AdminClient) -> None:
    topics = site.config.topics
    with ThreadWorker(with_policy(site.config, "rebuild")) as worker:
        site.send_records(trades(0, 20))
        site.settle()
        add_partitions(admin, [topics.answers, topics.sessions, topics.asks, topics.records], 2)
        until(lambda: worker.owned == [0, 1], "the new partition")
        site = Site(site.config, 2)
        for trade in trades(20, 12):
            site.send(topics.records, trade.sym.encode(), encode_record(trade), 1)
        site.settle()
    assert {answer.as_of.partition for answer in site.answers() if answer.as_of} == {0, 1}
    assert site.triggered(TRIGGERED) == site.expected(TRIGGERED)
    (line,) = [line for line in worker.warnings if "worker.on_gap = rebuild" in line]
    assert f"{topics.records} partition 1: the topic had 1 partitions when group {site.config.worker.group}" in line
    with ThreadWorker(site.config) as worker:  # both offsets say so now
        until(lambda: worker.owned == [0, 1], "its partitions")
    assert worker.warnings == []


def test_partitions_added_while_nobody_was_there_are_a_gap(site: Site, admin: AdminClient) -> None:
    work(site, 0, 20)
    topics = site.config.topics
    add_partitions(admin, [topics.answers, topics.sessions, topics.asks, topics.records], 3)
    line = refusal(site)
    assert f"{topics.records} partition 0: the topic had 1 partitions" in line
    assert "it has 3 now" in line
    with ThreadWorker(with_policy(site.config, "rebuild")) as worker:
        until(lambda: worker.owned == [0, 1, 2], "its partitions")
        until(lambda: all(partition.is_signed for partition in worker.processor.partitions.values()), "an epoch")
    assert [line for line in worker.warnings if "a new session where it is now" in line] == worker.warnings
    assert len(worker.warnings) == 3
    site = Site(site.config, 3)
    assert work(site, 20, 20) == []  # an epoch without a record has said how many there are
    assert site.triggered(TRIGGERED) == site.expected(TRIGGERED)


def test_more_asks_than_records_partitions_are_refused(
    site: Site, admin: AdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "TIMEOUT_S", 1.0)
    topics = site.config.topics
    add_partitions(admin, [topics.asks, topics.sessions], 2)
    worker = ThreadWorker(site.config)
    until(lambda: worker.has_ended, "the end of the worker")
    with pytest.raises(Refused) as problem:
        worker.stop()
    assert str(problem.value) == (
        f"{topics.asks} has 2 partitions, {topics.records} has 1: they must have as many; do "
        f"`kafka-topics.sh --alter --topic {topics.records} --partitions 2`, then start again"
    )


def with_model(model: str) -> FakeEngine:
    return replace(fake_engine(), model=model)


def test_another_model_is_a_gap_without_snapshots_too(site: Site) -> None:
    work(site, 0, 20)
    line = refusal(site, with_model("b" * 16))
    assert f"group {site.config.worker.group} has processed it with model fake-model, this worker's is bbbb" in line
    site.send_records(trades(20, 20))
    with ThreadWorker(with_policy(site.config, "rebuild"), with_model("b" * 16)) as worker:
        site.settle()
    assert len(worker.warnings) == 1
    assert "contexts are computed again with this one" in worker.warnings[0]
    site.send_records(trades(40, 20))
    with ThreadWorker(site.config, with_model("b" * 16)) as worker:
        site.settle()
    assert worker.warnings == []
    assert "bbbb" in refusal(site)
    assert site.triggered(TRIGGERED) == site.expected(TRIGGERED)


def test_offsets_of_an_older_version_say_nothing_of_model_and_partitions(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Origin, "sign", lambda self, stamp: stamp.encode())
        work(site, 0, 20)
    with ThreadWorker(site.config, with_model("c" * 16)) as worker:
        until(lambda: worker.owned and worker.processor.partitions[0].is_signed, "an epoch")
    assert worker.warnings == []
    assert "model cccccccccccccccc" in refusal(site)


def slow_and_fast(start: int, count: int, *, has_slow: bool) -> list[Trade]:
    """Trades of FAST, and of SLOW every tenth."""
    return [
        Trade("SLOW" if has_slow and i % 10 == 0 else "FAST", 1_000 + i, f"{90 + i * 7 % 23}.{i % 10}", "1")
        for i in range(start, start + count)
    ]


def test_a_context_that_retention_has_cut_is_a_gap(site: Site, admin: AdminClient) -> None:
    """SLOW's records 0, 10, 20 and 30 are in one context; 0 and 10 are deleted."""
    config = site.config
    site.send_records(slow_and_fast(0, 40, has_slow=True))
    with ThreadWorker(config):
        site.settle()
    delete_up_to(admin, site, 15)
    line = refusal(site)
    topic = config.topics.records
    assert f"{topic} partition 0: records 0 to 14 are deleted, and with them the beginning of 1 sessions'" in line
    assert "the first that of 'SLOW', which began at 0" in line
    site.send_records(slow_and_fast(40, 11, has_slow=True))  # 40 and 50 are SLOW's
    with ThreadWorker(with_policy(config, "rebuild")):
        site.settle()
    for start in (51, 71):  # later owners count alike, and have nothing to say
        site.send_records(slow_and_fast(start, 20, has_slow=True))
        with ThreadWorker(config) as worker:
            site.settle()
        assert worker.warnings == []
    found = [item for item in site.triggered(TRIGGERED) if item.session == "SLOW" and item.offset >= 40]
    expected = [item for item in site.expected(TRIGGERED) if item.session == "SLOW" and item.offset >= 40]
    assert found == expected  # of an oracle that knows only what the log has
    assert [item.offset for item in found] == [50, 70, 90]


def test_a_session_whose_records_are_all_deleted_is_over_and_no_gap(
    site: Site, admin: AdminClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "streamproc")
    config = site.config
    site.send_records([*slow_and_fast(0, 15, has_slow=True), *slow_and_fast(15, 45, has_slow=False)])
    with ThreadWorker(config):
        site.settle()
    delete_up_to(admin, site, 12)  # 0 and 10 were SLOW's
    site.send_records(slow_and_fast(60, 5, has_slow=False))
    with ThreadWorker(config) as worker:
        site.settle()
    said = [line for line in caplog.messages if "are over" in line]
    assert said == [
        f"{config.topics.records} partition 0: 1 sessions are over, 'SLOW' the first by name: all their records are "
        "deleted; a later record begins such a session anew"
    ]
    assert worker.warnings == []
    site.send_records(slow_and_fast(65, 30, has_slow=True))
    with ThreadWorker(config) as worker:
        site.settle()
    assert len([line for line in caplog.messages if "are over" in line]) == 1
    found = [item for item in site.triggered(TRIGGERED) if item.session == "SLOW" and item.offset > 12]
    assert found == [item for item in site.expected(TRIGGERED) if item.session == "SLOW" and item.offset > 12]
    assert [item.offset for item in found] == [80]


def test_partitions_added_to_the_records_alone_stop_the_worker_with_what_to_do(
    site: Site, admin: AdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "TIMEOUT_S", 1.0)
    topics = site.config.topics
    worker = ThreadWorker(site.config)
    until(lambda: worker.owned, "its partition")
    add_partitions(admin, [topics.records], 2)
    until(lambda: worker.has_ended, "the end of the worker")
    with pytest.raises(Refused) as problem:
        worker.stop()
    assert str(problem.value) == (
        f"{topics.records} has 2 partitions, {topics.asks} has 1, {topics.sessions} has 1: they must have as many; do "
        f"`kafka-topics.sh --alter --topic {topics.asks} --partitions 2` and "
        f"`kafka-topics.sh --alter --topic {topics.sessions} --partitions 2`, then start again"
    )


def test_kafka_is_asked_once_for_all_partitions_of_an_assignment(
    bootstrap_servers: str, make_topics: Callable[..., Topics], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(make_config(make_topics(4), bootstrap_servers), 4)
    site.register(TRIGGERED)
    work(site, 0, 40)
    asked: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: asked.append(name) or function(*given)

    monkeypatch.setattr(recovery, "read_heads", counted("heads", recovery.read_heads))
    monkeypatch.setattr(recovery, "read_committed", counted("committed", recovery.read_committed))
    monkeypatch.setattr(Identities, "of", counted("topics", Identities.of))
    with ThreadWorker(site.config) as worker:
        until(lambda: worker.owned == [0, 1, 2, 3], "its partitions")
    assert sorted(asked) == ["committed", "heads", "topics"]
    assert work(site, 40, 40) == []
    assert site.triggered(TRIGGERED) == site.expected(TRIGGERED)
