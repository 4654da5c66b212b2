"""One partition's log, and every place in it where a question can be asked, with the context that it would see.

Where a session hops is foretold with the product's own `Session`; what an answer has really seen, it says itself.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice

from streamproc.errors import BadRecord, Usage
from streamproc.market.tape import Tapes
from streamproc.records import Record
from streamproc.state.intake import Renderer
from streamproc.state.session import Session, Shape

BATCH = 64


@dataclass(frozen=True, slots=True)
class Place:
    """A record's offset in its partition: there its session can be asked."""

    partition: int
    offset: int
    session: str
    from_offset: int    # first record of the session's generation
    num_tokens: int     # of the generation, its prefix and this record included
    has_hopped: bool


@dataclass(frozen=True, slots=True)
class Stretch:
    """The log of one partition; offsets are indexes."""

    partition: int
    by_partition: bool
    records: tuple[Record, ...]
    places: tuple[Place, ...]

    def context(self, session: str, from_offset: int, offset: int) -> list[Record]:
        """Records of a session between two offsets, both included."""
        found = self.records[from_offset : offset + 1]
        return [record for record in found if session_of(record, self.partition, self.by_partition) == session]

    def tapes(self, session: str, from_offset: int, offset: int) -> Tapes:
        """What these records say: all that the oracle knows."""
        return Tapes().update_all(self.context(session, from_offset, offset))


def session_of(record: Record, partition: int, by_partition: bool) -> str:
    return f"partition-{partition}" if by_partition else record.sym


@dataclass(frozen=True, slots=True)
class Surveyor:
    """Reads stretches until their sessions have hopped and filled up again, on average."""

    renderer: Renderer
    shape: Shape
    by_partition: bool
    tokens_per_session: int

    def survey(self, partition: int, records: Iterable[Record]) -> Stretch:
        """A stretch with its places. Raises Usage where a record does not fit the context."""
        sessions: dict[str, Session] = {}
        taken: list[Record] = []
        places: list[Place] = []
        seq_ids, num_tokens = count(), 0
        for record, ids in self._rendered(records):
            offset, key = len(taken), session_of(record, partition, self.by_partition)
            if key not in sessions:
                sessions[key] = Session(key, self.shape, offset, 0, next(seq_ids))
            session = sessions[key]
            try:
                session.append(offset, record, ids, lambda: next(seq_ids))
            except BadRecord as problem:
                raise Usage(f"a record of {record.sym} has {problem}") from None
            taken.append(record)
            now = session.current
            places.append(Place(partition, offset, key, now.start_offset, now.num_tokens, now.records_before > 0))
            num_tokens += now.num_tokens - (now.entries[-2].end if len(now.entries) > 1 else now.num_prefix)
            if num_tokens >= self.tokens_per_session * len(sessions):
                break
        return Stretch(partition, self.by_partition, tuple(taken), tuple(places))

    def _rendered(self, records: Iterable[Record]) -> Iterator[tuple[Record, tuple[int, ...]]]:
        """Every record with its ids, made a batch at a time; a session makes its own where templates look back."""
        source = iter(records)
        while batch := list(islice(source, BATCH)):
            yield from zip(batch, self.renderer.record_ids(batch), strict=True)
