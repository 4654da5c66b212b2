"""A snapshot of one partition in the making, as of the offset that was committed when it was begun.

Its sessions are looked at some in a step, however many there are: which blocks they consist of at that offset, and
which of these are not stored yet. Nothing has to hold still meanwhile: full blocks never change, and what comes after
the offset is the next round's. Only a session that hops, so that nobody can go back to what it was, is looked at again.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from streamproc.snapshots.manifest import Identity, SessionPart
from streamproc.state.generation import Generation
from streamproc.state.partition import Partition
from streamproc.state.session import Session

LOOKED_AT = 64  # sessions in a step
MANY_NAMES = 1024  # of blocks, in a step: to make one takes a microsecond or two


class Look(NamedTuple):
    """What a session consists of."""

    session: Session
    generation: Generation
    part: SessionPart


class Round:
    """`offset`: what the snapshot is of; `missing`: blocks to be stored; `num_lost`: those that are nowhere now."""

    def __init__(self, identity: Identity, partition: Partition) -> None:
        self.identity, self.partition = identity, partition
        self.offset = partition.committed[0]
        self.missing: deque[bytes] = deque()
        self.num_given, self.num_lost = 0, 0
        self._sessions = deque(partition.sessions.values())
        self._looks: dict[str, Look] = {}
        self._may_repeat = True

    @property
    def number(self) -> int:
        return self.partition.number

    def is_done(self) -> bool:
        """Whether all sessions are looked at and all their blocks given."""
        if self._sessions or self.missing:
            return False
        if self._may_repeat:
            self._may_repeat = False
            looks = self._looks.values()
            self._sessions.extend(look.session for look in looks if look.generation not in look.session.generations)
        return not self._sessions

    def look(self, is_stored: Callable[[bytes], bool], block_size: int, most_missing: int) -> None:
        """At some more sessions, unless so many blocks are missing already."""
        num_names = 0
        for _ in range(min(LOOKED_AT, len(self._sessions))):
            if len(self.missing) > most_missing or num_names > MANY_NAMES:
                return
            names = self._look_at(self._sessions.popleft(), block_size)
            num_names += len(names)
            self.missing += [name for name in names if not is_stored(name)]

    def look_at_rest(self, block_size: int) -> None:
        """Give up what is missing: the snapshot is of all sessions, with the blocks that are stored."""
        self.missing.clear()
        while self._sessions:
            self._look_at(self._sessions.popleft(), block_size)

    def _look_at(self, session: Session, block_size: int) -> tuple[bytes, ...]:
        """-> the names of its full blocks at the offset.

        That is of the oldest generation that somebody may still go back to. If even that was begun later, these are
        its first blocks: whoever restores from here on needs no older one.
        """
        generation = session.committed_generation(self.offset)
        num_tokens, names = names_before(generation, self.offset, block_size)
        start, before = generation.start_offset, generation.records_before
        part = SessionPart(session.key, start, before, num_tokens, names)
        self._looks[session.key] = Look(session, generation, part)
        return names

    @property
    def parts(self) -> list[SessionPart]:
        """Of all sessions that there were at the offset."""
        return [look.part for look in self._looks.values() if look.part.num_tokens]


def names_before(generation: Generation, offset: int, block_size: int) -> tuple[int, tuple[bytes, ...]]:
    """Tokens of a generation up to the last record below the offset, and the names of its full blocks up to there."""
    num_entries = generation.num_entries_before(offset)
    num_tokens = generation.entries[num_entries - 1].end if num_entries else 0
    return num_tokens, tuple(generation.name(index, block_size) for index in range(num_tokens // block_size))
