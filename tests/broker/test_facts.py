"""What the group membership and the commits rely on, confirmed on a real Kafka: the name of a test is the fact.

Most were read off the client library's mock cluster first, which is no Kafka.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from workers import until

from streamproc.config import Topics
from streamproc.kafka.properties import parse_servers
from streamproc.kafka.release import newest_level

pytestmark = pytest.mark.broker
LEVEL_4_3 = 30  # metadata.version

PROTOCOLS = ["consumer", "classic"]


@pytest.fixture
def topic(make_topics: Callable[..., Topics]) -> str:
    return make_topics(2).records


class Member:
    """A consumer of one topic that starts at offset 0 and remembers its callbacks."""

    def __init__(self, address: str, topic: str, protocol: str = "consumer", **properties: Any) -> None:
        own = {"group.protocol": "consumer"} if protocol == "consumer" else {"partition.assignment.strategy": "range"}
        self.is_incremental = protocol == "consumer"
        self.events: list[tuple[str, list[int]]] = []
        self.threads: set[int] = set()
        self.owned: set[int] = set()
        self.in_assign: Callable[[Consumer, list[TopicPartition]], None] = lambda consumer, partitions: None
        self.consumer = Consumer({
            "bootstrap.servers": address, "group.id": f"facts-{topic}", "enable.auto.commit": False,
            "auto.offset.reset": "error", "isolation.level": "read_committed", **own, **properties,
        })  # fmt: skip
        self.consumer.subscribe([topic], on_assign=self.assign, on_revoke=self.revoke, on_lost=self.lose)

    def assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.note("assign", partitions)
        self.in_assign(consumer, partitions)
        for tp in partitions:
            tp.offset = 0
        self.owned |= {tp.partition for tp in partitions}
        (consumer.incremental_assign if self.is_incremental else consumer.assign)(partitions)

    def revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.note("revoke", partitions)
        self.part(consumer, partitions)

    def lose(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.note("lose", partitions)
        self.part(consumer, partitions)

    def part(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.owned -= {tp.partition for tp in partitions}
        if self.is_incremental:
            consumer.incremental_unassign(partitions)
        else:
            consumer.unassign()

    def note(self, event: str, partitions: list[TopicPartition]) -> None:
        self.events.append((event, sorted(tp.partition for tp in partitions)))
        self.threads.add(threading.get_ident())

    def read(self, count: int, patience_s: float = 15.0) -> list[Any]:
        found: list[Any] = []
        deadline = time.monotonic() + patience_s
        while len(found) < count and time.monotonic() < deadline:
            message = self.consumer.poll(0.1)
            found += [] if message is None else [message]
        return found


@pytest.fixture
def join(bootstrap_servers: str, topic: str) -> Iterator[Callable[..., Member]]:
    members: list[Member] = []

    def make(protocol: str = "consumer", **properties: Any) -> Member:
        members.append(Member(bootstrap_servers, topic, protocol, **properties))
        return members[-1]

    yield make
    for member in members:
        member.consumer.close()


def fill(address: str, topic: str, count: int = 10, partition: int = 0) -> None:
    producer = Producer({"bootstrap.servers": address})
    for number in range(count):
        producer.produce(topic, str(number), partition=partition)
    assert producer.flush(10) == 0


def begin(address: str, topic: str) -> Producer:
    producer = Producer({"bootstrap.servers": address, "transactional.id": f"facts-{topic}"})
    producer.init_transactions(15)
    producer.begin_transaction()
    return producer


def share(first: Member, second: Member) -> None:
    """Both poll until each has a partition."""

    def shared() -> bool:
        first.consumer.poll(0.05)
        second.consumer.poll(0.05)
        return len(first.owned) == len(second.owned) == 1

    until(shared, "a partition for each")


def test_consume_waits_for_the_whole_timeout_and_poll_with_consume_of_zero_does_not(
    join: Callable[..., Member], bootstrap_servers: str, topic: str
) -> None:
    fill(bootstrap_servers, topic)
    member = join()
    assert len(member.read(1)) == 1
    time.sleep(0.2)
    began = time.monotonic()
    rest = [member.consumer.poll(1.0), *member.consumer.consume(499, 0)]
    quick = time.monotonic() - began
    assert len(rest) == 9
    fill(bootstrap_servers, topic)
    began = time.monotonic()
    assert len(member.consumer.consume(500, 1.0)) == 10
    assert time.monotonic() - began > 0.9
    assert quick < 0.2


def test_an_aborted_transaction_does_not_take_the_consumer_back(
    join: Callable[..., Member], bootstrap_servers: str, topic: str
) -> None:
    fill(bootstrap_servers, topic)
    member = join()
    member.read(5)
    producer = begin(bootstrap_servers, topic)
    where = [TopicPartition(topic, 0, 5)]
    producer.send_offsets_to_transaction(where, member.consumer.consumer_group_metadata(), 10)
    producer.abort_transaction(10)
    assert [message.offset() for message in member.read(1)] == [5]
    assert member.consumer.committed([TopicPartition(topic, 0)], 10)[0].offset == OFFSET_INVALID


def test_an_invalid_offset_in_a_transaction_is_ignored_without_a_word(
    join: Callable[..., Member], bootstrap_servers: str, topic: str
) -> None:
    fill(bootstrap_servers, topic, partition=0)
    member = join()
    member.read(10)
    positions = member.consumer.position([TopicPartition(topic, 0), TopicPartition(topic, 1)])
    assert [found.offset for found in positions] == [10, OFFSET_INVALID]
    producer = begin(bootstrap_servers, topic)
    producer.send_offsets_to_transaction(positions, member.consumer.consumer_group_metadata(), 10)
    producer.commit_transaction(10)
    committed = member.consumer.committed([TopicPartition(topic, 0), TopicPartition(topic, 1)], 10)
    assert [found.offset for found in committed] == [10, OFFSET_INVALID]


def test_metadata_read_after_a_revocation_lets_a_member_commit_for_a_partition_that_it_has_lost(
    join: Callable[..., Member], bootstrap_servers: str, topic: str
) -> None:
    """So a commit must never lean on metadata that is newer than what the listener has heard."""
    first = join()
    first.read(1, 3.0)
    until(lambda: first.consumer.poll(0.05) or len(first.owned) == 2, "both partitions")
    old = first.consumer.consumer_group_metadata()
    second = join()
    share(first, second)
    (gone,) = second.owned
    outcomes = []
    for metadata in (old, first.consumer.consumer_group_metadata()):
        producer = begin(bootstrap_servers, topic)
        try:
            producer.send_offsets_to_transaction([TopicPartition(topic, gone, 7)], metadata, 10)
            producer.commit_transaction(10)
            outcomes.append("committed")
        except KafkaException as problem:
            outcomes.append(problem.args[0].name())
    assert outcomes == ["ILLEGAL_GENERATION", "committed"]


def test_callbacks_run_on_the_thread_that_polls_and_their_errors_come_out_of_poll(join: Callable[..., Member]) -> None:
    member = join()

    def fail(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        raise RuntimeError("from a callback")

    member.in_assign = fail
    with pytest.raises(RuntimeError, match="from a callback"):
        member.read(1)
    assert member.threads == {threading.get_ident()}


def test_an_assignment_may_be_empty_under_the_new_protocol(join: Callable[..., Member]) -> None:
    members = [join()]
    until(lambda: members[0].consumer.poll(0.05) or len(members[0].owned) == 2, "both partitions")
    members += [join(), join()]

    def all_told() -> bool:
        for member in members:
            member.consumer.poll(0.05)
        return ("assign", []) in [event for member in members for event in member.events]

    until(all_told, "an empty assignment")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_offset_may_be_committed_again_with_other_metadata_even_inside_a_callback(
    protocol: str, join: Callable[..., Member], topic: str
) -> None:
    member, seen = join(protocol), []

    def commit(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for words in ("one", "two"):
            offsets = [TopicPartition(topic, tp.partition, 3, words) for tp in partitions]
            seen.append(consumer.commit(offsets=offsets, asynchronous=False))

    member.in_assign = commit
    until(lambda: member.consumer.poll(0.05) or seen, "an assignment")
    found = member.consumer.committed([TopicPartition(topic, 0)], 10)[0]
    assert (found.offset, found.metadata) == (3, "two")


def test_a_paused_partition_gives_nothing_even_after_it_was_assigned_again_until_it_is_resumed(
    join: Callable[..., Member], bootstrap_servers: str, topic: str
) -> None:
    member = join()
    until(lambda: member.consumer.poll(0.05) or len(member.owned) == 2, "both partitions")
    where = [TopicPartition(topic, 0)]
    member.consumer.pause(where)
    fill(bootstrap_servers, topic)
    assert member.read(1, 1.0) == []
    member.consumer.incremental_unassign(where)
    member.consumer.incremental_assign([TopicPartition(topic, 0, 0)])
    leaked = member.read(1, 1.0)
    member.consumer.resume(where)
    assert len(member.read(10 - len(leaked))) == 10 - len(leaked)
    assert leaked == []


def test_an_offset_outside_the_log_stops_a_partition_for_good_and_it_cannot_be_moved(
    join: Callable[..., Member], bootstrap_servers: str, topic: str
) -> None:
    fill(bootstrap_servers, topic)
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    for future in admin.delete_records([TopicPartition(topic, 0, 5)]).values():
        future.result()
    member = join()
    (message,) = member.read(1)
    assert message.error().code() == KafkaError._AUTO_OFFSET_RESET
    assert (message.topic(), message.partition()) == (topic, 0)
    with pytest.raises(KafkaException) as problem:
        member.consumer.seek(TopicPartition(topic, 0, 5))
    assert problem.value.args[0].code() == KafkaError._STATE


def test_a_static_member_that_comes_while_its_name_is_taken_is_refused_under_the_new_protocol(
    join: Callable[..., Member],
) -> None:
    first = join(**{"group.instance.id": "one"})
    until(lambda: first.consumer.poll(0.05) or first.owned, "its partitions")
    second = join(**{"group.instance.id": "one"})
    (message,) = second.read(1)
    assert message.error().code() == KafkaError._FATAL
    assert KafkaError(KafkaError.UNRELEASED_INSTANCE_ID).str() in message.error().str()
    assert first.read(1, 1.0) == []


def test_a_static_member_that_comes_while_its_name_is_taken_fences_the_old_one_under_the_classic_protocol(
    join: Callable[..., Member],
) -> None:
    first = join("classic", **{"group.instance.id": "one"})
    until(lambda: first.consumer.poll(0.05) or first.owned, "its partitions")
    second = join("classic", **{"group.instance.id": "one"})
    until(lambda: second.consumer.poll(0.05) or second.owned, "its partitions")
    (message,) = first.read(1)
    assert message.error().code() == KafkaError._FATAL
    assert KafkaError(KafkaError.FENCED_INSTANCE_ID).str() in message.error().str()


def test_the_group_forgets_the_offsets_of_a_topic_that_is_deleted(
    join: Callable[..., Member], bootstrap_servers: str, topic: str
) -> None:
    member = join()
    until(lambda: member.consumer.poll(0.05) or member.owned, "its partitions")
    member.consumer.commit(offsets=[TopicPartition(topic, 0, 0, "mine")], asynchronous=False)
    assert member.consumer.committed([TopicPartition(topic, 0)], 10)[0].metadata == "mine"
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    admin.delete_topics([topic])[topic].result()

    def is_forgotten() -> bool:
        return member.consumer.committed([TopicPartition(topic, 0)], 10)[0].offset == OFFSET_INVALID

    until(is_forgotten, "no offset")


def test_metadata_from_before_a_rebalance_commits_for_a_partition_that_did_not_move_only_since_4_3(
    join: Callable[..., Member], bootstrap_servers: str, topic: str
) -> None:
    """KIP-1251. Before it, as on the mock, it is refused: a rebalance may abort an epoch."""
    first = join()
    until(lambda: first.consumer.poll(0.05) or len(first.owned) == 2, "both partitions")
    old = first.consumer.consumer_group_metadata()
    share(first, join())
    (kept,) = first.owned
    producer = begin(bootstrap_servers, topic)
    told = said(lambda: producer.send_offsets_to_transaction([TopicPartition(topic, kept, 7)], old, 10))
    level = newest_level(parse_servers(bootstrap_servers)[0])
    assert told == ("ok" if level and level >= LEVEL_4_3 else "ILLEGAL_GENERATION abort")


def test_a_rebalance_takes_what_is_no_longer_ours_out_of_a_batch_that_is_being_consumed(
    join: Callable[..., Member], bootstrap_servers: str, topic: str
) -> None:
    for partition in (0, 1):
        fill(bootstrap_servers, topic, 2_000, partition)
    first = join()
    until(lambda: first.consumer.poll(0.05) or len(first.owned) == 2, "both partitions")
    second, is_over = join(), threading.Event()
    other = threading.Thread(target=lambda: [second.consumer.poll(0.05) for _ in iter(is_over.is_set, True)])
    other.start()
    foreign = []
    deadline = time.monotonic() + 15
    while len(first.owned) > 1 and time.monotonic() < deadline:
        batch = first.consumer.consume(50_000, 3.0)
        foreign += [m for m in batch if m.error() is None and m.partition() not in first.owned]
    is_over.set()
    other.join()
    assert len(first.owned) == 1
    assert foreign == []


def said(call: Callable[[], Any]) -> str:
    """What became of a transactional call: the error's name, and the flags that are set."""
    try:
        call()
    except KafkaException as problem:
        error = problem.args[0]
        flags = {"fatal": error.fatal(), "retriable": error.retriable(), "abort": error.txn_requires_abort()}
        return " ".join([error.name(), *(flag for flag, is_set in flags.items() if is_set)])
    return "ok"


