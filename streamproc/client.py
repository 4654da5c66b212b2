"""The user's side of the topics: records and questions in, answers out. No torch, no worker in this process.

    with Client("localhost:9092") as sp:
        sp.produce({"symbol": "BTCUSDT", "price": "45123.5", "size": "0.2", "side": "buy"})
        sp.register(Query("move", "Which way did the price move last?", every=10))
        print(sp.ask("BTCUSDT", "What was the last price?", min_offset="mine").text)
        for received in sp.answers("move", from_="state"):
            print(received.answer.session, received.answer.text)

Every method waits for what it promises and raises the errors of `streamproc.errors`, never Kafka's. Use a client from
one thread.
"""

import functools
import re
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self

from streamproc.answers import NOW, PAST, STATE, AnswerStream, Received, Wanted, answer_in, log
from streamproc.answertypes import AnswerType
from streamproc.config import Config
from streamproc.errors import BadQuery, Refused, Unavailable, Usage
from streamproc.kafka.cluster import Cluster
from streamproc.kafka.failures import missing_topic
from streamproc.kafka.producing import ANY_PARTITION, AckedProducer, Position
from streamproc.kafka.properties import client_properties
from streamproc.kafka.tailing import Tail
from streamproc.market.columns import has_time, row_to_record
from streamproc.messages import Answer, Ask, Query, decode_ask, decode_query
from streamproc.positions import parse_position
from streamproc.records import Bar, Quote, Record, Trade, encode_record, parse_record
from streamproc.settings import load_config

__all__ = ["Client", "Position", "Received"]

PARTITION_SESSION = re.compile(r"partition-(\d{1,9})")
FLUSH_S = 1.0
CONTROL = 0     # the control topic has one partition: its order is the order of all changes


