"""Careful work after deaths: which record kills the process, found out across restarts and set aside.

An owner of a partition writes into the metadata of the committed offset what it is at (stamp.py): that it begins to
restore sessions, that it has done so, that it processes the first new record. So its next owner sees how many have
died there without having committed anything. From the last death but two before a record is given up on, records are
taken in one by one, each alone in the process, named in the metadata before it is touched, and done with before the
next one. A record that is named in two deaths, the newest of `poison_after` at the least, goes to the dead topic, and
is left out of its session from then on.

That is three commits of offsets for a partition that is assigned, and nothing for a record, unless somebody has died
repeatedly without having committed anything.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from streamproc.errors import StreamprocError
from streamproc.state.epoch import Message
from streamproc.state.partition import Partition, Recovery
from streamproc.state.stamp import LIVE, MAX_POISONED, RESTORING, Stamp

Write = Callable[[Mapping[int, tuple[int, Stamp]]], None]  # offset and stamp to commit, by partition

LEAST_NAMED = 2  # deaths: one may be chance
MOST_SUSPECT = 5_000  # offsets after the committed one: more than a worker takes in before its first commit
MOST_HELD = 4_000  # messages: then no more are fetched
QUIET_TURNS = 200  # of the loop, without a message: the rest of the log is markers of transactions

log = logging.getLogger("streamproc")


@dataclass(slots=True)
class Case:
    """A partition whose owner may have died; `suspect_to`: its records below this are taken one by one."""

    stamp: Stamp  # as this owner has written it last, or will
    suspect_to: int = 0


class Care:
    """Stands between the source and the intake; lets messages through as they come unless owners have died."""

    def __init__(self, records_topic: str, poison_after: int) -> None:
        self._records_topic = records_topic
        self._poison_after = poison_after
        self._cases: dict[int, Case] = {}
        self._held: deque[Message] = deque()
        self._trying: Message | None = None
        self._quiet_turns = 0

    @property
    def is_trying(self) -> bool:
        """One record is under way: no other is touched before it is committed."""
        return self._trying is not None

    @property
    def is_holding(self) -> bool:
        """Messages wait here."""
        return bool(self._held)

    @property
    def is_full(self) -> bool:
        return len(self._held) >= MOST_HELD

    def assigned(self, partition: Partition, recovery: Recovery) -> None:
        """This partition is ours now. Raises StreamprocError where so many records are poison that none can be."""
        stamp = replace(recovery.stamp.succeeded(), topic_id=recovery.topic_id)
        where = f"{self._records_topic} partition {partition.number}"
        if stamp.named >= LEAST_NAMED and stamp.num_deaths >= self._poison_after:
            log.warning("%s: the worker has died %d times at record %d: it goes to the dead topic", where,
                        stamp.num_deaths, stamp.trying)  # fmt: skip
            poisoned = {**stamp.poisoned, stamp.trying: stamp.num_deaths}
            stamp = Stamp(topic_id=stamp.topic_id, poisoned=poisoned)
        if len(stamp.poisoned) > MAX_POISONED:
            raise StreamprocError(
                f"{where}: {len(stamp.poisoned)} records have killed the worker, the newest at offset "
                f"{max(stamp.poisoned)}: something else is the cause; worker.poison_after says after how many deaths"
            )
        case = self._cases[partition.number] = Case(stamp)
        if stamp.num_deaths >= max(1, self._poison_after - LEAST_NAMED):
            log.warning("%s: the worker has died %d times at offset %d: its records are taken one by one", where,
                        stamp.num_deaths, recovery.live_from)  # fmt: skip
            case.suspect_to = min(recovery.end, recovery.live_from + MOST_SUSPECT)
            partition.is_suspect = True
        partition.stamp = replace(stamp, trying=-1, named=0)

    def forget(self, numbers: Iterable[int]) -> None:
        """What has been fetched of these partitions is fetched again."""
        gone = set(numbers)
        self._held = deque(message for message in self._held if message.partition not in gone)
        if self._trying and self._trying.partition in gone:
            self._trying = None

    def let_go(self, number: int) -> None:
        """This partition is somebody else's."""
        self.forget([number])
        self._cases.pop(number, None)

    def admit(
        self, messages: list[Message], partitions: Mapping[int, Partition], is_idle: bool, write: Write
    ) -> list[Message]:
        """What may be processed now. is_idle: nothing is under way."""
        if not self._cases and not self._held:
            return messages
        self._write(self._stages(messages, partitions, is_idle), partitions, write)
        if not self._held and not any(case.suspect_to for case in self._cases.values()):
            return messages
        self._quiet_turns = 0 if messages else self._quiet_turns + 1
        self._held.extend(message for message in messages if message.partition in partitions)
        return self._next(partitions, write) if is_idle else []

    def _stages(
        self, messages: Iterable[Message], partitions: Mapping[int, Partition], is_idle: bool
    ) -> dict[int, str]:
        """What the owner is at now, for the partitions where that is not written yet."""
        found: dict[int, str] = {}
        for message in messages:
            case = self._cases.get(message.partition)
            if case and not case.suspect_to and message.topic == self._records_topic and case.stamp.stage != LIVE:
                is_new = message.offset >= partitions[message.partition].live_from
                stage = LIVE if is_new else RESTORING
                if stage != case.stamp.stage:
                    found[message.partition] = stage
        if is_idle:
            for number, case in self._cases.items():
                is_restored = case.stamp.stage == RESTORING and partitions[number].is_live
                if is_restored and not case.suspect_to and number not in found:
                    found[number] = ""
        return found

    def _write(self, stages: Mapping[int, str], partitions: Mapping[int, Partition], write: Write) -> None:
        if not stages:
            return
        stamps = {}
        for number, stage in stages.items():
            case, partition = self._cases[number], partitions[number]
            restores = case.stamp.restores if stage == RESTORING else 0
            case.stamp = replace(case.stamp, stage=stage, restores=restores, trying=-1, named=0)
            stamps[number] = (partition.committed[0], case.stamp)
            partition.stamp, partition.is_begun = case.stamp, True
        write(stamps)
        for number, stage in stages.items():
            if stage == LIVE and not self._cases[number].suspect_to:
                del self._cases[number]

    def _next(self, partitions: Mapping[int, Partition], write: Write) -> list[Message]:
        """The next record that could be the cause, alone; everything once there is none. Nothing is under way."""
        if self._trying is not None:
            partition = partitions[self._trying.partition]
            if partition.is_live and partition.committed[0] <= self._trying.offset:
                return []
            self._trying = None
        for index, message in enumerate(self._held):
            if self._is_suspect(message):
                del self._held[index]
                self._try(message, partitions[message.partition], write)
                return [message]
        if not self._is_over(partitions):
            return []
        released, self._held = list(self._held), deque()
        self._acquit([number for number, case in self._cases.items() if case.suspect_to], partitions, write)
        return released

    def _acquit(self, numbers: Sequence[int], partitions: Mapping[int, Partition], write: Write) -> None:
        """None of their records was it: they are taken in as they come again."""
        for number in numbers:
            partition = partitions[number]
            partition.is_suspect = False
            self._cases[number] = Case(Stamp(topic_id=partition.stamp.topic_id, poisoned=partition.stamp.poisoned))
        self._write(dict.fromkeys(numbers, LIVE), partitions, write)

    def _is_suspect(self, message: Message) -> bool:
        case = self._cases.get(message.partition)
        return case is not None and message.topic == self._records_topic and message.offset < case.suspect_to

    def _is_over(self, partitions: Mapping[int, Partition]) -> bool:
        is_past = all(partitions[number].next_offset >= case.suspect_to for number, case in self._cases.items())
        return is_past or self._quiet_turns > QUIET_TURNS

    def _try(self, message: Message, partition: Partition, write: Write) -> None:
        stage = LIVE if message.offset >= partition.live_from else RESTORING
        known = self._cases[message.partition].stamp
        named = known.named if known.trying == message.offset else 0
        stamp = replace(known, stage=stage, trying=message.offset, named=named, poisoned=partition.stamp.poisoned)
        write({message.partition: (partition.committed[0], stamp)})
        partition.is_begun = True
        self._trying = message
