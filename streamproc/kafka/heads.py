"""Session heads, from the compacted sessions topic."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import NamedTuple

from streamproc.config import Config
from streamproc.errors import StreamprocError
from streamproc.kafka.properties import client_properties
from streamproc.kafka.tailing import Message, Tail
from streamproc.messages import Head, decode_head
from streamproc.state.publish import head_key


class Heads(NamedTuple):
    """Of one partition, by session."""

    known: dict[str, Head]
    unread: set[str]  # sessions whose head cannot be read


def read_heads(config: Config, numbers: Collection[int], warn: Callable[[str], None]) -> dict[int, Heads]:
    """The newest committed head of every session of this group, by partition of the records topic."""
    heads = {number: Heads({}, set()) for number in numbers}
    prefix = head_key(config.worker.group, config.topics.records, "")
    for message in _newest(config, numbers, prefix):
        session = (message.key or b"").removeprefix(prefix).decode(errors="replace")
        try:
            heads[message.partition].known[session] = _head_of(session, message)
        except StreamprocError as problem:
            heads[message.partition].unread.add(session)
            warn(
                f"{config.topics.sessions} partition {message.partition} offset {message.offset}, key "
                f"{_shown(message.key)}: {problem}; passed over: the session is read from the log's start, and its "
                "head written anew"
            )
    return heads


def _shown(key: bytes | None) -> str:
    return repr((key or b"").decode(errors="replace")[:200])


def _newest(config: Config, numbers: Collection[int], prefix: bytes) -> list[Message]:
    newest: dict[tuple[int, bytes], Message] = {}
    tail = Tail(client_properties(config), config.topics.sessions, max(numbers) + 1)
    try:
        starts = tail.starts()
        tail.start({number: starts[number] for number in numbers})
        for message in tail.read_to_end():
            if message.key and message.key.startswith(prefix):
                newest[message.partition, message.key] = message
    finally:
        tail.close()
    return [message for message in newest.values() if message.value]


def _head_of(session: str, message: Message) -> Head:
    head = decode_head(message.value or b"")
    if head.session != session:
        raise StreamprocError(f"not a session head: it is of {head.session[:80]!r}")
    return head


def known_before(heads: Heads, offset: int, low: int) -> dict[str, Head]:
    """What they were when `offset` was committed, as far as can be told: of a session whose generation then is not
    known every record counts that the log has, from `low` on.
    """
    known = {session: _known_before(head, offset, low) for session, head in heads.known.items()}
    return known | {session: Head(session, low, 0) for session in heads.unread}


def _known_before(head: Head, offset: int, low: int) -> Head:
    if head.newest < offset:
        return head
    marks = {query_id: mark for query_id, mark in head.marks.items() if mark.offset < offset}
    if head.current_from < offset:
        return replace(head, marks=marks)
    return Head(head.session, low, 0, marks, head.topic_id)
