"""What travels beside the market data: standing queries, asks, answers, session heads. Typed, JSON in and out.

An answer's value is a pure function of the log: the same records and the same question give the same bytes, live or
replayed. What belongs to one run only (timings, worker) travels in the message's headers.
"""

import fnmatch
import hashlib
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from streamproc.answertypes import AnswerType, Value, parse_answer_type
from streamproc.errors import BadAsk, BadInput, BadQuery, StreamprocError

PLACEHOLDERS = ("session", "last", "high", "low", "vwap", "volume", "count", "bid", "ask", "mid", "spread")
EMITS = ("always", "change")
MAX_QUESTION_CHARS = 4_000
MAX_STOPS = 8
MAX_TOKENS_LIMIT = 4_096
MAX_EVERY = 1_000_000_000

QUERY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
EVERY = re.compile(r"every ([0-9]{1,10}) records?")


@dataclass(frozen=True, slots=True)
class Query:
    """A standing question. `every` None: the newest offset whenever cycles are free (trigger "idle")."""

    id: str
    question: str
    sessions: str = "*"
    every: int | None = None
    emit: str = "always"
    answer: AnswerType = field(default_factory=AnswerType)
    max_tokens: int = 32
    stop: tuple[str, ...] | None = None    # None: the prompts' own

    @property
    def trigger(self) -> str:
        return "idle" if self.every is None else f"every {self.every} record{'s' if self.every > 1 else ''}"

    @property
    def version(self) -> str:
        """Hash of the specification: the same question has the same version in every run and on every worker."""
        return hashlib.sha256(self.encode()).hexdigest()[:12]

    def matches(self, session: str) -> bool:
        return fnmatch.fnmatchcase(session, self.sessions)

    def encode(self) -> bytes:
        """The control topic's value, in canonical form; its key is the id."""
        doc: dict[str, Any] = {"v": 1, "question": self.question, "sessions": self.sessions, "trigger": self.trigger,
                               "emit": self.emit, "answer": self.answer.doc(), "max_tokens": self.max_tokens}
        if self.stop is not None:
            doc["stop"] = list(self.stop)
        return orjson.dumps(doc, option=orjson.OPT_SORT_KEYS)


def decode_query(key: bytes | str | None, value: bytes) -> Query:
    """The query in a control message. Raises BadQuery with a reason that names the field."""
    try:
        query_id = key.decode() if isinstance(key, bytes) else key
        doc = orjson.loads(value)
    except (UnicodeDecodeError, orjson.JSONDecodeError) as problem:
        raise BadQuery(f"not a query: {problem}") from None
    return parse_query(query_id, doc)


def parse_query(query_id: str | None, doc: Any) -> Query:
    """The query in a JSON or TOML table. Raises BadQuery with a reason that names the field."""
    if type(query_id) is not str or not QUERY_ID.fullmatch(query_id):
        raise BadQuery(f"id: {query_id!r} is not a query id (letters, digits, dot, dash, underscore; at most 64)")
    if type(doc) is not dict:
        raise BadQuery(f"a query is an object, not {type(doc).__name__}")
    known = {"v", "id", "question", "sessions", "trigger", "emit", "answer", "max_tokens", "stop"}
    if unknown := sorted(set(doc) - known):
        raise BadQuery(f"{unknown[0]}: unknown field, a query has {', '.join(sorted(known - {'v'}))}")
    if doc.get("v", 1) != 1:
        raise BadQuery(f"v: {doc['v']!r} is unknown, this is version 1")
    sessions = doc.get("sessions", "*")
    if type(sessions) is not str or not sessions:
        raise BadQuery(f"sessions: {sessions!r} is not a glob such as 'BTC*'")
    emit = doc.get("emit", "always")
    if emit not in EMITS:
        raise BadQuery(f"emit: {emit!r} is unknown, use one of {', '.join(EMITS)}")
    return Query(query_id, parse_question(doc, BadQuery), sessions, _parse_trigger(doc.get("trigger", "idle")), emit,
                 parse_answer_type(doc.get("answer"), BadQuery), parse_max_tokens(doc, BadQuery),
                 parse_stop(doc, BadQuery))


