"""What the answers must be, computed the slow way: every question from an empty cache, straight from the log."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fakes import FakeRenderer, greedy, next_kv

from streamproc.messages import Query
from streamproc.records import Record, decode_record
from streamproc.state.epoch import Message
from streamproc.state.facts import Facts


@dataclass(frozen=True)
class Expected:
    """One answer: where it stands and what it says."""

    session: str
    offset: int
    from_offset: int
    query_id: str
    text: str


@dataclass(frozen=True)
class Context:
    """What a session's question sees at an offset."""

    ids: list[int]
    records: list[tuple[int, Record]]
    num_records: int


def contexts(
    renderer: Any, messages: list[Message], context_tokens: int, keep_tokens: int
) -> Iterator[tuple[int, str, Context]]:
    """The context of every record's session, just after it; written from the design's words, not from the product."""
    kept: dict[str, list[tuple[int, Record, list[int]]]] = {}
    counts: dict[str, int] = {}
    for message in messages:
        record = decode_record(message.value, message.key)
        room = context_tokens - len(renderer.prefix_ids)
        entries = kept.setdefault(record.sym, [])
        ids = told(renderer, [*entries, (message.offset, record, [])])[-1][2]
        if sum(len(e[2]) for e in entries) + len(ids) > room:
            keep = kept_of(entries, context_tokens, len(renderer.prefix_ids), keep_tokens)
            while is_too_long(told(renderer, [*keep, (message.offset, record, [])]), keep_tokens, room):
                del keep[0]
            entries[:] = keep
        entries[:] = told(renderer, [*entries, (message.offset, record, [])])
        counts[record.sym] = counts.get(record.sym, 0) + 1
        flat = list(renderer.prefix_ids) + [i for e in entries for i in e[2]]
        yield message.offset, record.sym, Context(flat, [(e[0], e[1]) for e in entries], counts[record.sym])


Told = tuple[int, Record, list[int]]


def kept_of(entries: list[Told], context_tokens: int, num_prefix: int, keep_tokens: int) -> list[Told]:
    """What the next generation has of these records: begun an eighth of the context before its end, or half of what it
    may keep, with what then is left of that; every record after it.
    """
    lead = min(context_tokens // 8, keep_tokens // 2)
    ends = [num_prefix + sum(len(e[2]) for e in entries[: i + 1]) for i in range(len(entries))]
    marked = next((i for i, end in enumerate(ends) if end >= context_tokens - lead), len(entries) - 1)
    keep: list[Told] = []
    for entry in reversed(entries[: marked + 1]):
        if sum(len(e[2]) for e in keep) + len(entry[2]) > keep_tokens - lead:
            break
        keep.insert(0, entry)
    return keep + entries[marked + 1 :]


def told(renderer: Any, entries: list[Told]) -> list[Told]:
    """The same records, rendered from the first to the last."""
    ids = renderer.record_ids([record for _, record, _ in entries])
    return [(offset, record, list(new)) for (offset, record, _), new in zip(entries, ids, strict=True)]


def is_too_long(entries: list[Told], keep_tokens: int, room: int) -> bool:
    """Of records that a new generation would start from, and the one that comes next."""
    *kept, last = (len(ids) for _, _, ids in entries)
    return sum(kept) > min(keep_tokens, room - last)


def rendered(query: Query, session: str, context: Context) -> str:
    facts = Facts()
    for _, record in context.records:
        facts.update(record)
    return facts.render(query.question, session, context.num_records)


def fake_answer(
    renderer: FakeRenderer, ids: list[int], max_tokens: int, stop: tuple[str, ...], answer: Any = None
) -> str:
    """Greedy decoding on the fake model, one token after another; it is held to no type."""
    kv = 0
    for token_id in ids:
        kv = next_kv(kv, token_id)
    text = ""
    for _ in range(max_tokens):
        token_id = greedy(kv)
        if token_id in renderer.eos_ids:
            break
        text += chr(token_id)
        if any(word in text for word in stop):
            text = min((text[: text.index(word)] for word in stop if word in text), key=len)
            break
        kv = next_kv(kv, token_id)
    return text.strip()


def expected_answers(
    renderer: FakeRenderer,
    messages: list[Message],
    queries: list[Query],
    context_tokens: int,
    keep_tokens: int,
    answer: Callable[..., str] = fake_answer,
) -> list[Expected]:
    """Every answer that queries triggered by records must give over one partition, in log order."""
    found = []
    last: dict[tuple[str, str], str] = {}
    for offset, session, context in contexts(renderer, messages, context_tokens, keep_tokens):
        for query in sorted(queries, key=lambda query: query.id):
            if not query.every or not query.matches(session) or context.num_records % query.every:
                continue
            ids = context.ids + list(renderer.tail_ids(rendered(query, session, context)))
            stop = renderer.stop if query.stop is None else query.stop
            text = answer(renderer, ids, query.max_tokens, stop, query.answer)
            if query.emit == "always" or last.get((query.id, session)) != text:
                found.append(Expected(session, offset, context.records[0][0], query.id, text))
            last[(query.id, session)] = text
    return found
