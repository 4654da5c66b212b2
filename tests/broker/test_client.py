import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka import Consumer, Producer
from publisher import Publisher

from streamproc.answertypes import AnswerType
from streamproc.client import Client, Position
from streamproc.config import Config, Topics, Worker
from streamproc.errors import BadAsk, BadQuery, BadRecord, Refused, Unavailable, Usage
from streamproc.kafka.tailing import Tail
from streamproc.market.sample import sample_records
from streamproc.messages import Answer, Ask, AsOf, Query, decode_ask
from streamproc.records import Trade, decode_record

pytestmark = pytest.mark.broker

RECORD = {"symbol": "BTC", "price": "1.50", "size": 2}
WAIT_S = 20


@pytest.fixture
def config(bootstrap_servers: str, make_topics: Callable[..., Topics]) -> Config:
    topics = make_topics(3)
    return Config(topics, worker=Worker(group=topics.records), kafka={"bootstrap.servers": bootstrap_servers})


@pytest.fixture
def client(config: Config) -> Iterator[Client]:
    with Client(config=config) as client:
        yield client


@contextmanager
def replying(config: Config, reply: Callable[[Ask, int], Answer]) -> Iterator[list[Ask]]:
    """A worker that knows nothing and answers every ask."""
    seen: list[Ask] = []
    tail = Tail(dict(config.kafka), config.topics.asks, 3)
    tail.start(tail.starts())
    publisher, done = Publisher(config), threading.Event()

    def work() -> None:
        while not done.is_set():
            for message in tail.poll(0.05):
                seen.append(decode_ask(message.value))
                publisher.publish(reply(seen[-1], message.partition))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join(WAIT_S)
        tail.close()


def echo(ask: Ask, partition: int) -> Answer:
    as_of = AsOf("r", partition, 0, 7, 5)
    return Answer(ask.id, "ask", ask.session, ask.question, as_of, f"asked: {ask.question}", None, "m")


def refuse(ask: Ask, partition: int) -> Answer:
    return Answer(ask.id, "ask", ask.session, ask.question, None, None, None, "m", error=f"session {ask.session}: none")


def test_a_produced_record_is_acknowledged_where_it_lies(client, config):
    first, second = client.produce(RECORD), client.produce(Trade("BTC", 5, "1", "2"))
    assert second == Position(first.partition, first.offset + 1)
    tail = Tail(dict(config.kafka), config.topics.records, 3)
    tail.start({first.partition: first.offset})
    found = [decode_record(message.value, message.key) for message in tail.read_to_end()]
    tail.close()
    assert found[0].px == "1.50"
    assert found[1] == Trade("BTC", 5, "1", "2")


def test_many_records_are_all_acknowledged_and_keep_their_order(client, config):
    assert client.produce_many(sample_records()) == 4001
    tail = Tail(dict(config.kafka), config.topics.records, 3)
    tail.start(tail.starts())
    found = [decode_record(message.value, message.key) for message in tail.read_to_end()]
    tail.close()
    for sym in ("BTCUSDT", "XBTUSDT", "USDJPY"):
        assert [r for r in found if r.sym == sym] == [r for r in sample_records() if r.sym == sym]


def test_a_key_goes_where_the_java_client_puts_it(client):
    """Partitions by murmur2 over 3 partitions, as computed by org.apache.kafka.common.utils.Utils."""
    found = {name: client.produce({**RECORD, "symbol": name}).partition for name in ("21", "foobar", "abc")}
    assert found == {name: (positive & 0x7FFFFFFF) % 3 for name, positive in
                     (("21", -973932308), ("foobar", -790332482), ("abc", 479470107))}  # fmt: skip


def test_a_bad_record_in_the_middle_leaves_those_before_it_sent(client):
    with pytest.raises(BadRecord, match="px: missing"):
        client.produce_many([RECORD, {**RECORD, "price": None}])
    assert client.produce(RECORD).offset == 1


def test_a_record_that_kafka_refuses_is_an_error_of_ours(config):
    big = {**config.kafka, "message.max.bytes": "1000"}
    with Client(config=Config(config.topics, kafka=big)) as client:
        with pytest.raises(Refused, match="MSG_SIZE_TOO_LARGE"):
            client._producer.send_and_wait(config.topics.records, b"k", b"x" * 5000)
        assert client.produce(RECORD).offset == 0


def test_a_missing_topic_is_one_line_that_says_what_to_do(config):
    with Client(config=Config(Topics(records="test-none"), kafka=config.kafka)) as client:
        with pytest.raises(Unavailable, match="test-none does not exist: create it with `streamproc topics create`"):
            client.produce(RECORD)
        with pytest.raises(Unavailable, match="does not exist"):
            client.produce_many([])


def test_the_same_question_again_produces_nothing(client, config):
    query = Query("trend", "Up?", every=10)
    assert client.register(query) == client.register(query) == query
    client.register(Query("trend", "Down?"))
    tail = Tail(dict(config.kafka), config.topics.control, 1)
    tail.start(tail.starts())
    values = [message.value for message in tail.read_to_end()]
    tail.close()
    assert values == [query.encode(), Query("trend", "Down?").encode()]


