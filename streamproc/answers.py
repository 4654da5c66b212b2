"""The answers topic as a stream of values, with a position to go on from."""

import fnmatch
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import orjson

from streamproc.errors import StreamprocError
from streamproc.kafka.producing import Position
from streamproc.kafka.tailing import Message, Tail
from streamproc.messages import Answer, decode_answer
from streamproc.positions import format_offsets

POLL_S = 0.5
NOW, STATE, PAST = "now", "state", "past"

log = logging.getLogger("streamproc")


@dataclass(frozen=True, slots=True)
class Received:
    """An answer, where it lies in the answers topic, and what is true of this run only."""

    answer: Answer
    position: Position
    timestamp_ms: int
    timings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which answers: of one query, and of the sessions that a glob names; None is all."""

    query: str | None = None
    session: str | None = None

    def holds(self, answer: Answer) -> bool:
        return (self.query is None or answer.query_id == self.query) and (
            self.session is None or fnmatch.fnmatchcase(answer.session, self.session)
        )


class AnswerStream:
    """An iterator over answers; `position` is where another reader would go on. Ends with its client."""

    def __init__(self, tail: Tail, wanted: Wanted, start: str, timeout_s: float | None, limit: int | None) -> None:
        """`tail` has been started; `start`: NOW, STATE (first the newest of every query and session) or PAST."""
        self._tail = tail
        self._wanted = wanted
        self._left = limit
        self._at = dict(tail.positions)
        self._items = self._past_then_live(start, timeout_s)

    @property
    def position(self) -> str:
        """What `from_` takes to go on after the last answer that was handed out."""
        return format_offsets(self._at)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Received:
        received = next(self._items, None) if self._left != 0 else None
        if received is None:
            self.close()
            raise StopIteration
        self._left = None if self._left is None else self._left - 1
        return received

    def close(self) -> None:
        """Stop reading; may be called twice."""
        self._items = iter(())
        self._tail.close()

    def _past_then_live(self, start: str, timeout_s: float | None) -> Iterator[Received]:
        if start == STATE:
            yield from self._state()
        if start == PAST or timeout_s == 0:
            yield from self._present()
        if timeout_s != 0:
            yield from self._live(timeout_s)

    def _state(self) -> Iterator[Received]:
        newest: dict[tuple[str, str], Received] = {}
        for message in self._tail.read_to_end():
            received = self._wanted_in(message)
            if received and received.answer.query_id:
                newest[received.answer.query_id, received.answer.session] = received
        self._at = dict(self._tail.positions)
        yield from sorted(newest.values(), key=lambda received: (received.timestamp_ms, received.position))

    def _present(self) -> Iterator[Received]:
        """What is there, oldest first."""
        for message in self._tail.read_by_time():
            self._at[message.partition] = message.offset + 1
            if received := self._wanted_in(message):
                yield received
        self._at = dict(self._tail.positions)

    def _live(self, timeout_s: float | None) -> Iterator[Received]:
        last_s = self._tail.clock()
        while timeout_s is None or self._tail.clock() - last_s < timeout_s:
            for message in self._tail.poll(POLL_S if timeout_s is None else min(POLL_S, timeout_s)):
                self._at[message.partition] = message.offset + 1
                if received := self._wanted_in(message):
                    yield received
                    last_s = self._tail.clock()
            self._at = dict(self._tail.positions)

    def _wanted_in(self, message: Message) -> Received | None:
        received = answer_in(message)
        return received if received and self._wanted.holds(received.answer) else None


def answer_in(message: Message) -> Received | None:
    """The answer in a message; what is none is logged and left out."""
    where = Position(message.partition, message.offset)
    try:
        answer = decode_answer(message.value or b"")
    except StreamprocError as problem:
        log.warning("answers topic: %d:%d is left out: %s", *where, problem)
        return None
    return Received(answer, where, message.timestamp_ms, timings_in(message.headers.get("timings")))


def timings_in(header: bytes | None) -> dict[str, Any]:
    """The timings of a run; empty where there are none to be read."""
    try:
        found = orjson.loads(header or b"{}")
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
