"""One partition of the records topic that this worker owns: its sessions, and how far everything has got."""

from collections.abc import Callable
from dataclasses import dataclass, field

from streamproc.messages import Ask, Head
from streamproc.state.asklog import AskLog
from streamproc.state.epoch import Bad, Outgoing
from streamproc.state.fork import Fork
from streamproc.state.lifecycle import NEXT, Phase
from streamproc.state.origin import UNKNOWN, Origin
from streamproc.state.session import Session, Shape
from streamproc.state.stamp import FRESH, Stamp


@dataclass(frozen=True, slots=True)
class Recovery:
    """What the log says about a partition when it is assigned."""

    rebuild_from: int  # first record that a current generation needs
    live_from: int  # the committed offset: questions before it are answered
    heads: dict[str, Head]  # by session
    asks_from: int
    asks_metadata: str = ""
    control_from: int = 0  # of the control topic; counts for partition 0 only
    stamp: Stamp = FRESH  # what the committed offset says
    topic_id: str = ""  # of the records topic, now
    end: int = 0  # of the log, now
    stale: tuple[str, ...] = ()  # sessions whose heads, as they are in the topic, mean nothing any more
    cut: frozenset[str] = frozenset()  # sessions whose context began in records that are deleted
    origin: Origin = UNKNOWN  # this owner's
    is_signed: bool = True  # the committed offset says the same

    @property
    def committed(self) -> tuple[int, int, str]:
        return self.live_from, self.asks_from, self.asks_metadata


@dataclass(frozen=True, slots=True)
class WaitingAsk:
    """An ask that cannot start yet: its partition is restoring, or its offset has not arrived."""

    offset: int  # in the asks topic
    ask: Ask
    received_at: float  # clock, seconds


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes out for one ask, in the next epoch."""

    ask_offset: int
    message: Outgoing


@dataclass(slots=True)
class Partition:
    """State of one partition. `finished` and `dead` wait for the epoch that commits past them."""

    number: int
    shape: Shape
    live_from: int
    next_offset: int
    heads: dict[str, Head]
    asks: AskLog
    phase: Phase = Phase.RESTORING
    sessions: dict[str, Session] = field(default_factory=dict)
    dirty: dict[str, None] = field(default_factory=dict)  # sessions that advanced since idle queries saw them
    touched: dict[str, None] = field(default_factory=dict)  # sessions that may have something to be committed
    forks: dict[int, Fork] = field(default_factory=dict)  # flash forks that have no answer yet
    finished: list[Fork] = field(default_factory=list)
    dead: list[Bad] = field(default_factory=list)
    waiting_asks: list[WaitingAsk] = field(default_factory=list)
    ask_offsets: dict[int, int] = field(default_factory=dict)  # offset of the ask that a fork answers, by seq id
    replies: list[Reply] = field(default_factory=list)
    committed: tuple[int, int, str] = (0, 0, "")  # records offset, asks offset and its metadata
    stamp: Stamp = FRESH  # what this owner has to say beside the offset, as long as it is `live_from`
    stale: tuple[str, ...] = ()  # sessions whose heads are to be written anew, or removed
    cut: frozenset[str] = frozenset()  # sessions whose context began in deleted records, until that is judged
    rebuild_from: int = 0  # the first record that was read again
    origin: Origin = UNKNOWN  # goes with every offset that is committed
    is_signed: bool = True  # the committed offset says so
    is_begun: bool = False  # its stamp says that this owner is at work
    is_suspect: bool = False  # one of its records may be killing the worker: each is computed at once

    @classmethod
    def recover(cls, number: int, shape: Shape, recovery: Recovery) -> "Partition":
        return cls(
            number,
            shape,
            recovery.live_from,
            recovery.rebuild_from,
            dict(recovery.heads),
            AskLog(recovery.asks_from, recovery.asks_metadata),
            committed=recovery.committed,
            stamp=Stamp(topic_id=recovery.topic_id, poisoned=recovery.stamp.poisoned),
            stale=recovery.stale,
            cut=recovery.cut,
            rebuild_from=recovery.rebuild_from,
            origin=recovery.origin,
            is_signed=recovery.is_signed,
        )

    def sign(self, origin: Origin) -> None:
        """The records topic, or what processes it, is another one now: the next epoch says so."""
        if origin != self.origin:
            self.origin, self.is_signed = origin, False

    def enter(self, phase: Phase) -> None:
        assert phase in NEXT[self.phase], f"{self.phase} -> {phase}"
        self.phase = phase

    @property
    def is_live(self) -> bool:
        """Whether its answers are published."""
        return self.phase in (Phase.LIVE, Phase.LEAVING)

    @property
    def is_asked(self) -> bool:
        """Whether a question is open that its records or an asker have asked."""
        return bool(self.ask_offsets) or any(fork.question.is_triggered for fork in self.forks.values())

    def has_seen(self, offset: int | None) -> bool:
        """Whether a question asked now has seen this offset of the records."""
        return self.is_live and (offset is None or self.next_offset > offset)

    def session(self, key: str, offset: int, new_seq_id: Callable[[], int]) -> Session | None:
        """The session of a record, made if need be; None where its current generation starts later."""
        if found := self.sessions.get(key):
            return found
        head = self.heads.pop(key, None)
        if head and offset < head.start_offset:
            self.heads[key] = head
            return None
        session = self.sessions[key] = Session(
            key, self.shape, offset, head.records_before if head else 0, new_seq_id()
        )
        if head:
            session.go_on_from(head)
        return session

    def has_records_of(self, key: str) -> bool:
        """Whether there is anything to ask: a first record may have been refused, or rolled back."""
        return key in self.sessions and bool(self.sessions[key].current.entries)

    def frontier(self) -> int:
        """The offset up to which every question that the records trigger is answered: as far as a commit may go."""
        open_offsets = (f.question.as_of.offset for f in self.forks.values() if f.question.is_triggered)
        return min(open_offsets, default=self.next_offset)

    def rewind(self, recovery: Recovery) -> None:
        """Go on from the committed offsets; nothing beyond them has happened."""
        offset = recovery.live_from
        self.next_offset = offset
        self.finished = [fork for fork in self.finished if fork.question.as_of.offset < offset]
        self.dead = [bad for bad in self.dead if bad.offset < offset]  # poison among what was restored: not read again
        self.replies, self.waiting_asks = [], []
        self.asks = AskLog(recovery.asks_from, recovery.asks_metadata)
        self.dirty = dict.fromkeys(self.sessions)
        self.touched = dict.fromkeys(self.sessions)
        self.committed = recovery.committed