def test_later_questions_win_and_removed_ones_are_gone(client):
    client.register(Query("b", "Up?"))
    client.register(Query("a", "Up?"))
    client.register(Query("b", "Down?"))
    assert client.queries() == [Query("a", "Up?"), Query("b", "Down?")]
    assert client.remove("a") is True
    assert client.remove("a") is False
    assert client.queries() == [Query("b", "Down?")]


def test_a_question_that_is_wrong_reaches_nobody(client):
    with pytest.raises(BadQuery, match="question: empty"):
        client.register(Query("a", " "))
    assert client.queries() == []


def test_a_bad_entry_is_reported_hides_nothing_and_can_be_removed(client, config, caplog):
    producer = Producer(dict(config.kafka))
    producer.produce(config.topics.control, b"{", b"bad")
    producer.flush()
    client.register(Query("good", "Up?"))
    assert client.queries() == [Query("good", "Up?")]
    assert "entry 'bad' is left out: not a query" in caplog.text
    assert client.remove("bad") is True
    assert client.read_queries() == ({"good": Query("good", "Up?")}, {})


def test_an_ask_is_answered_in_the_partition_where_its_session_lives(client, config):
    with replying(config, echo) as asks:
        partition = client.produce(RECORD).partition
        answer = client.ask("BTC", "Up?", answer=AnswerType("boolean"), max_tokens=5, timeout_s=WAIT_S)
        assert answer.text == "asked: Up?"
        assert answer.as_of.partition == partition
    assert (asks[0].session, asks[0].answer, asks[0].max_tokens) == ("BTC", AnswerType("boolean"), 5)


def test_each_ask_gets_its_own_answer(client, config):
    with replying(config, echo):
        found = [client.ask(f"S{number}", f"question {number}", timeout_s=WAIT_S).text for number in range(10)]
    assert found == [f"asked: question {number}" for number in range(10)]


def test_mine_is_the_newest_offset_this_client_produced_there(client, config):
    with replying(config, echo) as asks:
        client.ask("BTC", "Up?", min_offset="mine", timeout_s=WAIT_S)
        client.produce(RECORD)
        last = client.produce(RECORD).offset
        client.ask("BTC", "Up?", min_offset="mine", timeout_s=WAIT_S)
        client.ask("BTC", "Up?", min_offset=0, timeout_s=WAIT_S)
    assert [ask.min_offset for ask in asks] == [None, last, 0]


def test_the_workers_reason_is_raised(client, config):
    with replying(config, refuse), pytest.raises(Refused, match="session BTC: none"):
        client.ask("BTC", "Up?", timeout_s=WAIT_S)


def test_a_bad_ask_reaches_nobody(client):
    with pytest.raises(BadAsk, match="unknown placeholder"):
        client.ask("BTC", "{nope}")
    with pytest.raises(BadAsk, match="session"):
        client.ask("", "Up?")


def test_where_no_worker_is_up_the_asker_learns_it(client):
    with pytest.raises(Unavailable, match=r"no worker of group .* is up, start one with `streamproc run`"):
        client.ask("BTC", "Up?", timeout_s=0.5)


def test_where_a_worker_is_slow_the_asker_learns_which_partition(client, config):
    partition = client.produce(RECORD).partition
    member = Consumer({**config.kafka, "group.id": config.worker.group})
    member.subscribe([config.topics.records])
    while not member.assignment():
        member.poll(0.1)
    with pytest.raises(Unavailable, match=f"worker running for partition {partition}, and has it come to offset 9"):
        client.ask("BTC", "Up?", timeout_s=0.5, min_offset=9)
    member.close()


def test_where_partitions_are_sessions_the_ask_goes_to_its_partition(config):
    by_partition = Config(config.topics, worker=Worker(session_by="partition"), kafka=config.kafka)
    with Client(config=by_partition) as client, replying(config, echo) as asks:
        last = client.produce(RECORD)
        session = f"partition-{last.partition}"
        assert client.ask(session, "Up?", min_offset="mine", timeout_s=WAIT_S).as_of.partition == last.partition
        assert client.ask("partition-2", "Up?", timeout_s=WAIT_S).as_of.partition == 2
        with pytest.raises(Usage, match="sessions are partition-0 to partition-2"):
            client.ask("BTC", "Up?")
    assert asks[0].min_offset == last.offset


def test_asks_that_would_miss_their_sessions_are_refused(config, bootstrap_servers, make_topics):
    other = make_topics(2)
    mixed = Config(Topics(config.topics.records, other.control, other.asks, other.answers), kafka=config.kafka)
    with Client(config=mixed) as client, pytest.raises(Usage, match=r"2 partitions and .* 3: asks would miss"):
        client.ask("BTC", "Up?")


def test_a_kafka_that_is_not_there_is_one_line(config):
    with Client("127.0.0.1:1", config) as client, pytest.raises(Unavailable, match="no Kafka answers"):
        client.queries()