def _parse_trigger(trigger: Any) -> int | None:
    if trigger == "idle":
        return None
    found = EVERY.fullmatch(trigger) if type(trigger) is str else None
    if found and 1 <= int(found.group(1)) <= MAX_EVERY:
        return int(found.group(1))
    raise BadQuery(f"trigger: {str(trigger)[:40]!r} is unknown, use 'idle' or 'every N records'")


def _members(message: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of a dataclass, in order; orjson writes those that are dataclasses themselves."""
    return ((name, getattr(message, name)) for name in message.__slots__)


@dataclass(frozen=True, slots=True)
class Ask:
    """An ad-hoc question; its partition is its session's partition of the records topic."""

    id: str                               # correlation id, chosen by the asker
    session: str
    question: str
    min_offset: int | None = None         # answer only once this offset of the partition has been seen
    deadline_ms: int | None = None        # Unix time after which nobody waits for the answer
    answer: AnswerType = field(default_factory=AnswerType)
    max_tokens: int = 32
    stop: tuple[str, ...] | None = None

    def encode(self) -> bytes:
        doc = {name: value for name, value in _members(self) if value is not None}
        return orjson.dumps({"v": 1, **doc, "answer": self.answer.doc()})


def decode_ask(value: bytes | None) -> Ask:
    """The ask in a message. Raises BadAsk with a reason that names the field."""
    try:
        doc = orjson.loads(value or b"")
    except orjson.JSONDecodeError as problem:
        raise BadAsk(f"not JSON: {problem}") from None
    if type(doc) is not dict:
        raise BadAsk(f"an ask is an object, not {type(doc).__name__}")
    for name, kind in (("id", str), ("session", str)):
        if type(doc.get(name)) is not kind or not 0 < len(doc[name]) <= 128:
            raise BadAsk(f"{name}: {str(doc.get(name))[:80]!r} is not a text of 1 to 128 characters")
    for name in ("min_offset", "deadline_ms"):
        if doc.get(name) is not None and (type(doc[name]) is not int or doc[name] < 0):
            raise BadAsk(f"{name}: {str(doc[name])[:40]!r} is not a whole number")
    return Ask(doc["id"], doc["session"], parse_question(doc, BadAsk), doc.get("min_offset"), doc.get("deadline_ms"),
               parse_answer_type(doc.get("answer"), BadAsk), parse_max_tokens(doc, BadAsk), parse_stop(doc, BadAsk))


def parse_question(doc: dict[str, Any], error: type[BadInput]) -> str:
    """The question template; every placeholder in it must be known."""
    question = doc.get("question")
    if type(question) is not str or not question.strip():
        raise error("question: empty, write what you want to know")
    if len(question) > MAX_QUESTION_CHARS:
        raise error(f"question: {len(question)} characters, the limit is {MAX_QUESTION_CHARS}")
    try:
        fields = [part for part in string.Formatter().parse(question) if part[1] is not None]
    except ValueError as problem:
        raise error(f"question: {problem}; write {{{{ and }}}} for braces") from None
    for _, name, spec, conversion in fields:
        if name not in PLACEHOLDERS:
            raise error(f"question: unknown placeholder {{{name}}}, known are {', '.join(PLACEHOLDERS)}")
        if spec or conversion:
            raise error(f"question: {{{name}}} takes no format, values read as the feed wrote them")
    return question


def parse_max_tokens(doc: dict[str, Any], error: type[BadInput]) -> int:
    value = doc.get("max_tokens", 32)
    if type(value) is not int or not 1 <= value <= MAX_TOKENS_LIMIT:
        raise error(f"max_tokens: {str(value)[:40]!r} is not a number from 1 to {MAX_TOKENS_LIMIT}")
    return value


def parse_stop(doc: dict[str, Any], error: type[BadInput]) -> tuple[str, ...] | None:
    stop = doc.get("stop")
    if stop is None:
        return None
    if type(stop) is not list or len(stop) > MAX_STOPS or not all(type(s) is str and s for s in stop):
        raise error(f"stop: must be a list of at most {MAX_STOPS} texts")
    return tuple(stop)


@dataclass(frozen=True, slots=True)
class AsOf:
    """The stretch of a session's log that an answer has seen, both ends included."""

    topic: str
    partition: int
    from_offset: int       # first record of the generation
    offset: int            # last record seen
    ts_event_ns: int       # its event time


@dataclass(frozen=True, slots=True)
class Answer:
    """What the answers topic carries. `kind` is flash or ask; an ask that failed has `error` and no text."""

    id: str
    kind: str
    session: str
    question: str                       # as rendered into the prompt
    as_of: AsOf | None
    text: str | None
    value: Value
    model: str                          # fingerprint of weights, tokenizer, templates and dtype
    query_id: str | None = None
    query_version: str | None = None
    error: str | None = None

    def encode(self) -> bytes:
        return orjson.dumps({"v": 1, **{name: value for name, value in _members(self) if value is not None}})


def decode_answer(value: bytes) -> Answer:
    """The answer in a message. Raises StreamprocError where it is none."""
    try:
        doc = orjson.loads(value)
        as_of = doc.get("as_of")
        return Answer(doc["id"], doc["kind"], doc["session"], doc.get("question", ""), AsOf(**as_of) if as_of else None,
                      doc.get("text"), doc.get("value"), doc["model"], doc.get("query_id"), doc.get("query_version"),
                      doc.get("error"))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as problem:
        raise StreamprocError(f"not an answer: {problem!r}") from None


def flash_answer_id(query: Query, session: str, topic: str, partition: int, offset: int) -> str:
    """Made from inputs alone, so that a reader can tell a repeated answer from a new one."""
    parts = (query.id, query.version, session, topic, str(partition), str(offset))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Mark:
    """The last answer that a query has published for a session, where the trigger or `emit` needs to remember it."""

    version: str
    offset: int            # its as-of offset
    digest: str            # of its text


@dataclass(frozen=True, slots=True)
class Head:
    """Where a session can be rebuilt from; lives in the compacted sessions topic, written in its own epoch."""

    session: str
    start_offset: int                   # first record of the current generation
    records_before: int                 # records of this session before it: triggers count all of them
    marks: dict[str, Mark] = field(default_factory=dict)    # by query id
    topic_id: str = ""                  # of the records topic: these offsets are of no other, even of one of its name
    born_at: int = 0                    # first record after the generation had become the current one; 0: not known

    @property
    def current_from(self) -> int:
        """The record from which on this generation is the session's."""
        return max(self.start_offset, self.born_at)

    @property
    def newest(self) -> int:
        """The newest record that it knows of: it was committed with an offset beyond it."""
        return max([self.current_from, *(mark.offset for mark in self.marks.values())])

    def encode(self) -> bytes:
        return orjson.dumps({"v": 1, **dict(_members(self))})


def decode_head(value: bytes) -> Head:
    """The head in a message. Raises StreamprocError where it is none."""
    try:
        doc = orjson.loads(value)
        marks = {query_id: _mark(mark) for query_id, mark in doc["marks"].items()}
        return Head(_text(doc["session"]), _count(doc["start_offset"]), _count(doc["records_before"]), marks,
                    _text(doc.get("topic_id", "")), _count(doc.get("born_at", 0)))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as problem:
        raise StreamprocError(f"not a session head: {problem!r}") from None


def _mark(doc: Any) -> Mark:
    return Mark(_text(doc["version"]), _count(doc["offset"]), _text(doc["digest"]))


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"{str(value)[:40]!r} is not a text")
    return value


def _count(value: Any) -> int:
    """An offset, or a number of records."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise TypeError(f"{str(value)[:40]!r} is not a whole number")
    return value


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