class Client:
    """Connections to one Kafka, opened when they are first needed and closed by `close` or the end of a `with`."""

    def __init__(
        self,
        bootstrap_servers: str | None = None,
        config: Config | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Settings not given come from STREAMPROC_* and ./streamproc.toml. Raises Usage where one is wrong."""
        config = config or load_config(bootstrap_servers=bootstrap_servers)
        if bootstrap_servers:
            config = replace(config, kafka={**config.kafka, "bootstrap.servers": bootstrap_servers})
        self.config = config
        self._clock = clock
        self._properties = client_properties(config)
        self._cluster = Cluster(self._properties)
        self._counts: dict[str, int] = {}
        self._tails: weakref.WeakSet[Tail] = weakref.WeakSet()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; may be called twice. Whoever calls on opens new ones."""
        for tail in list(self._tails):
            tail.close()
        for name in ("_producer", "_ask_tail"):
            self.__dict__.pop(name, None)

    def produce(self, record: Record | Mapping[str, Any]) -> Position:
        """Send one record and wait until it is acknowledged -> where it lies. A dict may use any feed's column names.

        A dict without a time happened now. Raises BadRecord, Unavailable or Refused.
        """
        found = checked_record(record, self._now_ns)
        topic, producer = self.config.topics.records, self._producer
        self._partitions(topic)
        return producer.send_and_wait(topic, found.sym.encode(), encode_record(found))

    def produce_many(self, records: Iterable[Record | Mapping[str, Any]]) -> int:
        """Send records and wait until all are acknowledged -> how many. Raises Refused where some were not."""
        topic, producer = self.config.topics.records, self._producer
        self._partitions(topic)
        acked_before, failed_before = producer.num_acked, producer.num_failed
        try:
            for record in records:
                found = checked_record(record, self._now_ns)
                producer.send(topic, found.sym.encode(), encode_record(found))
        finally:
            while producer.flush(FLUSH_S):
                pass
        if failed := producer.num_failed - failed_before:
            raise Refused(f"topic {topic}: {failed} records were not acknowledged: {producer.first_error}")
        return producer.num_acked - acked_before

    def register(self, query: Query) -> Query:
        """Make a question a standing one; the same question again changes nothing. Raises BadQuery."""
        query = checked_query(query)
        current = self.read_queries()[0].get(query.id)
        if current is None or current.version != query.version:
            self._producer.send_and_wait(self.config.topics.control, query.id.encode(), query.encode(), CONTROL)
        return query

    def remove(self, query_id: str) -> bool:
        """End a standing question -> whether there was one."""
        queries, bad = self.read_queries()
        if query_id not in queries and query_id not in bad:
            return False
        self._producer.send_and_wait(self.config.topics.control, query_id.encode(), None, CONTROL)
        return True

    def queries(self) -> list[Query]:
        """The standing questions by id; an entry that is none is logged."""
        queries, bad = self.read_queries()
        for query_id, problem in bad.items():
            log.warning("control topic: entry %r is left out: %s", query_id, problem)
        return [queries[query_id] for query_id in sorted(queries)]

    def read_queries(self) -> tuple[dict[str, Query], dict[str, BadQuery]]:
        """The standing questions, and what is wrong with entries that are none; both by id."""
        tail = self._tail(self.config.topics.control)
        try:
            tail.start(tail.starts())
            newest = {message.key: message.value for message in tail.read_to_end()}
        finally:
            tail.close()
        queries: dict[str, Query] = {}
        bad: dict[str, BadQuery] = {}
        for key, value in newest.items():
            if value is not None:
                try:
                    query = decode_query(key, value)
                    queries[query.id] = query
                except BadQuery as problem:
                    bad[(key or b"").decode(errors="replace")] = problem
        return queries, bad

    def ask(  # noqa: PLR0913 - a question's few options read best side by side
        self,
        session: str,
        question: str,
        *,
        min_offset: int | Literal["mine"] | None = None,
        timeout_s: float = 30.0,
        answer: AnswerType | None = None,
        max_tokens: int = 32,
    ) -> Answer:
        """Ask a session now and wait. `min_offset`: see at least this offset, "mine": all that this client produced.

        Raises BadAsk, Refused with the worker's reason, or Unavailable where nobody answered in time.
        """
        producer = self._producer
        least = self._mine(session) if min_offset == "mine" else min_offset
        deadline_ms = int((self._clock() + timeout_s) * 1000)
        ask = Ask(uuid.uuid4().hex, session, question, least, deadline_ms, answer or AnswerType(), max_tokens)
        decode_ask(ask.encode())
        partition = self._ask_partition(session)
        tail = self._ask_tail
        tail.start(tail.ends())
        try:
            position = producer.send_and_wait(self.config.topics.asks, session.encode(), ask.encode(), partition)
            found = self._await_answer(tail, ask, deadline_ms)
        finally:
            tail.stop()
        if found is None:
            raise Unavailable(self._silence(ask, position.partition, timeout_s))
        if found.error is not None:
            raise Refused(found.error)
        return found

    def answers(
        self,
        query: str | None = None,
        session: str | None = None,
        from_: str = "now",
        timeout_s: float | None = None,
        limit: int | None = None,
    ) -> AnswerStream:
        """The answers as they come, of one query and of the sessions that a glob names, or of all.

        `from_`: now | start | state (the newest answer of every query and session, then live) | a position such as
        0:10482,1:99 or @-1h; what is there already comes oldest first. `timeout_s`: end after so long without an
        answer; 0: end at the present end. Raises Refused where a position is no longer in the log.
        """
        tail = self._tail(self.config.topics.answers)
        start, position = {"now": (NOW, "end"), "state": (STATE, "start")}.get(from_, (PAST, from_))
        tail.start(tail.resolve(parse_position(position, int(self._clock() * 1000))))
        return AnswerStream(tail, Wanted(query, session), start, timeout_s, limit)

    @functools.cached_property
    def _producer(self) -> AckedProducer:
        producer = AckedProducer(self._properties)
        self._counts = producer.topics()
        return producer

    @functools.cached_property
    def _ask_tail(self) -> Tail:
        return self._tail(self.config.topics.answers)

    def _tail(self, topic: str) -> Tail:
        tail = Tail(self._properties, topic, self._partitions(topic))
        self._tails.add(tail)
        return tail

    def _partitions(self, topic: str) -> int:
        """How many partitions a topic has. Raises Unavailable where there is no such topic."""
        if topic not in self._counts:
            self._counts = self._cluster.partition_counts()
        if topic not in self._counts:
            raise missing_topic(topic)
        return self._counts[topic]

    def _now_ns(self) -> int:
        return int(self._clock() * 1e9)

    def _mine(self, session: str) -> int | None:
        topic, producer = self.config.topics.records, self._producer
        partition = producer.key_partitions.get((topic, session.encode()))
        if self.config.worker.session_by == "partition":
            partition = session_partition(session, self._partitions(topic))
        return None if partition is None else producer.last_offsets.get((topic, partition))

    def _ask_partition(self, session: str) -> int:
        records, asks = self.config.topics.records, self.config.topics.asks
        num_partitions = self._partitions(records)
        if self._partitions(asks) != num_partitions:
            raise Usage(
                f"topic {asks} has {self._partitions(asks)} partitions and {records} {num_partitions}: asks "
                "would miss their sessions; delete it and run `streamproc topics create`"
            )
        by_partition = self.config.worker.session_by == "partition"
        return session_partition(session, num_partitions) if by_partition else ANY_PARTITION

    def _await_answer(self, tail: Tail, ask: Ask, deadline_ms: int) -> Answer | None:
        while (left_s := deadline_ms / 1000 - self._clock()) > 0:
            for message in tail.poll(min(left_s, 1.0)):
                if message.key == ask.id.encode() and (received := answer_in(message)):
                    return received.answer
        return None

    def _silence(self, ask: Ask, partition: int, timeout_s: float) -> str:
        group = self.config.worker.group
        start = f"nobody answered for session {ask.session!r} within {timeout_s:g} s: "
        if self._cluster.num_members(group) == 0:
            return f"{start}no worker of group {group!r} is up, start one with `streamproc run`"
        seen = "" if ask.min_offset is None else f", and has it come to offset {ask.min_offset}"
        return f"{start}is a worker running for partition {partition}{seen}? see `streamproc doctor`"


def checked_record(record: Record | Mapping[str, Any], now_ns: Callable[[], int]) -> Record:
    """The record, its fields as they go over the wire. Raises BadRecord."""
    if isinstance(record, Trade | Quote | Bar):
        return parse_record({"kind": record.kind, **record._asdict()})
    if not has_time(record):
        record = {**record, "ts": now_ns()}
    return row_to_record(record)


def checked_query(query: Query) -> Query:
    """The query as every worker will read it. Raises BadQuery."""
    try:
        return decode_query(query.id, query.encode())
    except (TypeError, UnicodeEncodeError) as problem:
        raise BadQuery(f"not a query: {problem}") from None


def session_partition(session: str, num_partitions: int) -> int:
    """The partition that owns a session where sessions are partitions. Raises Usage."""
    found = PARTITION_SESSION.fullmatch(session)
    if found and int(found.group(1)) < num_partitions:
        return int(found.group(1))
    raise Usage(
        f"session {session!r}: worker.session_by is partition, sessions are partition-0 to "
        f"partition-{num_partitions - 1}"
    )
