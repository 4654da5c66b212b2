"""The embedded broker as a process: it starts, is found again, stops, and comes back after a crash."""

import os
import signal
import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from workers import create_topics

from streamproc.errors import Refused, Unavailable
from streamproc.kafka.broker import Broker, BrokerInfo, free_port
from streamproc.kafka.process import wait_until

pytestmark = pytest.mark.broker


@pytest.fixture
def broker(tmp_path: Path, bootstrap_servers: str) -> Iterator[Broker]:
    """A stopped broker of the test's own; asking for the shared one first finds out whether Kafka can be had at all."""
    broker = Broker(tmp_path / "broker", free_port())
    yield broker
    broker.stop()


def write(info: BrokerInfo, topic: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": info.address})
    producer.produce(topic, value, partition=0)
    assert producer.flush(20) == 0


def read(info: BrokerInfo, topic: str, **properties: str) -> bytes | None:
    consumer = Consumer({"bootstrap.servers": info.address, "group.id": topic, **properties})
    consumer.assign([TopicPartition(topic, 0, 0)])
    message = consumer.poll(20)
    consumer.close()
    return message.value() if message else None


def make_topic(address: str) -> str:
    topic = f"test-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": address})
    create_topics(admin, NewTopic(topic, 1))
    return topic


def test_it_starts_for_this_machine_only_is_found_and_stops(broker: Broker):
    assert broker.status() is None
    info = broker.start()
    assert info.version.startswith("4.")
    assert (info.address, info.data_dir) == (f"127.0.0.1:{broker.port}", broker.data_dir)
    assert Broker(broker.data_dir).status() == info
    assert "started" in info.log_file.read_text()
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", broker.port), timeout=1):
        pass
    assert broker.stop() == "stopped"
    assert broker.status() is None
    assert broker.stop() is None


def test_starting_a_running_broker_changes_nothing_but_another_port_is_refused(broker: Broker):
    info = broker.start()
    assert broker.start() == info
    with pytest.raises(Refused, match=f"already runs at {info.address}"):
        Broker(broker.data_dir, free_port()).start()
    with pytest.raises(Refused, match=f"port {broker.port} is taken"):
        Broker(broker.data_dir.with_name("other"), broker.port).start()
    assert broker.status() == info


def test_two_starts_at_once_make_one_broker(broker: Broker):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda target: target.start(), [broker, Broker(broker.data_dir, broker.port)])
    assert first == second


def test_a_killed_broker_starts_again_with_its_data(broker: Broker):
    info = broker.start()
    topic = make_topic(info.address)
    write(info, topic, b"kept")
    os.kill(info.pid, signal.SIGKILL)
    assert wait_until(lambda: broker.status() is None, 10)
    again = broker.start()
    assert again.pid != info.pid
    assert read(again, topic) == b"kept"


def test_a_start_that_fails_says_why_and_where_the_log_is(broker: Broker):
    data = broker.data_dir / "data"
    data.mkdir(parents=True)
    (data / "meta.properties").write_text("version=99\n")
    with pytest.raises(Unavailable, match=r"Kafka did not start: .*meta.properties.*\(log: .*server.log\)") as failure:
        broker.start()
    assert "\n" not in str(failure.value)
    assert broker.status() is None


def test_new_groups_and_transactions_work_at_once(bootstrap_servers: str):
    """Offsets sent with a transaction by a member of a KIP-848 group are there once it is committed."""
    address = {"bootstrap.servers": bootstrap_servers}
    topic = make_topic(bootstrap_servers)
    producer = Producer({**address, "transactional.id": topic})
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce(topic, b"seen", partition=0)
    producer.commit_transaction(20)
    consumer = Consumer(
        {**address, "group.id": topic, "group.protocol": "consumer", "auto.offset.reset": "earliest"}
        | {"isolation.level": "read_committed", "enable.auto.commit": False}
    )
    consumer.subscribe([topic])
    message = consumer.poll(20)
    assert message is not None
    assert message.value() == b"seen"
    producer.begin_transaction()
    producer.send_offsets_to_transaction([TopicPartition(topic, 0, 1)], consumer.consumer_group_metadata())
    producer.commit_transaction(20)
    assert [position.offset for position in consumer.committed([TopicPartition(topic, 0)], 20)] == [1]
    consumer.close()
