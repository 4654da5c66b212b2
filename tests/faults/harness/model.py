"""What must come out, computed from the log alone with plain Python: the reference that answers are held to.

It knows no blocks, batches, epochs or restarts: a session is a list of records, its context their hash from the start.
Where sessions hop it goes by the rule in `oracle.py`, which is written from the design's words.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fakes import FakeRenderer, greedy, next_kv
from oracle import is_too_long, kept_of

from streamproc.errors import BadRecord
from streamproc.messages import Query
from streamproc.records import Record, decode_record
from streamproc.state.facts import Facts

RENDERER = FakeRenderer()


class Logged(NamedTuple):
    """One message of the records topic."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


class Due(NamedTuple):
    """One question at one record."""

    question: str  # an ask's id, or a query's id and version
    session: str
    partition: int
    offset: int


class Said(NamedTuple):
    """What the answer must be."""

    from_offset: int
    text: str


def roll(kv: int, ids: Iterable[int]) -> int:
    for token_id in ids:
        kv = next_kv(kv, token_id)
    return kv


def continued(kv: int, max_tokens: int, stop: Sequence[str]) -> str:
    """Greedy decoding on the fake model from a cell on."""
    text = ""
    for _ in range(max_tokens):
        token_id = greedy(kv)
        if token_id in RENDERER.eos_ids:
            break
        text += chr(token_id)
        if found := [text.index(word) for word in stop if word in text]:
            text = text[: min(found)]
            break
        kv = next_kv(kv, token_id)
    return text.strip()


@dataclass
class Session:
    """Records of one key, and the hash of everything that its context holds."""

    context_tokens: int
    keep_tokens: int
    entries: list[tuple[int, Record, list[int]]] = field(default_factory=list)
    count: int = 0  # of all its records, hops or not
    num_tokens: int = 0
    kv: int = 0
    facts: Facts = field(default_factory=Facts)

    def append(self, offset: int, record: Record) -> None:
        ids = list(RENDERER.record_ids([record])[0])
        room = self.context_tokens - len(RENDERER.prefix_ids)
        if self.num_tokens + len(ids) > room:
            keep = kept_of(self.entries, self.context_tokens, len(RENDERER.prefix_ids), self.keep_tokens)
            while is_too_long([*keep, (offset, record, ids)], self.keep_tokens, room):
                del keep[0]
            self._start(keep)
        elif not self.entries:
            self._start([])
        self._add(offset, record, ids)
        self.count += 1

    def _start(self, entries: list[tuple[int, Record, list[int]]]) -> None:
        self.entries, self.num_tokens, self.facts = [], 0, Facts()
        self.kv = roll(0, RENDERER.prefix_ids)
        for entry in entries:
            self._add(*entry)

    def _add(self, offset: int, record: Record, ids: list[int]) -> None:
        self.entries.append((offset, record, ids))
        self.num_tokens += len(ids)
        self.kv = roll(self.kv, ids)
        self.facts.update(record)

    def ask(self, name: str, question: str, max_tokens: int, stop: Sequence[str] | None) -> str:
        text = self.facts.render(question, name, self.count)
        words = RENDERER.stop if stop is None else stop
        return continued(roll(self.kv, RENDERER.tail_ids(text)), max_tokens, words)


@dataclass(frozen=True)
class Question:
    """A question asked at given records, such as an ask or an idle query: (session, partition, offset)."""

    name: str
    text: str
    max_tokens: int
    stop: tuple[str, ...] | None
    places: frozenset[tuple[str, int, int]]


@dataclass(frozen=True)
class Model:
    """The shape of sessions, and what is asked."""

    context_tokens: int
    keep_tokens: int
    queries: Sequence[Query]
    questions: Sequence[Question] = ()

    def answers(self, messages: Iterable[Logged]) -> Iterator[tuple[Due, Said]]:
        """Every answer over these messages, which come in the order of their partitions' logs."""
        sessions: dict[tuple[int, str], Session] = {}
        last: dict[tuple[int, str, str], str] = {}
        asked: dict[tuple[str, int, int], list[Question]] = {}
        for question in self.questions:
            for place in question.places:
                asked.setdefault(place, []).append(question)
        for message in messages:
            try:
                record = decode_record(message.value, message.key or b"")
            except BadRecord:
                continue
            where = (message.partition, record.sym)
            session = sessions.setdefault(where, Session(self.context_tokens, self.keep_tokens))
            session.append(message.offset, record)
            start = session.entries[0][0]
            for query in self._triggered(session, record.sym):
                text = session.ask(record.sym, query.question, query.max_tokens, query.stop)
                if query.emit == "always" or last.get((*where, query.id)) != text:
                    yield Due(name_of(query), record.sym, message.partition, message.offset), Said(start, text)
                last[(*where, query.id)] = text
            for question in asked.get((record.sym, message.partition, message.offset), ()):
                text = session.ask(record.sym, question.text, question.max_tokens, question.stop)
                yield Due(question.name, record.sym, message.partition, message.offset), Said(start, text)

    def _triggered(self, session: Session, name: str) -> Iterator[Query]:
        """Queries that the session's newest record makes due."""
        for query in self.queries:
            if query.every and session.count % query.every == 0 and query.matches(name):
                yield query


def name_of(query: Query) -> str:
    return f"{query.id} {query.version}"
