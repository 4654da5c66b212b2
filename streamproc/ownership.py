"""Partitions that come to this worker and leave it (state/lifecycle.py says what follows what).

assigned   recover it at its committed offset, take back what is stored of it, read its records again in silence
revoked    answer what was asked while there is time, commit, leave a snapshot at that offset, let go
lost       let go: it is somebody else's already
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

from streamproc.ports import Clock, Keeper
from streamproc.state import rollback
from streamproc.state.askdesk import AskDesk
from streamproc.state.care import Care
from streamproc.state.intake import Intake
from streamproc.state.lifecycle import ACTS, Act, Event, Phase
from streamproc.state.partition import Partition, Recovery
from streamproc.state.registrar import OWNER, Registrar
from streamproc.state.returning import Returning, Start
from streamproc.state.session import Shape
from streamproc.state.workload import Workload

LEAST_COMMIT_S = 0.5  # for the last epoch of partitions that go, even when their time is up


class Loop(Protocol):
    """What a change of owner needs of the loop."""

    workload: Workload
    intake: Intake
    desk: AskDesk
    registrar: Registrar
    care: Care
    shape: Shape
    clock: Clock

    @property
    def work_done(self) -> Start:
        """Now, with what has been computed and loaded."""
        ...

    def land(self) -> None:
        """Wait for the steps that are out, if any."""
        ...

    def turn(self) -> None:
        """One step without anything new, to its end."""
        ...

    def commit(self, leaving: Collection[int], timeout_s: float) -> None: ...

    def copy_out(self, saves: Sequence[tuple[int, bytes]]) -> None: ...


class Ownership:
    """The partitions of one worker. Its methods are called between two steps, or while some are out."""

    def __init__(self, loop: Loop, revoke_s: float) -> None:
        """revoke_s: what a revocation may take, all its partitions together."""
        self.partitions: dict[int, Partition] = {}
        self.keeper: Keeper | None = None
        self._loop, self._revoke_s = loop, revoke_s
        self._returning = Returning()

    def assigned(self, recoveries: Mapping[int, Recovery]) -> None:
        """These partitions are ours now."""
        self._loop.land()
        self._let_go([number for number in recoveries if self._act(number, Event.ASSIGNED) is Act.LET_GO])
        if self.keeper:
            self.keeper.assigned({n: (recovery.topic_id, recovery.live_from) for n, recovery in recoveries.items()})
        for number, recovery in recoveries.items():
            partition = self.partitions[number] = Partition.recover(number, self._loop.shape, recovery)
            self._loop.care.assigned(partition, recovery)
            if number == OWNER:
                self._loop.registrar.committed = recovery.control_from
            if recovery.rebuild_from < recovery.live_from:
                self._returning.begin(number, self._loop.work_done)
            else:
                self._loop.intake.go_live(partition)
        for origin in {recovery.origin for recovery in recoveries.values()}:  # one: what all of this worker's have
            for partition in self.partitions.values():  # the topic has grown under those that stay, too
                partition.sign(origin)

    def revoked(self, numbers: Sequence[int]) -> None:
        """Answer what was asked of these partitions while there is time, commit it, let go of them."""
        deadline = self._loop.clock.now() + self._revoke_s
        self._loop.land()
        leaving = [self.partitions[number] for number in numbers if self._act(number, Event.REVOKED) is Act.FINISH]
        self._finish(leaving, deadline)
        left_s = deadline - self._loop.clock.now()
        self._loop.commit(numbers, max(left_s, LEAST_COMMIT_S))
        if self.keeper:
            self.keeper.hand_over(leaving, self._copy_out, max(deadline - self._loop.clock.now(), 0.0))
        self._let_go(numbers)

    def _finish(self, leaving: Sequence[Partition], deadline: float) -> None:
        for partition in leaving:
            self._loop.desk.offer(partition, self._loop.clock.now())
            partition.enter(Phase.LEAVING)
            rollback.drop_forks(self._loop.workload, partition, lambda fork: not fork.question.is_due)
        while any(partition.is_asked for partition in leaving) and self._loop.clock.now() < deadline:
            self._loop.turn()

    def _copy_out(self, saves: Sequence[tuple[int, bytes]]) -> None:
        """Blocks of partitions that go; the work of those that stay goes on."""
        self._loop.copy_out(saves)
        if not self._loop.workload.is_idle:
            self._loop.turn()

    def lost(self, numbers: Sequence[int]) -> None:
        """Somebody else owns these partitions already: nothing of them may be committed."""
        self._loop.land()
        self._let_go(numbers)

    def returned(self) -> Iterator[str]:
        """A line for every partition that has come back since."""
        if self._returning:
            yield from self._returning.back(self.partitions, self._loop.workload, self._loop.work_done)

    def _act(self, number: int, event: Event) -> Act:
        partition = self.partitions.get(number)
        return ACTS[partition.phase if partition else None, event]

    def _let_go(self, numbers: Sequence[int]) -> None:
        if self.keeper:
            self.keeper.let_go(numbers)
        for number in [number for number in numbers if number in self.partitions]:
            self._loop.care.let_go(number)
            self._returning.let_go(number)
            rollback.let_go(self._loop.workload, self.partitions.pop(number))
