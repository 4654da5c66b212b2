from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from publisher import Publisher, flash

from streamproc.client import Client
from streamproc.config import Config, Topics, Worker
from streamproc.errors import Refused, Usage

pytestmark = pytest.mark.broker

WAIT_S = 20


@pytest.fixture
def config(bootstrap_servers: str, make_topics: Callable[..., Topics]) -> Config:
    topics = make_topics(3)
    return Config(topics, worker=Worker(group=topics.records), kafka={"bootstrap.servers": bootstrap_servers})


@pytest.fixture
def client(config: Config) -> Iterator[Client]:
    with Client(config=config) as client:
        yield client


def test_answers_of_an_aborted_epoch_are_never_seen(client, config):
    publisher = Publisher(config)
    publisher.publish(flash(1))
    publisher.publish(flash(2), commit=False)
    publisher.publish(flash(3))
    found = list(client.answers(from_="start", timeout_s=0))
    assert [received.answer for received in found] == [flash(1), flash(3)]
    assert found[0].timings == {"queue_ms": 0.5}


def test_now_sees_only_what_comes_after(client, config):
    publisher = Publisher(config)
    publisher.publish(flash(1))
    assert [r.answer.id for r in client.answers(from_="start", limit=1, timeout_s=WAIT_S)] == [flash(1).id]
    stream = client.answers(timeout_s=WAIT_S, limit=1)
    publisher.publish(flash(2))
    assert [received.answer for received in stream] == [flash(2)]


def test_state_is_the_newest_of_each_then_what_follows(client, config):
    publisher = Publisher(config)
    publisher.publish(flash(1), flash(2), flash(1, "ETH"), flash(1, "BTC", "other"))
    stream = client.answers(from_="state", timeout_s=WAIT_S, limit=4)
    found = [next(stream).answer for _ in range(3)]
    publisher.publish(flash(3))
    found.append(next(stream).answer)
    assert {answer.id for answer in found[:3]} == {flash(2).id, flash(1, "ETH").id, flash(1, "BTC", "other").id}
    assert found[3] == flash(3)


def test_reading_goes_on_from_a_position_without_loss_or_repetition(client, config):
    publisher = Publisher(config)
    publisher.publish(*(flash(number, f"S{number}") for number in range(10)))
    first = client.answers(from_="start", limit=4, timeout_s=WAIT_S)
    seen = [received.answer.session for received in first]
    rest = client.answers(from_=first.position, timeout_s=0)
    seen += [received.answer.session for received in rest]
    assert sorted(seen) == [f"S{number}" for number in range(10)]
    assert list(client.answers(from_=rest.position, timeout_s=0)) == []


def test_answers_of_all_partitions_come_in_order_of_time(client, config):
    """Partitions that are ahead are paused; their ends, behind the markers of transactions, are still seen."""
    publisher = Publisher(config)
    times = {0: range(1000, 1600), 1: range(1600, 2200), 2: (*range(1010, 1300, 3), *range(1800, 1900), 5000)}
    for part in range(4):
        publisher.producer.begin_transaction()
        for partition, stamps in times.items():
            for stamp in stamps[part * len(stamps) // 4 : (part + 1) * len(stamps) // 4]:
                value = flash(stamp, f"S{partition}").encode()
                publisher.producer.produce(publisher.topic, value, b"key", partition, timestamp=stamp)
        publisher.producer.commit_transaction()
    expected = sorted(stamp for stamps in times.values() for stamp in stamps)
    stream = client.answers(from_="start", timeout_s=0)
    assert [received.timestamp_ms for received in stream] == expected
    for most_waiting in (1, 7, 100):
        tail = client._tail(config.topics.answers)
        tail.start(tail.starts())
        assert [message.timestamp_ms for message in tail.read_by_time(most_waiting)] == expected
        tail.close()
    followed = client.answers(from_="start", timeout_s=WAIT_S, limit=len(expected) + 1)
    assert [next(followed).timestamp_ms for _ in expected] == expected
    publisher.publish(flash(1))
    assert next(followed).answer == flash(1)


def test_answers_are_chosen_by_query_and_session(client, config):
    Publisher(config).publish(flash(1), flash(1, "ETH"), flash(1, "BTC", "other"))
    found = client.answers("trend", "B*", from_="start", timeout_s=0)
    assert [received.answer for received in found] == [flash(1)]


def test_a_position_outside_the_log_raises_and_skips_nothing(client):
    for position in ("0:99", "0:0,1:5"):
        with pytest.raises(Refused, match=r"of partition \d is outside the log, a gap"):
            client.answers(from_=position)
    with pytest.raises(Refused, match="has no partition 9"):
        client.answers(from_="9:0")
    with pytest.raises(Usage, match="is no position"):
        client.answers(from_="yesterday")


def test_answers_deleted_under_a_reader_raise(client, config):
    Publisher(config).publish(*(flash(number) for number in range(5)))
    stream = client.answers(from_="start", timeout_s=WAIT_S, limit=1)
    where = next(stream).position
    admin, topic = AdminClient(dict(config.kafka)), config.topics.answers
    for future in admin.delete_records([TopicPartition(topic, where.partition, 4)]).values():
        future.result()
    with pytest.raises(Refused, match=f"offset 1 of partition {where.partition} is outside the log"):
        client.answers(from_=f"{where.partition}:1")
    tail = client._tail(topic)
    tail.start({where.partition: 1})
    with pytest.raises(Refused, match="outside the log"):
        list(tail.read_to_end())
