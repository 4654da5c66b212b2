"""Careful work after deaths: which record kills the process, found out across restarts and set aside.

An owner of a partition writes into the metadata of the committed offset which records it is at (stamp.py): those that
it restores, nothing once it has done so, those from the committed offset on. So its next owner sees at what it died.
After a death the records from the committed offset on are taken in part by part, at most `PART` at once, each named in
the metadata before it is touched, and committed before the next one is; other partitions go on meanwhile. The records
of a part that somebody died at are taken one by one, each alone in the process. A record that is named alone in two
deaths, the newest of `poison_after` at the least, goes to the dead topic, and is left out of its session from then on.
So after two deaths there are at most `PART` records to look at, and one is found after two more.

What is read again to restore sessions is treated alike once an owner has died at it.

That is three commits of offsets for a partition that is assigned, and nothing for a record; and after a death one for
each part of what its predecessor can have begun.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from streamproc.errors import StreamprocError
from streamproc.state.epoch import Message
from streamproc.state.lifecycle import Phase
from streamproc.state.partition import Partition, Recovery
from streamproc.state.stamp import EVER, MAX_POISONED, Stamp, Work, smallest
from streamproc.state.waiting import Waiting
from streamproc.state.workload import Workload

Write = Callable[[Mapping[int, tuple[int, Stamp]]], None]  # offset and stamp to commit, by partition

LEAST_NAMED = 2  # deaths: one may be chance
PART = 64  # records: as many are taken one by one within a second
MOST_SUSPECT = 5_000  # offsets after the committed one: more than a worker takes in before its first commit
MOST_AT_ONCE = 250  # records that need no care, of all partitions together

log = logging.getLogger("streamproc")


@dataclass(slots=True)
class Case:
    """A partition whose owner may have died. Its records of [careful_from, careful_to) are taken with care."""

    stamp: Stamp  # as this owner has written it last, or will
    restore_from: int  # the first record that is read again
    careful_from: int = EVER
    careful_to: int = EVER

    @property
    def is_careful(self) -> bool:
        return self.careful_from < EVER

    def next_work(self, offset: int, live_from: int) -> Work:
        """What may be taken at once from this record on."""
        start, end = (self.restore_from, live_from) if offset < live_from else (live_from, self.careful_to)
        suspects = smallest(self.stamp.suspects, offset, offset + 1)
        is_alone = suspects is not None and min(suspects.end, end) - max(suspects.start, start) <= PART
        ends = [end, offset + (1 if is_alone else PART)]
        ends += [each.end for each in self.stamp.suspects if each.end > offset]
        ends += [each.start for each in self.stamp.suspects if each.start > offset]
        return Work(offset, min(ends), is_alone)


class Care:
    """Stands between the source and the intake; lets messages through as they come, as long as there is room, unless
    owners have died.
    """

    def __init__(
        self, records_topic: str, poison_after: int, workload: Workload, go_live: Callable[[Partition], None]
    ) -> None:
        """go_live: all that a partition restores has been taken in."""
        self._records_topic = records_topic
        self._poison_after = max(poison_after, LEAST_NAMED)
        self._careful_after = max(poison_after - LEAST_NAMED - 1, 0)  # deaths: one for a part, the others by name
        self._workload, self._go_live = workload, go_live
        self._cases: dict[int, Case] = {}
        self._waiting = Waiting(records_topic)
        self._trying: tuple[int, Work] | None = None  # partition, and what of it is under way with care

    @property
    def is_trying(self) -> bool:
        """Records are under way with care: nothing is committed before they are computed."""
        return self._trying is not None

    @property
    def is_holding(self) -> bool:
        """Messages wait here."""
        return bool(self._waiting)

    def holds(self, number: int) -> bool:
        """Records of this partition wait here."""
        return self._waiting.holds(number)

    def find_full(self, num_owned: int) -> frozenset[int]:
        """Partitions, of so many that are owned, of which so many records wait here that no more are to be fetched."""
        return self._waiting.find_full(num_owned)

    def assigned(self, partition: Partition, recovery: Recovery) -> None:
        """This partition is ours now. Raises StreamprocError where so many records are poison that none can be."""
        where = f"{self._records_topic} partition {partition.number}"
        stamp = self._convict(replace(recovery.stamp.succeeded(), topic_id=recovery.topic_id), where)
        case = self._cases[partition.number] = Case(stamp, recovery.rebuild_from)
        restored = [each for each in stamp.suspects if each.start < recovery.live_from]
        if recovery.stamp.left:  # what of a part has been restored by then was tried: that was left in order
            restored = [each for each in restored if not recovery.live_from < each.end < EVER]
        in_restore = max((each.deaths for each in restored), default=0)
        if in_restore and in_restore >= self._careful_after:
            case.careful_from, case.careful_to = 0, recovery.live_from
            partition.is_suspect = True
        in_live = max((each.deaths for each in stamp.suspects if each.end > recovery.live_from), default=0)
        has_died = in_live > 0 or not recovery.stamp.left
        if has_died and recovery.end > recovery.live_from and in_live >= self._careful_after:
            case.careful_from = min(case.careful_from, recovery.live_from)
            case.careful_to = min(recovery.end, recovery.live_from + MOST_SUSPECT)
        if case.is_careful and stamp.num_deaths:
            log.warning("%s: the worker has died %d times at offset %d: its records are taken a few at a time", where,
                        stamp.num_deaths, recovery.live_from)  # fmt: skip
        partition.stamp = stamp

    def _convict(self, stamp: Stamp, where: str) -> Stamp:
        """Set aside the records that have been named in deaths often enough."""
        for each in stamp.suspects:
            if each.named >= LEAST_NAMED and each.deaths >= self._poison_after and each.start not in stamp.poisoned:
                log.warning("%s: the worker has died %d times at record %d: it goes to the dead topic", where,
                            each.deaths, each.start)  # fmt: skip
                others = tuple(other for other in stamp.suspects if not other.hold(each.start, each.end))
                stamp = replace(stamp, suspects=others, poisoned={**stamp.poisoned, each.start: each.deaths})
        if len(stamp.poisoned) > MAX_POISONED:
            raise StreamprocError(
                f"{where}: {len(stamp.poisoned)} records have killed the worker, the newest at offset "
                f"{max(stamp.poisoned)}: something else is the cause; worker.poison_after says after how many deaths"
            )
        return stamp

    def forget(self, numbers: Iterable[int]) -> None:
        """What has been fetched of these partitions is fetched again."""
        gone = set(numbers)
        self._waiting.forget(gone)
        if self._trying and self._trying[0] in gone:
            self._trying = None

    def let_go(self, number: int) -> None:
        """This partition is somebody else's."""
        self.forget([number])
        self._cases.pop(number, None)

    def is_due(self, partitions: Mapping[int, Partition]) -> bool:
        """What is under way with care is computed."""
        if self._trying is None:
            return False
        number, work = self._trying
        return self._workload.is_idle if work.is_alone else self._is_computed(partitions[number])

    def admit(
        self, messages: list[Message], partitions: Mapping[int, Partition], write: Write, has_room: bool = True
    ) -> list[Message]:
        """What may be processed now. has_room: there is not too much to compute already."""
        if has_room and not self._cases and not self._waiting and len(messages) <= MOST_AT_ONCE:
            return messages
        self._waiting.add(message for message in messages if message.partition in partitions)
        if self.is_due(partitions):
            self._conclude(partitions)
        if self._trying and self._trying[1].is_alone:
            return []
        self._close(partitions)
        chosen = self._choose(partitions) if self._trying is None else None
        works = self._easy_works(partitions)
        if chosen and chosen[1].is_alone:
            works = {n: work for n, work in works.items() if work is None or self._is_named(n)}  # the others wait
            if not self._workload.is_idle:
                self._tell(works, partitions, write)
                return []
        if chosen:
            self._trying, works[chosen[0]] = chosen, chosen[1]
        self._tell(works, partitions, write)
        return self._release(chosen, partitions, has_room)

    def _is_computed(self, partition: Partition) -> bool:
        """All that has been taken in of it, and what its records ask."""
        return not (
            any(self._workload.is_behind(session.current) for session in partition.sessions.values())
            or any(fork.question.is_triggered for fork in partition.forks.values())
        )

    def _is_back(self, partition: Partition) -> bool:
        """All that it restores is computed."""
        return partition.is_live and self._is_computed(partition)

    def _conclude(self, partitions: Mapping[int, Partition]) -> None:
        """What is under way with care is computed; once it is committed too, it did no harm."""
        assert self._trying is not None
        number, work = self._trying
        case, partition = self._cases[number], partitions[number]
        is_live = work.start >= partition.live_from
        if is_live and partition.committed[0] < work.end:
            return
        suspects = tuple(each for each in case.stamp.suspects if each.end > work.end)
        case.stamp = replace(case.stamp, suspects=suspects, work=None if is_live else work)
        partition.stamp = replace(case.stamp, poisoned=partition.stamp.poisoned)
        self._trying = None

    def _close(self, partitions: Mapping[int, Partition]) -> None:
        """Partitions with nothing left to take care of go on as if nobody had died."""
        for number, case in list(self._cases.items()):
            partition, waiting = partitions[number], self._waiting.first(number)
            begins = partition.next_offset if waiting is None else waiting
            if not case.is_careful or begins < case.careful_to or self._is_trying(number):
                continue
            case.careful_from = case.careful_to = EVER
            partition.is_suspect = False
            if partition.committed[0] > partition.live_from:
                partition.stamp = Stamp(topic_id=case.stamp.topic_id, poisoned=partition.stamp.poisoned)
                del self._cases[number]

    def _is_named(self, number: int) -> bool:
        """Whether a death now would be put down to a single record of this partition."""
        work = self._cases[number].stamp.work
        return work is not None and work.is_alone

    def _is_trying(self, number: int) -> bool:
        return self._trying is not None and self._trying[0] == number

    def _choose(self, partitions: Mapping[int, Partition]) -> tuple[int, Work] | None:
        """The next records to take with care, of one partition."""
        if not any(case.is_careful for case in self._cases.values()):
            return None
        for number in self._waiting.numbers:
            case, first = self._cases.get(number), self._waiting.first(number)
            if case is None or first is None or first < case.careful_from:
                continue
            partition = partitions[number]
            if first >= partition.live_from:
                if partition.phase is Phase.RESTORING:
                    self._go_live(partition)
                if not self._is_back(partition):
                    continue
            work = case.next_work(first, partition.live_from)
            last = self._waiting.last_before(number, work.end)
            assert last is not None, "the first one is"
            return number, work._replace(end=last + 1)
        return None

    def _easy_works(self, partitions: Mapping[int, Partition]) -> dict[int, Work | None]:
        """What owners are at that take their records as they come."""
        return {
            number: self._easy_work(case, partitions[number])
            for number, case in self._cases.items()
            if not self._is_trying(number)
        }

    def _easy_work(self, case: Case, partition: Partition) -> Work | None:
        known, live_from, is_back = case.stamp.work, partition.live_from, self._is_back(partition)
        first = self._waiting.first(partition.number)
        last = self._waiting.last_before(partition.number, case.careful_from)  # of those that need no care
        if last is None and known is not None and known.is_alone:
            known = Work(case.restore_from, live_from)  # it is computed: who dies now dies at something else
        if last is None or first is None:
            return None if is_back or case.careful_from == 0 else known
        restores = first < live_from or (known is not None and not is_back)
        return Work(0 if restores else live_from, live_from if last < live_from else EVER)

    def _tell(self, works: Mapping[int, Work | None], partitions: Mapping[int, Partition], write: Write) -> None:
        """Commit what these partitions' owner is at, where that is not known yet."""
        news = {number: work for number, work in works.items() if work != self._cases[number].stamp.work}
        if not news:
            return
        for number, work in news.items():
            case, partition = self._cases[number], partitions[number]
            suspects = case.stamp.suspects
            if partition.is_live and (work is None or work.start >= partition.live_from):
                suspects = tuple(each for each in suspects if each.end > partition.live_from)
            case.stamp = replace(case.stamp, work=work, suspects=suspects, poisoned=partition.stamp.poisoned)
            partition.stamp, partition.is_begun = case.stamp, True
        write({number: (partitions[number].committed[0], self._cases[number].stamp) for number in news})
        for number, work in news.items():
            if work and work.end == EVER:
                del self._cases[number]

    def _release(
        self, chosen: tuple[int, Work] | None, partitions: Mapping[int, Partition], has_room: bool
    ) -> list[Message]:
        """Take out what may be processed now. What is only read again needs no room: nothing of it is computed yet."""
        released = self._waiting.take(chosen[0], chosen[1].end, EVER) if chosen else []
        if chosen and chosen[1].is_alone:
            return released
        released += self._waiting.take_others()
        ends = {}
        for number, partition in partitions.items():
            first = self._waiting.first(number)
            if first is None or (chosen and number == chosen[0]):
                continue
            case = self._cases.get(number)
            end = case.careful_from if case else EVER
            if not has_room:
                if partition.phase is not Phase.RESTORING:
                    continue
                if partition.live_from <= first < end:
                    self._go_live(partition)  # nothing is left to be read again, even if its last record was before
                end = min(end, partition.live_from)
            if first < end:
                ends[number] = end
        return released + self._waiting.take_fairly(ends, MOST_AT_ONCE)
