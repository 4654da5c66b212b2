"""Transactions of one slot on a real Kafka."""

import random
from collections.abc import Callable

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource
from workers import Site, ThreadWorker, make_config, until

from streamproc.config import Topics
from streamproc.errors import EpochAborted, Fenced, Unavailable
from streamproc.kafka.epoch import EpochSink
from streamproc.messages import Ask, Query
from streamproc.records import Trade, encode_record
from streamproc.state.epoch import Epoch, Outgoing

pytestmark = pytest.mark.broker


def test_two_workers_in_one_slot_are_told_so_at_the_first_epoch_that_fails(
    bootstrap_servers: str, make_topics: Callable[..., Topics]
) -> None:
    topics = make_topics(1)
    epoch, warnings = Epoch((Outgoing(topics.answers, b"key", b"{}"),), ()), []
    properties = {"bootstrap.servers": bootstrap_servers}
    first = EpochSink(properties, f"{topics.answers}-slot", warnings.append)
    first.commit(epoch, None)
    second = EpochSink(properties, f"{topics.answers}-slot", warnings.append)
    with pytest.raises(EpochAborted):
        first.commit(epoch, None)
    (said,) = warnings
    assert f"if another worker uses the transactional id '{topics.answers}-slot'" in said
    assert said.endswith("give each worker its own worker.slot")
    with pytest.raises(EpochAborted):
        second.commit(epoch, None)
    with pytest.raises(Fenced, match=r"give each worker its own worker\.slot"):
        first.commit(epoch, None)
    first.close()
    second.close()


class Steps:
    """A clock that goes on by `step_s` whenever it is looked at."""

    def __init__(self) -> None:
        self.now_s, self.step_s = 0.0, 0.0

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


@pytest.mark.parametrize(("apart_s", "open_s"), [(60.0, 0.0), (1.0, 25.0)])
def test_transactions_that_kafka_has_ended_now_and_then_are_no_second_worker(
    bootstrap_servers: str, make_topics: Callable[..., Topics], apart_s: float, open_s: float
) -> None:
    """A frozen broker ends what was open for too long, with the error of a second worker: twice is chance."""
    topics, clock = make_topics(1), Steps()
    epoch = Epoch((Outgoing(topics.answers, b"key", b"{}"),), ())
    properties = {"bootstrap.servers": bootstrap_servers}
    sink = EpochSink(properties, f"{topics.answers}-slot", lambda text: None, clock=clock)
    for _ in range(3):
        EpochSink(properties, f"{topics.answers}-slot", lambda text: None).close()  # ends what the other one has open
        clock.now_s += apart_s
        clock.step_s = open_s
        with pytest.raises(EpochAborted):
            sink.commit(epoch, None)
        clock.step_s = 0.0
    sink.commit(epoch, None)
    sink.close()


def test_what_kafka_refuses_again_and_again_ends_the_worker_in_one_line(
    bootstrap_servers: str, make_topics: Callable[..., Topics]
) -> None:
    topics = make_topics(1)
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    small = ConfigEntry("max.message.bytes", "1000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topics.dead, incremental_configs=[small])
    for future in admin.incremental_alter_configs([resource]).values():
        future.result()
    epoch = Epoch((Outgoing(topics.dead, b"key", random.Random(1).randbytes(2_000)),), ())
    sink = EpochSink({"bootstrap.servers": bootstrap_servers}, f"{topics.dead}-slot", lambda text: None)
    for _ in range(2):
        with pytest.raises(EpochAborted):
            sink.commit(epoch, None)
    sink.commit(Epoch((Outgoing(topics.answers, b"key", b"{}"),), ()), None)  # what passes between counts
    for _ in range(2):
        with pytest.raises(EpochAborted):
            sink.commit(epoch, None)
    with pytest.raises(Unavailable, match=r"refuses this worker's answers or offsets, 3 times in a row: .*too large"):
        sink.commit(epoch, None)
    sink.close()


def test_a_record_larger_than_the_dead_topic_takes_is_set_aside_and_the_worker_goes_on(
    bootstrap_servers: str, make_topics: Callable[..., Topics]
) -> None:
    site = Site(make_config(make_topics(1), bootstrap_servers), 1)
    topics = site.config.topics
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    large = ConfigEntry("max.message.bytes", "4000000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topics.records, incremental_configs=[large])
    for future in admin.incremental_alter_configs([resource]).values():
        future.result()
    site.register([Query("q", "how?", every=1, max_tokens=3)])
    producer = Producer({"bootstrap.servers": bootstrap_servers, "message.max.bytes": 4_000_000})
    value = random.Random(1).randbytes(3_000_000)
    producer.produce(topics.records, value, b"A")
    producer.produce(topics.records, encode_record(Trade("A", 1, "100.5", "1")), b"A")
    assert producer.flush(20) == 0
    with ThreadWorker(site.config):
        site.settle()
    (letter,) = site.read(topics.dead)
    assert letter.value == value[: len(letter.value or b"")]
    assert letter.headers["value_bytes"] == b"3000000"
    assert [answer.as_of.offset for answer in site.answers() if answer.as_of] == [1]


def test_a_worker_that_comes_back_behind_the_marker_of_a_transaction_answers_asks(
    bootstrap_servers: str, make_topics: Callable[..., Topics]
) -> None:
    """The last record is not the last offset: nothing comes that would tell that all is read."""
    site = Site(make_config(make_topics(1), bootstrap_servers), 1)
    topics = site.config.topics
    feed = EpochSink({"bootstrap.servers": bootstrap_servers}, f"{topics.records}-feed", lambda text: None)
    feed.commit(Epoch((Outgoing(topics.records, b"A", encode_record(Trade("A", 1, "100.5", "1"))),), ()), None)
    feed.close()
    with ThreadWorker(site.config):
        until(lambda: site.committed(topics.records)[0][0] == 1, "the commit")
    where = TopicPartition(topics.records, 0, 2)
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    group = ConsumerGroupTopicPartitions(site.config.worker.group, [where])
    for future in admin.alter_consumer_group_offsets([group]).values():
        future.result()
    with ThreadWorker(site.config):
        site.ask(Ask("late", "A", "how?", max_tokens=3))
        until(lambda: "late" in site.replies(), "the reply")
