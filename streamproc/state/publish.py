"""Turns what is finished into an epoch, and marks it settled once the epoch is committed.

Flash answers leave with the commit that passes their as-of offset, in as-of order; so a restart recomputes exactly
those that nobody has seen. A reply to an ask leaves with the next epoch, and closes the ask in the same transaction.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import orjson

from streamproc.config import Topics
from streamproc.messages import Answer, Ask, AsOf, Head, Mark, Query, flash_answer_id, text_digest
from streamproc.state.epoch import Epoch, Outgoing, Position
from streamproc.state.fork import Fork
from streamproc.state.generation import Generation
from streamproc.state.partition import Partition
from streamproc.state.recent import Recent
from streamproc.state.session import Session
from streamproc.state.stamp import Stamp

Headers = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Settlement:
    """What becomes true of one partition when its epoch is committed."""

    partition: Partition
    positions: tuple[int, int, str]
    heads: dict[str, Head]
    num_replies: int
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Publisher:
    """Names that go into every epoch."""

    topics: Topics
    group: str
    model: str  # fingerprint
    worker: str

    def epoch(
        self, partitions: Iterable[Partition], epoch_id: str, also: Collection[int], leaving: Collection[int] = ()
    ) -> tuple[Epoch, list[Settlement]]:
        """Everything that can be committed now, and `also` these partitions; nothing is changed but the ask logs.

        The id travels in the metadata of the records' offsets: when a commit's outcome is in doubt, it tells.
        leaving: partitions that this worker lets go of once the epoch is committed.
        """
        messages: list[Outgoing] = []
        positions: list[Position] = []
        settlements = []
        for partition in partitions:
            left = partition.number in leaving
            if partition.is_live:
                num_before = len(messages)
                settlement = self._settle(partition, messages)
                changed = len(messages) > num_before or settlement.positions != partition.committed
                changed |= not partition.is_signed
                if changed or partition.number in also or (left and partition.is_begun):
                    settlements.append(settlement)
                    positions += self._positions(settlement, replace(settlement.stamp, epoch=epoch_id, left=left))
            elif left and partition.is_begun:  # nothing of it has changed, but its owner has not died
                metadata = partition.origin.sign(replace(partition.stamp, epoch=epoch_id, left=True))
                positions.append(Position(self.topics.records, partition.number, partition.committed[0], metadata))
        return Epoch(tuple(messages), tuple(positions)), settlements

    def _settle(self, partition: Partition, messages: list[Outgoing]) -> Settlement:
        target = partition.frontier()
        marks = self._answers(partition, target, messages)
        due = [bad for bad in partition.dead if bad.offset < target]
        messages += [bad.letter(self.topics.dead) for bad in due]
        heads = dict(self._heads(partition, target, marks))
        gone = [session for session in partition.stale if session not in heads]
        messages += [self._head_message(partition, session, None) for session in gone]
        messages += [self._head_message(partition, session, head.encode()) for session, head in heads.items()]
        for reply in partition.replies:
            messages.append(reply.message)
            partition.asks.close(reply.ask_offset)
        asks_offset, metadata = partition.asks.position()
        stamp = _stamp(partition, target, {bad.offset for bad in due})
        return Settlement(partition, (target, asks_offset, metadata), heads, len(partition.replies), stamp)

    def _answers(self, partition: Partition, target: int, messages: list[Outgoing]) -> dict[Session, dict[str, Mark]]:
        """Add the answers below `target` that are to be seen -> the marks that they leave."""
        marks: dict[Session, dict[str, Mark]] = {}
        due = [fork for fork in partition.finished if fork.question.as_of.offset < target]
        for fork in sorted(due, key=lambda fork: fork.question.as_of.offset):
            query, session = fork.question.source, fork.session
            assert isinstance(query, Query)
            assert session is not None
            known = marks.setdefault(session, dict(session.head.marks) if session.head else {})
            mark = Mark(query.version, fork.question.as_of.offset, text_digest(fork.error or fork.text or ""))
            if _is_news(query, mark, known.get(query.id)):
                messages.append(self._flash_message(fork, query))
                if query.emit == "change" or query.every is None:
                    known[query.id] = mark
        return marks

    def _heads(
        self, partition: Partition, target: int, marks: dict[Session, dict[str, Mark]]
    ) -> Iterable[tuple[str, Head]]:
        """Of sessions that have changed since the last commit, or have new marks: those of all others stay."""
        changed = dict.fromkeys((*partition.touched, *(session.key for session in marks)))
        for session in [partition.sessions[key] for key in changed if key in partition.sessions]:
            generation = session.committed_generation(target)
            if generation.entries and generation.entries[0].offset < target:
                old_marks = session.head.marks if session.head else {}
                head = Head(
                    session.key,
                    generation.start_offset,
                    generation.records_before,
                    marks.get(session, old_marks),
                    partition.stamp.topic_id,
                    generation.born_at,
                )
                if head != session.head or session.key in partition.stale:
                    yield session.key, head

    def _head_message(self, partition: Partition, session: str, value: bytes | None) -> Outgoing:
        key = head_key(self.group, self.topics.records, session)
        return Outgoing(self.topics.sessions, key, value, (), partition.number)

    def _positions(self, settlement: Settlement, stamp: Stamp) -> list[Position]:
        number = settlement.partition.number
        offset, asks_offset, metadata = settlement.positions
        origin = settlement.partition.origin
        return [
            Position(self.topics.records, number, offset, origin.sign(stamp)),
            Position(self.topics.asks, number, asks_offset, metadata),
        ]

    def _flash_message(self, fork: Fork, query: Query) -> Outgoing:
        as_of = fork.question.as_of
        answer_id = flash_answer_id(query, fork.question.session, as_of.topic, as_of.partition, as_of.offset)
        value = query.answer.value_of(fork.text) if fork.text is not None else None
        answer = Answer(
            answer_id,
            "flash",
            fork.question.session,
            fork.question.text,
            as_of,
            fork.text,
            value,
            self.model,
            query.id,
            query.version,
            fork.error,
        )
        key = f"{query.id}/{fork.question.session}".encode()
        return Outgoing(self.topics.answers, key, answer.encode(), self._timings(fork))

    def ask_message(self, fork: Fork, ask: Ask) -> Outgoing:
        """The reply to an ask that was answered, or failed on the way."""
        if fork.error is not None:
            return self.refusal(ask, fork.error)
        return self._reply(ask, fork.question.text, fork.question.as_of, fork.text or "", self._timings(fork))

    def known_message(self, recent: Recent, ask: Ask) -> Outgoing:
        """The reply to an ask whose answer was there before it was asked."""
        return self._reply(ask, recent.question, recent.as_of, recent.text, _timings_header(0, 0, self.worker, 0))

    def _reply(self, ask: Ask, question: str, as_of: AsOf, text: str, headers: Headers) -> Outgoing:
        value = ask.answer.value_of(text)
        answer = Answer(ask.id, "ask", ask.session, question, as_of, text, value, self.model)
        return Outgoing(self.topics.answers, ask.id.encode(), answer.encode(), headers)

    def refusal(self, ask: Ask, reason: str) -> Outgoing:
        """The reply to an ask that cannot be answered."""
        answer = Answer(ask.id, "ask", ask.session, ask.question, None, None, None, self.model, error=reason)
        return Outgoing(self.topics.answers, ask.id.encode(), answer.encode())

    def _timings(self, fork: Fork) -> tuple[tuple[str, bytes], ...]:
        started = fork.asked_at if fork.started_at is None else fork.started_at
        finished = started if fork.finished_at is None else fork.finished_at
        return _timings_header(started - fork.asked_at, finished - started, self.worker, len(fork.answer_ids))


def _timings_header(queue_s: float, compute_s: float, worker: str, num_tokens: int) -> Headers:
    timings = {
        "queue_ms": round(queue_s * 1e3, 3),
        "worker": worker,
        "compute_ms": round(compute_s * 1e3, 3),
        "num_tokens": num_tokens,
    }
    return (("timings", orjson.dumps(timings)),)


def head_key(group: str, topic: str, session: str) -> bytes:
    """Key of a session's head: several groups may share one sessions topic."""
    return f"{group}/{topic}/{session}".encode()


