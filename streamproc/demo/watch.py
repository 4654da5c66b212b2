"""What can be seen from outside: the records and answers topics, read side by side, and what follows from them.

The records topic is read from its start, because triggers count all records of a session, those of earlier runs too.
Answers are read from where the topic ends when the watch begins.
"""

import statistics
import time
from collections.abc import Iterable
from typing import NamedTuple

from streamproc.answers import Received, answer_in
from streamproc.config import Config
from streamproc.demo.judge import Judge, Seen
from streamproc.errors import BadRecord
from streamproc.kafka.properties import client_properties
from streamproc.kafka.tailing import Message, Tail
from streamproc.market.questions import Kind
from streamproc.messages import Answer, Query
from streamproc.records import decode_record

FRESH_OVER = 500  # newest answers
ASK = "ask"
POLL_S, REST_S = 0.1, 5.0


class Due(NamedTuple):
    """An answer that must come: of this question, about this session, as of this offset."""

    query_id: str
    session: str
    offset: int


class Watch:
    """Everything that both topics have shown so far."""

    def __init__(self, config: Config, num_partitions: int, kinds: Iterable[Kind]) -> None:
        """Reads the records of earlier runs. Raises Unavailable where Kafka is silent."""
        properties = client_properties(config)
        self.log: dict[str, list[Seen]] = {}  # by session, in the order of the log
        self.flash: list[Received] = []  # this run's answers to standing questions
        self.newest: dict[tuple[str, str], Received] = {}  # by session and question; ASK: ad-hoc ones
        self.judge = Judge(kinds)
        self.num_answers = 0
        self.num_answer_tokens = 0
        self._max_record_bytes = config.worker.max_record_bytes
        self._written_ms: dict[tuple[int, int], int] = {}  # (partition, offset) of this run's records
        self._records = Tail(properties, config.topics.records, num_partitions)
        self._answers = Tail(properties, config.topics.answers, num_partitions)
        self._records.start(self._records.starts())
        for message in self._records.read_to_end():
            self._take_record(message)
        self.before = {session: len(seen) for session, seen in self.log.items()}
        self._written_ms.clear()
        self._answers.start(self._answers.ends())

    def close(self) -> None:
        self._records.close()
        self._answers.close()

    @property
    def num_records(self) -> int:
        """Records of this run."""
        return sum(map(len, self.log.values())) - sum(self.before.values())

    def sessions(self) -> list[str]:
        """Sessions with records of this run."""
        return [session for session, seen in self.log.items() if len(seen) > self.before.get(session, 0)]

    def poll(self, timeout_s: float) -> bool:
        """Take what is there, waiting for answers at most `timeout_s` -> whether there was anything."""
        answers, records = self._answers.poll(timeout_s), self._records.poll(0)
        for message in records:
            self._take_record(message)
        for message in answers:
            self._take_answer(message)
        self.judge.settle(self.log)
        return bool(answers or records)

    def read_rest(self, asked: Iterable[Answer]) -> None:
        """Take all that both topics hold by now, and these answers to asks."""
        records, answers = self._records.ends(), self._answers.ends()
        deadline_s = time.monotonic() + REST_S
        while self._is_behind(records, answers) and time.monotonic() < deadline_s:
            self.poll(POLL_S)
        for answer in asked:
            self.judge.take(answer)
        self.judge.settle(self.log)

    def freshness_ms(self) -> float | None:
        """Median time from a record's timestamp to that of the answer which has seen it; None before the first."""
        ages = [age for received in self.flash[-FRESH_OVER:] if (age := self._age_ms(received)) is not None]
        return round(statistics.median(ages), 1) if ages else None

    def missing(self, queries: Iterable[Query]) -> list[Due]:
        """Answers to these questions that must come because of this run's records and have not."""
        came = {
            Due(received.answer.query_id or "", received.answer.session, received.answer.as_of.offset)
            for received in self.flash
            if received.answer.as_of
        }
        return sorted(self.due(queries) - came)

    def due(self, queries: Iterable[Query]) -> set[Due]:
        """What must come of these questions; one that answers on change only owes nothing that can be counted."""
        owed: set[Due] = set()
        for query in (query for query in queries if query.emit == "always"):
            for session in filter(query.matches, self.sessions()):
                seen, first = self.log[session], self.before.get(session, 0)
                if query.every is None:
                    numbers = range(len(seen), len(seen) + 1)
                else:
                    numbers = range((first // query.every + 1) * query.every, len(seen) + 1, query.every)
                owed |= {Due(query.id, session, seen[number - 1].offset) for number in numbers}
        return owed

    def _is_behind(self, records: dict[int, int], answers: dict[int, int]) -> bool:
        both = ((self._records, records), (self._answers, answers))
        return any(tail.positions[partition] < end for tail, ends in both for partition, end in ends.items())

    def _age_ms(self, received: Received) -> int | None:
        as_of = received.answer.as_of
        written_ms = self._written_ms.get((as_of.partition, as_of.offset)) if as_of else None
        return None if written_ms is None else received.timestamp_ms - written_ms

    def _take_answer(self, message: Message) -> None:
        received = answer_in(message)
        if received is None or received.answer.as_of is None:
            return
        self.num_answers += 1
        self.num_answer_tokens += received.timings.get("num_tokens", 0)
        self.newest[received.answer.session, received.answer.query_id or ASK] = received
        self.judge.take(received.answer)
        if received.answer.kind == "flash":
            self.flash.append(received)

    def _take_record(self, message: Message) -> None:
        """Workers refuse what cannot be read, so it counts for nothing."""
        try:
            record = decode_record(message.value, message.key or b"", self._max_record_bytes)
        except BadRecord:
            return
        self.log.setdefault(record.sym, []).append(Seen(message.partition, message.offset, record))
        self._written_ms[message.partition, message.offset] = message.timestamp_ms
