"""Asks from their arrival to their fork: wait for the offset they insist on, refuse what cannot be answered."""

from collections.abc import Callable

from streamproc.errors import BadAsk
from streamproc.messages import Ask, decode_ask
from streamproc.state.epoch import Bad, Message
from streamproc.state.fork import Fork
from streamproc.state.intake import Intake
from streamproc.state.partition import Partition, Reply, WaitingAsk
from streamproc.state.publish import Publisher
from streamproc.state.recent import fresh

PATIENCE_S = 60.0  # for asks that carry no deadline


class AskDesk:
    """Writes the ask logs' arrivals, and replies that need no model."""

    def __init__(self, intake: Intake, publisher: Publisher, unix_ms: Callable[[], int]) -> None:
        self._intake = intake
        self._publisher = publisher
        self._unix_ms = unix_ms

    def take(self, partition: Partition, message: Message, now: float) -> None:
        """A message of the asks topic has arrived."""
        if not partition.asks.see(message.offset):
            return
        try:
            ask = decode_ask(message.value)
            if self._answer_at_once(partition, message.offset, ask):
                return
            if partition.asks.is_full:
                reason = f"too many asks are waiting in partition {partition.number}: try again later"
                partition.replies.append(Reply(message.offset, self._publisher.refusal(ask, reason)))
            else:
                partition.waiting_asks.append(WaitingAsk(message.offset, ask, now))
                self._intake.prepare(partition, ask.session)
        except BadAsk as problem:
            letter = Bad(message, problem.code, str(problem)).letter(self._publisher.topics.dead)
            partition.replies.append(Reply(message.offset, letter))

    def offer(self, partition: Partition, now: float) -> None:
        """Start the asks that can start, refuse those that never will; the others go on waiting."""
        waiting, partition.waiting_asks = partition.waiting_asks, []
        for item in waiting:
            reason = self._why_refuse(partition, item, now)
            if reason is None and not partition.has_seen(item.ask.min_offset):
                partition.waiting_asks.append(item)
                continue
            fork = None if reason else self._fork(partition, item, now)
            reason = reason or (fork.error if fork else None)
            if reason:
                partition.replies.append(Reply(item.offset, self._publisher.refusal(item.ask, reason)))
            elif fork:
                partition.ask_offsets[fork.seq_id] = item.offset
                self._intake.workload.wait(fork)

    def _answer_at_once(self, partition: Partition, offset: int, ask: Ask) -> bool:
        """Reply with what is known already, if it has seen what this ask wants to be seen -> whether that was so."""
        session = partition.sessions.get(ask.session)
        is_late = ask.deadline_ms is not None and self._unix_ms() > ask.deadline_ms
        if session is None or is_late or not partition.has_seen(ask.min_offset):
            return False
        known = fresh(session, ask)
        if known is None:
            return False
        partition.replies.append(Reply(offset, self._publisher.known_message(known, ask)))
        return True

    def _fork(self, partition: Partition, item: WaitingAsk, now: float) -> Fork:
        return self._intake.fork_of(partition, partition.sessions[item.ask.session], item.ask, now)

    def _why_refuse(self, partition: Partition, item: WaitingAsk, now: float) -> str | None:
        ask = item.ask
        where = f"{self._intake.rules.records_topic} partition {partition.number}"
        seen = f"seen up to offset {partition.next_offset - 1}" if partition.next_offset else "empty so far"
        is_late = ask.deadline_ms is not None and self._unix_ms() > ask.deadline_ms
        if is_late or now > item.received_at + PATIENCE_S:
            waits = "" if ask.min_offset is None else f", the ask waits for offset {ask.min_offset}"
            return f"too late: {where} is {seen}{waits}"
        if partition.has_seen(ask.min_offset) and not partition.has_records_of(ask.session):
            return f"unknown session {ask.session!r}: no record of it in {where}, {seen}"
        return None
