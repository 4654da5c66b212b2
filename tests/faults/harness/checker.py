"""Reads a history back and names what is wrong in it; nothing but the file is needed.

The answers topic is compared record for record with what `model.py` computes from the records topic.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.anomalies import Anomaly
from harness.history import Past, bytes_of, read_history
from harness.late import Progress
from harness.model import Due, Logged, Model, Question, Said, name_of
from harness.offsets import Place, hanging, liveness, logged, longest_stall_s, polls, torn, unacknowledged
from streamproc.errors import BadRecord
from streamproc.messages import Answer, Ask, Query, decode_answer, decode_ask, decode_query
from streamproc.records import decode_record


@dataclass(frozen=True)
class Version:
    """A query as it was from one change of the control topic to the next. Offsets are by partition of the records."""

    query: Query
    since: dict[int, int] = field(default_factory=dict)  # it may answer from here on
    surely_since: dict[int, int] = field(default_factory=dict)  # and must from here on
    surely_until: dict[int, int] = field(default_factory=dict)  # up to here
    until: dict[int, int] = field(default_factory=dict)  # it may not answer from here on
    is_last: bool = True

    def may(self, partition: int, offset: int) -> bool:
        return self.since.get(partition, 0) <= offset and (self.is_last or offset < self.until.get(partition, 0))

    def must(self, partition: int, offset: int) -> bool:
        return self.surely_since.get(partition, 0) <= offset and (
            self.is_last or offset < self.surely_until.get(partition, 0)
        )


def versions(past: Past) -> dict[str, Version]:
    """Every version of every query, by name."""
    changes: dict[str, list[tuple[str | None, dict[int, int], dict[int, int]]]] = {}
    for event in past.of("query"):
        low, high = ({int(p): o for p, o in event[name].items()} for name in ("low", "high"))
        changes.setdefault(event["id"], []).append((event["value"], low, high))
    found = {}
    for query_id, steps in changes.items():
        for number, (value, low, high) in enumerate(steps):
            if value is not None:
                query = decode_query(query_id, value.encode())
                following = steps[number + 1 :]
                _, end_low, end_high = following[0] if following else (None, {}, {})
                found[name_of(query)] = Version(query, low, high, end_low, end_high, not following)
    return found


@dataclass
class Outcome:
    """What the answers topic holds, and what it should."""

    past: Past
    versions: dict[str, Version]
    answers: dict[Due, list[tuple[Place, Answer]]]
    replies: dict[str, list[tuple[Place, Answer]]]
    asks: dict[Place, Ask]
    expected: dict[Due, Said]

    def committed(self, topic: str) -> dict[int, int]:
        """The group's offsets at the end."""
        found: dict[int, int] = {}
        for event in self.past.of("group", topic=topic):
            found.update({int(partition): offset for partition, offset in event["committed"].items()})
        return found


def outcome(past: Past) -> Outcome:
    found = Outcome(past, versions(past), {}, {}, {}, {})
    for place, (_, value) in sorted(logged(past, "answers").items()):
        answer = decode_answer(bytes_of(value) or b"")
        if answer.kind == "ask":
            found.replies.setdefault(answer.id, []).append((place, answer))
        elif answer.as_of:
            due = Due(
                f"{answer.query_id} {answer.query_version}",
                answer.session,
                answer.as_of.partition,
                answer.as_of.offset,
            )
            found.answers.setdefault(due, []).append((place, answer))
    for place, (_, value) in logged(past, "asks").items():
        found.asks[place] = decode_ask(bytes_of(value))
    shape = past.run
    model = Model(
        shape["context_tokens"],
        shape["keep_tokens"],
        [version.query for version in found.versions.values() if version.query.every],
        [*idle_questions(found), *ask_questions(found)],
    )
    records = sorted(logged(past, "records").items())
    found.expected = dict(model.answers(Logged(*place, bytes_of(k), bytes_of(v)) for place, (k, v) in records))
    return found


def idle_questions(found: Outcome) -> Iterator[Question]:
    """Idle queries answer when there is time; what they then say is determined."""
    for name, version in found.versions.items():
        query = version.query
        if not query.every:
            places = frozenset((d.session, d.partition, d.offset) for d in found.answers if d.question == name)
            yield Question(name, query.question, query.max_tokens, query.stop, places)


def ask_questions(found: Outcome) -> Iterator[Question]:
    for ask in found.asks.values():
        as_ofs = [(ask.session, a.as_of.partition, a.as_of.offset) for _, a in found.replies.get(ask.id, ()) if a.as_of]
        yield Question(ask.id, ask.question, ask.max_tokens, ask.stop, frozenset(as_ofs))


def flash_answers(found: Outcome) -> Iterator[Anomaly]:
    """Every answer that is due, once, and no other."""
    committed = found.committed("records")
    for due, said in found.expected.items():
        version = found.versions.get(due.question)
        if version is None:
            continue  # an ask's
        if due not in found.answers:
            is_past = due.offset < committed.get(due.partition, 0)
            if is_past and version.query.every and version.must(due.partition, due.offset):
                yield Anomaly("lost-write", f"{due} is committed past, but was not answered ({said.text!r})")
    for due, answers in found.answers.items():
        yield from _one_answer(found, due, answers, committed)