def _is_news(query: Query, mark: Mark, last: Mark | None) -> bool:
    """Whether an answer is to be published, given the last one that was."""
    if last is None or last.version != query.version:
        return True
    if query.every is None and mark.offset <= last.offset:
        return False
    return query.emit == "always" or mark.digest != last.digest


def _stamp(partition: Partition, target: int, dead: Collection[int]) -> Stamp:
    """What goes with an offset: deaths are forgotten with progress, poison once no context reaches back to it."""
    stamp = partition.stamp
    if stamp.poisoned:
        oldest = min((s.committed_generation(target).start_offset for s in partition.sessions.values()), default=target)
        told = {at: 0 if at in dead else deaths for at, deaths in stamp.poisoned.items()}
        stamp = replace(stamp, poisoned=told).after(min(oldest, target))
    return stamp if target == partition.live_from else stamp.moved(target)


def settle(settlement: Settlement) -> list[Generation]:
    """The epoch is committed -> generations that nobody can go back to any more."""
    partition, target = settlement.partition, settlement.positions[0]
    partition.finished = [fork for fork in partition.finished if fork.question.as_of.offset >= target]
    partition.dead = [bad for bad in partition.dead if bad.offset >= target]
    del partition.replies[: settlement.num_replies]
    for key, head in settlement.heads.items():
        partition.sessions[key].head = head
    partition.stamp = replace(partition.stamp, poisoned=settlement.stamp.poisoned)
    partition.stale = ()
    partition.is_signed = True
    partition.committed = settlement.positions
    return [generation for key in list(partition.touched) for generation in _settle_session(partition, key, target)]


def _settle_session(partition: Partition, key: str, target: int) -> list[Generation]:
    """Generations of a session that nobody can go back to; once all of it is settled it is left alone."""
    session = partition.sessions.get(key)
    gone = session.settle(target) if session else []
    if session is None or (not session.retired and (session.last_offset or 0) < target):
        del partition.touched[key]
    return gone