def begun(address: str, topic: str, value: bytes = b"1", **properties: Any) -> Producer:
    """A producer of its own with a message in its transaction."""
    own = {"bootstrap.servers": address, "transactional.id": f"facts-{time.monotonic_ns()}", **properties}
    producer = Producer(own)
    producer.init_transactions(15)
    producer.begin_transaction()
    producer.produce(topic, value)
    return producer


def test_a_transaction_that_kafka_has_timed_out_cannot_be_committed_by_its_producer(
    bootstrap_servers: str, topic: str
) -> None:
    """The mock says INVALID_TXN_STATE, fatal too."""
    slow = begun(bootstrap_servers, topic, **{"transaction.timeout.ms": 1_000, "message.timeout.ms": 900})
    slow.flush(5)
    time.sleep(4)
    assert said(lambda: slow.commit_transaction(10)) == "_FENCED fatal"


def test_a_new_producer_of_the_same_transactional_id_fences_the_old_one(bootstrap_servers: str, topic: str) -> None:
    old = begun(bootstrap_servers, topic, **{"transactional.id": f"same-{topic}"})
    begun(bootstrap_servers, topic, **{"transactional.id": f"same-{topic}"})
    assert said(lambda: old.commit_transaction(10)) == "_FENCED fatal"


def test_after_a_message_that_kafka_has_refused_it_is_chance_whether_the_producer_can_go_on(
    bootstrap_servers: str, topic: str
) -> None:
    """It says that an abort will do, and carries it out; the next transaction may fail, as it does on the mock."""
    producer = begun(bootstrap_servers, topic, b"1" * 3_000_000, **{"message.max.bytes": 4_000_000})
    assert said(lambda: producer.commit_transaction(10)) == "MSG_SIZE_TOO_LARGE abort"
    assert said(lambda: producer.abort_transaction(10)) == "ok"
    producer.begin_transaction()
    producer.produce(topic, b"1")
    assert said(lambda: producer.commit_transaction(10)) in ("ok", "OUT_OF_ORDER_SEQUENCE_NUMBER abort")