def _one_answer(
    found: Outcome, due: Due, answers: list[tuple[Place, Answer]], committed: dict[int, int]
) -> Iterator[Anomaly]:
    (place, answer), *more = answers
    version, said = found.versions.get(due.question), found.expected.get(due)
    if more:
        yield Anomaly("duplicate", f"{due} is answered at {[at for at, _ in answers]}")
    if version is None or said is None or not version.may(due.partition, due.offset):
        yield Anomaly("phantom", f"{due} is answered at {place}, nothing called for it")
    elif answer.as_of is not None and (answer.as_of.from_offset, answer.text) != said:
        here = Said(answer.as_of.from_offset, answer.text or answer.error or "")
        yield Anomaly("wrong-answer", f"{due} at {place}: {here}, a recompute gives {said}")
    if due.offset >= committed.get(due.partition, 0):
        end = committed.get(due.partition)
        yield Anomaly("precommitted-read", f"{due} at {place}: the group's offset at the end is {end}")


def replies(found: Outcome) -> Iterator[Anomaly]:
    """Every ask gets one reply that has seen what it must."""
    committed = found.committed("asks")
    known = {ask.id for ask in found.asks.values()}
    progress = Progress(found.past)
    for (partition, offset), ask in found.asks.items():
        answers = found.replies.get(ask.id, [])
        if not answers and offset < committed.get(partition, 0):
            yield Anomaly("lost-write", f"ask {ask.id} at {(partition, offset)} is committed past, without a reply")
        if len(answers) > 1:
            yield Anomaly("duplicate", f"ask {ask.id} has {len(answers)} replies: {[at for at, _ in answers]}")
        for place, answer in answers:
            if not progress.is_too_late(ask, partition, answer):
                yield from _one_reply(found, ask, place, answer)
    for ask_id in found.replies.keys() - known:
        yield Anomaly("phantom", f"a reply to ask {ask_id}, which nobody has asked")


def _one_reply(found: Outcome, ask: Ask, place: Place, answer: Answer) -> Iterator[Anomaly]:
    if answer.as_of is None:
        yield Anomaly("wrong-answer", f"ask {ask.id} at {place} was refused: {answer.error}")
        return
    if ask.min_offset is not None and answer.as_of.offset < ask.min_offset:
        yield Anomaly("wrong-answer", f"ask {ask.id} at {place} has seen {answer.as_of.offset}, not {ask.min_offset}")
    said = found.expected.get(Due(ask.id, ask.session, answer.as_of.partition, answer.as_of.offset))
    if said is None:
        yield Anomaly("phantom", f"ask {ask.id} at {place}: there is no record of its session at {answer.as_of}")
    elif said != (answer.as_of.from_offset, answer.text):
        yield Anomaly("wrong-answer", f"ask {ask.id} at {place}: {answer.text!r}, a recompute gives {said}")


def send_order(found: Outcome) -> Iterator[Anomaly]:
    """Answers of a query for a session stand in the log in the order of its records."""
    lines: dict[tuple[str, str, int, int], list[tuple[int, int]]] = {}
    for due, answers in found.answers.items():
        for (partition, offset), _ in answers:
            lines.setdefault((due.question, due.session, due.partition, partition), []).append((offset, due.offset))
    for where, line in lines.items():
        line.sort()
        for (_, before), (offset, here) in itertools.pairwise(line):
            if here < before:
                yield Anomaly("nonmonotonic-send", f"{where} offset {offset}: as of {here}, after as of {before}")


def dead_letters(found: Outcome) -> Iterator[Anomaly]:
    """What cannot be read stands in the dead topic once, with its bytes; nothing else does."""
    committed = found.committed("records")
    letters: dict[Place, list[Place]] = {}
    topic = found.past.run["topics"]["records"]
    for event in found.past.of("log", topic="dead"):
        headers = event.get("headers", {})
        if headers.get("topic") == topic:
            source = (int(headers["partition"]), int(headers["offset"]))
            letters.setdefault(source, []).append((event["partition"], event["offset"]))
    for place, (key, value) in logged(found.past, "records").items():
        is_bad = not readable(key, value)
        if is_bad and place[1] < committed.get(place[0], 0) and place not in letters:
            yield Anomaly("lost-write", f"record {place} cannot be read and is not in the dead topic: {value!r}")
        if not is_bad and place in letters:
            yield Anomaly("phantom", f"record {place} is in the dead topic, and nothing is wrong with it")
    for place, where in letters.items():
        if len(where) > 1:
            yield Anomaly("duplicate", f"record {place} is in the dead topic {len(where)} times: {where}")


def readable(key: str | None, value: str | None) -> bool:
    try:
        decode_record(bytes_of(value), bytes_of(key) or b"")
    except BadRecord:
        return False
    return True


BY_PAST: tuple[Callable[[Past], Iterator[Anomaly]], ...] = (unacknowledged, polls, torn, hanging, liveness)
BY_OUTCOME: tuple[Callable[[Outcome], Iterator[Anomaly]], ...] = (flash_answers, replies, send_order, dead_letters)


@dataclass(frozen=True)
class Verdict:
    """What a history shows."""

    anomalies: list[Anomaly]
    longest_stall_s: float
    num_answers: int
    num_faults: int


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Of several runs that are one scenario."""
    return Verdict(
        [anomaly for verdict in verdicts for anomaly in verdict.anomalies],
        max(verdict.longest_stall_s for verdict in verdicts),
        sum(verdict.num_answers for verdict in verdicts),
        sum(verdict.num_faults for verdict in verdicts),
    )


def check(past: Past) -> Verdict:
    found = outcome(past)
    anomalies = [a for look in BY_PAST for a in look(past)] + [a for look in BY_OUTCOME for a in look(found)]
    return Verdict(anomalies, longest_stall_s(past), len(logged(past, "answers")), len(past.of("fault")))


def check_file(path: Path) -> Verdict:
    return check(Past(read_history(path)))
