"""Takes in what Kafka brings: records into sessions, and the questions that they trigger into the workload.

Nothing here computes tokens' KV or talks to a broker; one batch of messages in, changed state out.
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from streamproc.errors import BadRecord, PoisonRecord
from streamproc.messages import Ask, AsOf, Query
from streamproc.past import Past
from streamproc.records import Record, decode_record
from streamproc.state.cuts import judge_cuts
from streamproc.state.ending import Decoder
from streamproc.state.epoch import Bad, Message
from streamproc.state.fork import Call, Fork, Question
from streamproc.state.lifecycle import Phase
from streamproc.state.partition import Partition
from streamproc.state.queries import QueryBook
from streamproc.state.session import Session
from streamproc.state.workload import Workload

Ids = tuple[int, ...]
POISON = "the worker died at this record again and again, the last time with nothing else under way"


class Renderer(Decoder, Protocol):
    """Text <-> token ids; `streamproc.prompts.Renderer`, or a fake."""

    @property
    def prefix_ids(self) -> Ids: ...

    @property
    def stop(self) -> tuple[str, ...]: ...

    @property
    def looks_back(self) -> bool: ...

    def ids_after(self, past: Past, record: Record) -> Ids: ...

    def record_ids(self, records: Sequence[Record]) -> Sequence[Ids]: ...

    def tail_ids(self, question: str) -> Ids: ...

    def prompt_ids(self, text: str) -> Ids: ...


@dataclass(frozen=True, slots=True)
class Rules:
    """What this worker takes, from the settings."""

    records_topic: str
    by_partition: bool  # one session a partition instead of one a key
    max_record_bytes: int
    max_question_tokens: int
    max_answer_tokens: int
    on_gap: str = "fail"


class Parsed(NamedTuple):
    """One message of the records topic, read."""

    message: Message
    record: Record | None
    reason: str


class Intake:
    """Writes sessions and queues forks."""

    def __init__(
        self,
        workload: Workload,
        renderer: Renderer,
        queries: QueryBook,
        rules: Rules,
        grammar_why_not: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        """grammar_why_not: the reason why the engine cannot hold answers to a grammar, or None."""
        self.workload = workload
        self.renderer = renderer
        self.queries = queries
        self.rules = rules
        self._grammar_why_not = grammar_why_not

    def take_records(self, partitions: dict[int, Partition], messages: Sequence[Message], now: float) -> None:
        """Append a batch of records, those of each partition in their order; bad ones wait for the dead topic."""
        parsed = [self._parse(m, partitions[m.partition].stamp.poisoned) for m in messages if m.partition in partitions]
        all_ids = self._ids([item.record for item in parsed if item.record]) if parsed else iter(())
        for message, record, reason in parsed:
            partition = partitions[message.partition]
            if partition.phase is Phase.RESTORING and message.offset >= partition.live_from:
                self.go_live(partition, self._num_restoring(partitions))
            if record is None:
                self._refuse(partition, message, reason)
            else:
                self._append(partition, message, record, next(all_ids), now)
            partition.next_offset = message.offset + 1
        for partition in partitions.values():
            if partition.phase is Phase.RESTORING and partition.next_offset >= partition.live_from:
                self.go_live(partition, self._num_restoring(partitions))

    @staticmethod
    def _num_restoring(partitions: dict[int, Partition]) -> int:
        return sum(partition.phase is Phase.RESTORING for partition in partitions.values())

    def read_to(self, partitions: dict[int, Partition], number: int, offset: int) -> None:
        """No more records of a partition come below this offset: only markers of transactions are left."""
        partition = partitions[number]
        if partition.phase is Phase.RESTORING and offset >= partition.live_from:
            self.go_live(partition, self._num_restoring(partitions))

    def _ids(self, records: Sequence[Record]) -> Iterator[Ids]:
        """Ids of a batch at once; none yet where templates look back: the session knows what at."""
        return itertools.repeat(()) if self.renderer.looks_back else iter(self.renderer.record_ids(records))

    def _parse(self, message: Message, poisoned: Collection[int]) -> Parsed:
        if message.offset in poisoned:
            return Parsed(message, None, POISON)
        try:
            key = None if message.key is None and self.rules.by_partition else message.key or b""
            return Parsed(message, decode_record(message.value, key, self.rules.max_record_bytes), "")
        except BadRecord as problem:
            return Parsed(message, None, str(problem))

    def go_live(self, partition: Partition, num_sharing: int = 1) -> None:
        """The partition has seen its committed offset again: answer from here on. Its hottest sessions are computed at
        once, as far as there are free cells for them; the others when a record comes for them, or a question.

        num_sharing: partitions that are to have a part of the free cells, this one too. Raises Refused where contexts
        are cut and the settings say to stop there.
        """
        judge_cuts(partition, self.rules.records_topic, self.rules.on_gap)
        partition.enter(Phase.LIVE)
        partition.next_offset = max(partition.next_offset, partition.live_from)  # over the markers of transactions
        num_left, is_enough = self.workload.num_blocks_left // num_sharing, True
        for session in hottest_first(partition):
            num_left -= self.workload.num_blocks_missing(session.current)
            is_enough = is_enough and num_left >= 0
            if is_enough:
                self._compute(session)
            partition.dirty[session.key] = None

    def _refuse(self, partition: Partition, message: Message, reason: str) -> None:
        if deaths := partition.stamp.poisoned.get(message.offset):
            partition.dead.append(Bad(message, PoisonRecord.code, reason, deaths))
        elif partition.is_live and reason is not POISON:
            partition.dead.append(Bad(message, BadRecord.code, reason))

    def _append(self, partition: Partition, message: Message, record: Record, ids: Ids, now: float) -> None:
        key = f"partition-{partition.number}" if self.rules.by_partition else record.sym
        session = partition.sessions.get(key) or partition.session(key, message.offset, self.workload.new_seq_id)
        if session is None:
            return
        try:
            hopped = session.append(message.offset, record, ids, self.workload.new_seq_id)
        except BadRecord as problem:
            self._refuse(partition, message, str(problem))
            return
        partition.touched[key] = None
        if not partition.is_live:
            session.unused += session.settle(partition.live_from)
            self._drop_unused(session)
            if partition.is_suspect:
                self._compute(session)
            return
        if hopped:
            self.workload.retire(session.retired[-1])
            self._drop_unused(session)
        self._compute(session)
        partition.dirty[key] = None
        for query in self.queries.of_session(key):
            if query.every and session.current.num_records % query.every == 0:
                self._fork(partition, session, query, now)

    def _compute(self, session: Session) -> None:
        """There are tokens of it to compute."""
        self.workload.grow(session.current)
        if session.next:
            self.workload.make_ahead(session.next)

    def prepare(self, partition: Partition, key: str) -> None:
        """Somebody is going to ask this session: what is stored of it is on its way by then."""
        if partition.is_live and (session := partition.sessions.get(key)):
            self.workload.grow(session.current)

    def _drop_unused(self, session: Session) -> None:
        for generation in session.unused:
            self.workload.drop(generation)
        session.unused.clear()

    def offer_idle(self, partitions: dict[int, Partition], now: float, most: int) -> None:
        """Ask up to `most` idle queries of sessions that have advanced since they were last asked."""
        for partition in partitions.values():
            while partition.is_live and partition.dirty and most > 0:
                session = partition.sessions[next(iter(partition.dirty))]
                due = [query for query in self._idle_queries(session) if self._is_due(session, query)]
                for query in due[:most]:
                    session.evaluated[query.id] = (query.version, session.last_offset or 0)
                    self._fork(partition, session, query, now)
                if len(due) <= most:
                    del partition.dirty[session.key]
                most -= len(due)

    def _idle_queries(self, session: Session) -> list[Query]:
        return [query for query in self.queries.of_session(session.key) if query.every is None]

    @staticmethod
    def _is_due(session: Session, query: Query) -> bool:
        """Whether nobody has asked this query of the session's newest record yet, here or before a restart."""
        offset = session.last_offset
        mark = session.head.marks.get(query.id) if session.head else None
        published = mark is not None and mark.version == query.version and offset is not None and mark.offset >= offset
        return offset is not None and not published and session.evaluated.get(query.id) != (query.version, offset)

    def _fork(self, partition: Partition, session: Session, query: Query, now: float) -> None:
        fork = self.fork_of(partition, session, query, now)
        partition.forks[fork.seq_id] = fork
        if fork.error is None:
            self.workload.wait(fork)
        else:
            partition.forks.pop(fork.seq_id)
            partition.finished.append(fork)

    def fork_of(self, partition: Partition, session: Session, source: Query | Ask, now: float) -> Fork:
        """A fork at the session's newest record; one whose question is too long carries the reason as its error."""
        generation = session.current
        text = generation.facts.render(source.question, session.key, generation.num_records)
        tail_ids = self.renderer.tail_ids(text)
        last, first = generation.entries[-1], generation.entries[0]
        as_of = AsOf(self.rules.records_topic, partition.number, first.offset, last.offset, last.record.ts_event_ns)
        stop = self._stop(source)
        grammar = source.answer.grammar(stop)
        question = Question(source, session.key, text, tail_ids, source.max_tokens, stop, as_of, grammar)
        fork = Fork(self.workload.new_seq_id(), question, session, generation, generation.num_tokens, now)
        fork.error = self.why_not(source, len(tail_ids))
        return fork

    def _stop(self, source: Query | Ask | Call) -> tuple[str, ...]:
        return self.renderer.stop if source.stop is None else source.stop

    def why_not(self, source: Query | Ask | Call, num_tail: int) -> str | None:
        """The reason why this worker does not answer a question, or None."""
        if num_tail > self.rules.max_question_tokens:
            return (
                f"question: {num_tail} tokens, this worker takes {self.rules.max_question_tokens} "
                "(worker.max_question_tokens)"
            )
        if source.max_tokens > self.rules.max_answer_tokens:
            return (
                f"max_tokens: {source.max_tokens}, this worker gives {self.rules.max_answer_tokens} "
                "(worker.max_answer_tokens)"
            )
        grammar = source.answer.grammar(self._stop(source))
        return None if grammar is None else self._grammar_why_not(grammar)


def hottest_first(partition: Partition) -> list[Session]:
    """Sessions that somebody waits for, then those whose newest record is the newest."""
    asked = {item.ask.session for item in partition.waiting_asks}
    return sorted(partition.sessions.values(), key=lambda s: (s.key in asked, s.last_offset or 0), reverse=True)
