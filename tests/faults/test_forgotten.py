"""Clients that were told that there are no brokers: librdkafka forgets all of them, and never tries again by itself.

Its issue 5301, met where the last broker of a cluster is shut down. Here the proxy tells the lie.
"""

import time
from dataclasses import replace
from typing import Any

import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient
from harness.cluster import Cluster as Kafka
from harness.proxy import FORGETFUL
from harness.topics import admin_properties, make_topics
from workers import Site, ThreadWorker, make_config, until

from streamproc.config import Topics
from streamproc.errors import Unavailable
from streamproc.kafka import identity, lifeline
from streamproc.kafka import topics as topics_module
from streamproc.kafka.cluster import Cluster
from streamproc.kafka.identity import Identities
from streamproc.kafka.producing import AckedProducer
from streamproc.kafka.source import Source
from streamproc.kafka.tailing import Tail
from streamproc.messages import Query
from streamproc.records import Trade

pytestmark = pytest.mark.broker
PARTITIONS = {"records": 1, "asks": 1, "sessions": 1, "answers": 1, "control": 1, "dead": 1}
LANE = 0
BACK_S = 60.0


@pytest.fixture
def kafka(cluster: Kafka) -> Kafka:
    return cluster


@pytest.fixture
def topics(kafka: Kafka) -> Topics:
    return make_topics(AdminClient(admin_properties(kafka.address)), "forgotten", PARTITIONS)


@pytest.fixture
def properties(kafka: Kafka) -> dict[str, Any]:
    return {"bootstrap.servers": kafka.lane_address(LANE), "log_level": 0}


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "QUIET_S", 1.0)
    for module in (identity, topics_module):
        monkeypatch.setattr(module, "TIMEOUT_S", 2.0)


def lie(kafka: Kafka, client: Any, topic: str) -> None:
    """Tell it that there are no brokers, until it believes that for good: which of its threads is the first decides."""
    (lane,) = kafka.lanes[LANE]
    for _ in range(30):
        lane.weather = FORGETFUL
        answers(client, topic, 0.3)
        kafka.proxy.clear()
        if not answers(client, topic, 1.0):
            return
    pytest.fail("the library finds its brokers again: has it been mended? Then lifeline.py may go")


def answers(client: Any, topic: str, timeout_s: float) -> bool:
    try:
        client.list_topics(topic, timeout=timeout_s)
    except KafkaException:
        return False
    return True


@pytest.mark.parametrize("strategy", ["rebootstrap", "none"])
def test_the_library_forgets_its_brokers_for_good(
    strategy: str, kafka: Kafka, topics: Topics, properties: dict[str, Any]
) -> None:
    producer = Producer({**properties, "reconnect.backoff.max.ms": 100, "metadata.recovery.strategy": strategy})
    assert answers(producer, topics.records, 5)
    lie(kafka, producer, topics.records)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        assert not answers(producer, topics.records, 1)


def test_a_producer_that_lost_kafka_goes_on_by_a_new_one(
    kafka: Kafka, topics: Topics, properties: dict[str, Any]
) -> None:
    producer = AckedProducer({**properties, "message.timeout.ms": 10_000})
    producer.send_and_wait(topics.records, b"S", b"before")
    lie(kafka, producer._producer, topics.records)
    producer.send(topics.records, b"S", b"lost")

    def has_new() -> bool:
        producer.poll(0.1)
        return bool(producer._given_up)

    until(has_new, "a new producer", BACK_S)
    producer.send_and_wait(topics.records, b"S", b"after")
    assert producer.flush(BACK_S) == 0
    assert (producer.num_sent, producer.num_acked, producer.num_failed) == (3, 2, 1)
    tail = Tail({"bootstrap.servers": kafka.address}, topics.records, 1)
    tail.start({0: 0})
    assert [message.value for message in tail.read_to_end()] == [b"before", b"after"]
    tail.close()


def test_a_reader_that_lost_kafka_goes_on_where_it_was(
    kafka: Kafka, topics: Topics, properties: dict[str, Any]
) -> None:
    site = Site(make_config(topics, kafka.address), 1)
    tail = Tail(properties, topics.records, 1)
    tail.start({0: 0})
    site.send(topics.records, b"S", b"0")
    until(lambda: tail.poll(0.1), "the first message")
    lie(kafka, tail._consumer, topics.records)
    site.send(topics.records, b"S", b"1")
    found = until(lambda: tail.poll(0.1), "the second message", BACK_S)
    assert [(message.offset, message.value) for message in found] == [(1, b"1")]
    tail.close()


def test_who_asks_about_the_cluster_gets_an_answer_the_next_time(
    kafka: Kafka, topics: Topics, properties: dict[str, Any]
) -> None:
    cluster, identities = Cluster(properties), Identities(properties)
    assert topics.records in cluster.partition_counts()
    before = identities.of(topics.records)
    lie(kafka, cluster._admin, topics.records)
    lie(kafka, identities._admin, topics.records)
    with pytest.raises(Unavailable):
        cluster.partition_counts()
    with pytest.raises(Unavailable):
        identities.of(topics.records)
    assert topics.records in cluster.partition_counts()
    assert identities.of(topics.records) == before


@pytest.mark.parametrize("whose", ["consumer", "producer"])
def test_a_worker_that_lost_kafka_goes_on(whose: str, kafka: Kafka, topics: Topics) -> None:
    site = Site(make_config(topics, kafka.address), 1)
    query = Query("q", "Is {last} {count}?", every=1, max_tokens=4)
    site.send(topics.control, b"q", query.encode())
    config = replace(site.config, kafka={"bootstrap.servers": kafka.lane_address(LANE)})
    worker = ThreadWorker(config)
    try:
        site.send_records([Trade("S", 1, "100", "1")])
        until(lambda: site.is_settled() and site.committed(topics.records)[0][0] == 1, "the first record")
        client = worker.processor.source._consumer if whose == "consumer" else worker.sink._producer
        lie(kafka, client, topics.records)
        site.send_records([Trade("S", 2, "101", "1")])
        until(lambda: site.committed(topics.records)[0][0] == 2, "the second record", BACK_S)
    finally:
        worker.stop()
    assert len(site.read(topics.answers)) == 2


def test_what_is_committed_is_known_whatever_the_groups_consumer_has_lost(kafka: Kafka, topics: Topics) -> None:
    """After an epoch of unknown fate its partitions go on from there, before the consumer can be made anew."""
    site = Site(make_config(topics, kafka.address), 1)
    site.send_records([Trade("S", number, "100", "1") for number in range(3)])
    config = replace(site.config, kafka={"bootstrap.servers": kafka.lane_address(LANE), "log_level": 0})
    source = Source(config, Deaf(), print)
    try:
        until(lambda: source.poll(0.1) or source._owned, "the partition")
        lie(kafka, source._consumer, topics.records)
        began = time.monotonic()
        assert source.rewind({0: 2})[0].live_from == 2
        assert time.monotonic() - began < 5
    finally:
        source.abandon()


class Deaf:
    """A listener that does nothing."""

    def assigned(self, recoveries: object) -> None: ...

    revoked = lost = read_to = assigned
