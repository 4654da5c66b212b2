import uuid

import pytest
from confluent_kafka import Consumer, Producer

from streamproc.errors import Refused
from streamproc.kafka.positions import resolve
from streamproc.positions import At, BeforeEnd, End, Offset, Partitions, Start

pytestmark = pytest.mark.broker

T0_MS = 1_700_000_000_000


@pytest.fixture
def consumer(bootstrap_servers):
    made = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": uuid.uuid4().hex})
    yield made
    made.close()


@pytest.fixture
def topic(bootstrap_servers, make_topics):
    """Ten records in partition 0, one a second from T0_MS; none in partition 1."""
    name = make_topics(partitions=2).records
    producer = Producer({"bootstrap.servers": bootstrap_servers})
    for i in range(10):
        producer.produce(name, b"x", partition=0, timestamp=T0_MS + 1000 * i)
    assert producer.flush(10) == 0
    return name


@pytest.mark.parametrize(
    ("position", "offsets"),
    [
        (Start(), {0: 0, 1: 0}),
        (End(), {0: 10, 1: 0}),
        (Offset(4), {0: 4, 1: 0}),
        (Offset(99), {0: 10, 1: 0}),
        (BeforeEnd(3), {0: 7, 1: 0}),
        (BeforeEnd(99), {0: 0, 1: 0}),
        (At(T0_MS - 5_000), {0: 0, 1: 0}),
        (At(T0_MS + 2_500), {0: 3, 1: 0}),
        (At(T0_MS + 3_000), {0: 3, 1: 0}),
        (At(T0_MS + 60_000), {0: 10, 1: 0}),
        (Partitions(((0, 6),)), {0: 6}),
    ],
)
def test_a_position_is_an_offset_in_every_partition(consumer, topic, position, offsets):
    assert resolve(consumer, topic, position) == offsets


def test_a_topic_or_partition_that_is_not_there_is_refused(consumer, topic):
    with pytest.raises(Refused, match="there is no topic"):
        resolve(consumer, f"none-{uuid.uuid4().hex}", Start())
    with pytest.raises(Refused, match="has no partition 7, it has 0 to 1"):
        resolve(consumer, topic, Partitions(((7, 0),)))
