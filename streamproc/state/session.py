"""Sessions and their generations: token sequences that only grow, and hop to a new generation when they are full.

    token_ids   [prefix | record | record | record ...]
                 0                                    num_tokens
    KV cells    [computed ...............]                          <= num_tokens: a step lets computed catch up
                                          num_computed

`Session.append` is the only writer of token ids and offsets. Where a
generation ends depends on token counts alone, never on time, so a replay hops at the same offsets.

The next generation is made ahead: once the tokens reach `Shape.mark` it gets the newest records, and from then on every
record goes into both, so that its cells can be computed while there is time and the hop itself costs nothing. It
follows from the records of its generation alone, so it may be lost and made again at any moment.

Templates may look back (past.py): a record's text then depends on those before it in its generation. A new generation
knows nothing of the time before it, so its records are rendered anew: ids follow from the generation's records alone.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from streamproc.errors import BadRecord
from streamproc.messages import Head
from streamproc.past import Past
from streamproc.records import Record
from streamproc.state.generation import Generation

Ids = tuple[int, ...]


class Teller(Protocol):
    """Renders records whose text depends on those before them."""

    def record_ids(self, records: Sequence[Record]) -> Sequence[Ids]: ...

    def ids_after(self, past: Past, record: Record) -> Ids: ...


@dataclass(frozen=True, slots=True)
class Shape:
    """What every session of a worker has in common."""

    prefix_ids: Ids
    context_tokens: int  # prefix and records of a generation never exceed this
    keep_tokens: int  # tokens of the newest records that a new generation starts from
    teller: Teller | None = None  # None: no template looks back

    @property
    def max_record_tokens(self) -> int:
        return self.context_tokens - len(self.prefix_ids)

    @property
    def lead_tokens(self) -> int:
        """Tokens between the moment when the next generation is begun and the hop to it, at most."""
        return min(self.context_tokens // 8, self.keep_tokens // 2)

    @property
    def mark(self) -> int:
        """Tokens of a generation from which on the next one is made ahead."""
        return self.context_tokens - self.lead_tokens


class Session:
    """One growing token sequence with its KV. Retired generations wait for the commit that makes a hop final."""

    def __init__(self, key: str, shape: Shape, start_offset: int, records_before: int, seq_id: int) -> None:
        self.key = key
        self.shape = shape
        self.current = Generation(seq_id, shape.prefix_ids, start_offset, records_before)
        self.retired: list[Generation] = []
        self.next: Generation | None = None
        self.unused: list[Generation] = []  # made ahead in vain; whoever knows of their cells takes them from here
        self.head: Head | None = None  # as committed to the sessions topic
        self.evaluated: dict[str, tuple[str, int]] = {}  # query id -> version and offset of its newest idle fork
        self.newest: dict[Any, Any] = {}  # answers by what was asked (state/recent.py)

    def go_on_from(self, head: Head) -> None:
        """Its first record is read again: the generation is the one that this head tells of."""
        self.head = head
        self.current.born_at = max(self.current.born_at, head.born_at)

    @property
    def generations(self) -> list[Generation]:
        return [*self.retired, self.current]

    @property
    def all_generations(self) -> list[Generation]:
        """The one that is made ahead too."""
        return [*self.generations, *([self.next] if self.next else [])]

    @property
    def last_offset(self) -> int | None:
        return self.current.entries[-1].offset if self.current.entries else None

    def append(self, offset: int, record: Record, ids: Ids, new_seq_id: Callable[[], int]) -> bool:
        """Add a record -> whether the session hopped. Raises BadRecord if the record can never fit.

        `ids` where a template looks back: not read, they follow from what is here.
        """
        ids = self._ids_after(self.current, record, ids)
        self._check_fits(record, ids)
        hops = len(self.current.token_ids) + len(ids) > self.shape.context_tokens
        if hops:
            ids = self._hop(offset, record, ids, new_seq_id)
        self.current.append(offset, record, ids)
        if self.next:
            self.next.append(offset, record, self._ids_after(self.next, record, ids))
        elif self.current.num_tokens >= self.shape.mark:
            self.next = self._begin(new_seq_id)
        return hops

    def _check_fits(self, record: Record, ids: Ids) -> None:
        """Whether a record is refused follows from it alone, so that a rebuild refuses the same ones.

        A short one fits however it is rendered: what looks back changes a few tokens of it.
        """
        if self.shape.teller is not None and len(ids) > self.shape.max_record_tokens // 2:
            ids = self.shape.teller.record_ids([record])[0]
        if len(ids) > self.shape.max_record_tokens:
            raise BadRecord(
                f"{len(ids)} tokens: a record must fit {self.shape.max_record_tokens} "
                "(engine.context_tokens less the system prefix)"
            )

    def _hop(self, offset: int, record: Record, ids: Ids, new_seq_id: Callable[[], int]) -> Ids:
        """Go over to the next generation, of the newest whole records that fit `keep_tokens` and leave room for this
        record -> the record's ids in it.
        """
        old = self.current
        new = self.next or self._begin(new_seq_id)
        new_ids = self._ids_after(new, record, ids)
        if not self._has_room(new, len(new_ids)):
            self.unused.append(new)     # its records are longer than they were
        first = new.records_before - old.records_before
        while not self._has_room(new, len(new_ids)):    # alone the record fits: that was checked
            first += 1
            new = self._generation_from(first, new_seq_id)
            new_ids = self._ids_after(new, record, ids)
        new.born_at, new.is_ahead = offset, False
        old.is_retired = True
        self.retired.append(old)
        self.current, self.next = new, None
        return new_ids

    def _begin(self, new_seq_id: Callable[[], int]) -> Generation:
        """The next generation: of the records up to the one that reached the mark, the newest that leave `lead_tokens`
        of what it may keep, and all that came after it.
        """
        old, most = self.current, self.shape.keep_tokens - self.shape.lead_tokens
        reached = bisect_left(old.entries, self.shape.mark, key=lambda entry: entry.end)
        first = end = min(reached, len(old.entries) - 1) + 1
        while first and old.entries[end - 1].end - self._start_of(old, first - 1) <= most:
            first -= 1
        return self._generation_from(first, new_seq_id)

    def _generation_from(self, first: int, new_seq_id: Callable[[], int]) -> Generation:
        """A generation of the current one's records from this index on."""
        old, teller = self.current, self.shape.teller
        entries = old.entries[first:]
        new = Generation(new_seq_id(), self.shape.prefix_ids, old.start_offset, old.records_before + first)
        if teller is None:
            all_ids: Sequence[Ids] = [self._ids_of(old, index) for index in range(first, len(old.entries))]
        else:
            all_ids = teller.record_ids([entry.record for entry in entries])
        for entry, ids in zip(entries, all_ids, strict=True):
            new.append(entry.offset, entry.record, ids)
        new.is_ahead, new.line = True, old.line
        return new

    def _ids_after(self, generation: Generation, record: Record, ids: Ids) -> Ids:
        """A record's ids after those of a generation; `ids` where templates do not look back."""
        teller = self.shape.teller
        return ids if teller is None else teller.ids_after(generation.past, record)

    def _has_room(self, generation: Generation, num_new: int) -> bool:
        num_kept = generation.num_tokens - generation.num_prefix
        return num_kept <= min(self.shape.keep_tokens, self.shape.max_record_tokens - num_new)

    def _ids_of(self, generation: Generation, index: int) -> Ids:
        return tuple(generation.token_ids[self._start_of(generation, index) : generation.entries[index].end])

    @staticmethod
    def _start_of(generation: Generation, index: int) -> int:
        return generation.entries[index - 1].end if index else generation.num_prefix

    def truncate(self, offset: int) -> list[Generation]:
        """Go back to the state before `offset` -> generations that are gone: begun after it, or made ahead."""
        gone = [] if self.next is None else [self.next]
        self.next = None
        while self.retired and self.current.born_at >= offset:
            gone.append(self.current)
            self.current = self.retired.pop()
            self.current.is_retired = False
        self.current.truncate(offset)
        self.evaluated.clear()
        self.newest = {asked: recent for asked, recent in self.newest.items() if recent.as_of.offset < offset}
        return gone

    def settle(self, offset: int) -> list[Generation]:
        """Hops below `offset` are committed -> retired generations that nobody can go back to."""
        gone = []
        while self.retired and (self.retired[1] if len(self.retired) > 1 else self.current).born_at < offset:
            if self.retired[0].num_waiting_forks or self.retired[0].num_running_forks:
                break
            gone.append(self.retired.pop(0))
        return gone

    def committed_generation(self, offset: int) -> Generation:
        """The generation that a rebuild up to `offset` has to start from."""
        for generation in reversed(self.generations):
            if generation.born_at < offset:
                return generation
        return self.generations[0]
