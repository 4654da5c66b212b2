"""Sessions and their generations: token sequences that only grow, and hop to a new generation when they are full.

    token_ids   [prefix | record | record | record ...]
                 0                                    num_tokens
    KV cells    [computed ...............]                          <= num_tokens: a step lets computed catch up
                                          num_computed

`Session.append` is the only writer of token ids and offsets, `Generation.advance` of what is computed. Where a
generation ends depends on token counts alone, never on time, so a replay hops at the same offsets.

Templates may look back (past.py): a record's text then depends on those before it in its generation. A new generation
knows nothing of the time before it, so its records are rendered anew: ids follow from the generation's records alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from streamproc.errors import BadRecord
from streamproc.messages import Head
from streamproc.past import Past
from streamproc.records import Record
from streamproc.state.facts import Facts

Ids = tuple[int, ...]


class Teller(Protocol):
    """Renders records whose text depends on those before them."""

    def record_ids(self, records: Sequence[Record]) -> Sequence[Ids]: ...

    def ids_after(self, past: Past, record: Record) -> Ids: ...


class Entry(NamedTuple):
    """One record inside a generation."""

    offset: int
    end: int  # tokens of the generation up to and including this record
    record: Record


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


class Generation:
    """One context of a session: what a question sees, from `start_offset` to now."""

    def __init__(self, seq_id: int, prefix_ids: Ids, start_offset: int, records_before: int) -> None:
        self.seq_id = seq_id
        self.start_offset = start_offset
        self.born_at = start_offset  # the first record that came after this generation began
        self.records_before = records_before  # records of the session before start_offset
        self.num_prefix = len(prefix_ids)
        self.token_ids = list(prefix_ids)
        self.entries: list[Entry] = []
        self._facts = Facts()
        self._num_in_facts = 0
        self._past = Past()
        self._num_in_past = 0
        self.num_computed = 0
        self.block_table: list[int] = []
        self.num_waiting_forks = 0  # questions that still need this generation's cells
        self.num_running_forks = 0
        self.is_retired = False  # a newer generation has taken its place

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_records(self) -> int:
        """Records of the session up to the newest one here."""
        return self.records_before + len(self.entries)

    @property
    def facts(self) -> Facts:
        """Facts of all entries; brought up to date when somebody asks."""
        for entry in self.entries[self._num_in_facts :]:
            self._facts.update(entry.record)
        self._num_in_facts = len(self.entries)
        return self._facts

    @property
    def past(self) -> Past:
        """What the next record can look back at; brought up to date when somebody asks."""
        for entry in self.entries[self._num_in_past :]:
            self._past.add(entry.record)
        self._num_in_past = len(self.entries)
        return self._past

    def advance(self, num_tokens: int) -> None:
        """This many more cells are written."""
        self.num_computed += num_tokens
        assert self.num_computed <= self.num_tokens

    def forget_cells(self) -> list[int]:
        """Nothing is computed any more -> the blocks that held it."""
        block_ids, self.block_table, self.num_computed = self.block_table, [], 0
        return block_ids

    def _append(self, offset: int, record: Record, ids: Ids) -> None:
        self.token_ids.extend(ids)
        self.entries.append(Entry(offset, len(self.token_ids), record))

    def _truncate(self, offset: int) -> None:
        while self.entries and self.entries[-1].offset >= offset:
            self.entries.pop()
        end = self.entries[-1].end if self.entries else self.num_prefix
        del self.token_ids[end:]
        self._facts, self._num_in_facts = Facts(), 0
        self._past, self._num_in_past = Past(), 0
        self.num_computed = min(self.num_computed, end)

    def trim_blocks(self, block_size: int) -> list[int]:
        """Take the blocks that hold none of the tokens out of the block table -> those blocks."""
        num_blocks = -(-self.num_tokens // block_size)
        block_ids = self.block_table[num_blocks:]
        del self.block_table[num_blocks:]
        return block_ids


class Session:
    """One growing token sequence with its KV. Retired generations wait for the commit that makes a hop final."""

    def __init__(self, key: str, shape: Shape, start_offset: int, records_before: int, seq_id: int) -> None:
        self.key = key
        self.shape = shape
        self.current = Generation(seq_id, shape.prefix_ids, start_offset, records_before)
        self.retired: list[Generation] = []
        self.head: Head | None = None  # as committed to the sessions topic
        self.evaluated: dict[str, tuple[str, int]] = {}  # query id -> version and offset of its newest idle fork

    @property
    def generations(self) -> list[Generation]:
        return [*self.retired, self.current]

    @property
    def last_offset(self) -> int | None:
        return self.current.entries[-1].offset if self.current.entries else None

    def append(self, offset: int, record: Record, ids: Ids, new_seq_id: Callable[[], int]) -> bool:
        """Add a record -> whether the session hopped. Raises BadRecord if the record can never fit.

        `ids` where a template looks back: not read, they follow from what is here.
        """
        teller = self.shape.teller
        if teller is not None:
            ids = teller.ids_after(self.current.past, record)
        self._check_fits(record, ids)
        hops = len(self.current.token_ids) + len(ids) > self.shape.context_tokens
        if hops:
            new, ids = self._next(offset, record, ids, new_seq_id)
            self.current.is_retired = True
            self.retired.append(self.current)
            self.current = new
        self.current._append(offset, record, ids)
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

    def _next(self, offset: int, record: Record, ids: Ids, new_seq_id: Callable[[], int]) -> tuple[Generation, Ids]:
        """A new generation, of the newest whole records that fit `keep_tokens` and leave room for the next record ->
        it, and that record's ids in it.
        """
        old = self.current
        first, kept, ids = self._kept(record, ids)
        entries = old.entries[first:]
        start_offset = entries[0].offset if entries else offset
        new = Generation(new_seq_id(), self.shape.prefix_ids, start_offset, old.records_before + first)
        new.born_at = offset
        for entry, kept_ids in zip(entries, kept, strict=True):
            new._append(entry.offset, entry.record, kept_ids)
        return new, ids

    def _kept(self, record: Record, ids: Ids) -> tuple[int, list[Ids], Ids]:
        """Index of the oldest record that goes on into the next generation, ids of those that do, ids of `record`."""
        old, teller = self.current, self.shape.teller
        first = self._first_kept(len(ids))
        if teller is None:
            return first, [self._ids_of(old, index) for index in range(first, len(old.entries))], ids
        while True:
            *kept, new = teller.record_ids([*(entry.record for entry in old.entries[first:]), record])
            if not kept or self._has_room(sum(map(len, kept)), len(new)):
                return first, kept, new     # alone it fits: that was checked
            first += 1  # rendered anew they are longer than they were

    def _first_kept(self, num_new: int) -> int:
        """Index of the oldest record that goes on into the next generation."""
        old, first = self.current, len(self.current.entries)
        while first and self._has_room(old.num_tokens - self._start_of(old, first - 1), num_new):
            first -= 1
        return first

    def _has_room(self, num_kept: int, num_new: int) -> bool:
        return num_kept <= min(self.shape.keep_tokens, self.shape.max_record_tokens - num_new)

    def _ids_of(self, generation: Generation, index: int) -> Ids:
        return tuple(generation.token_ids[self._start_of(generation, index) : generation.entries[index].end])

    @staticmethod
    def _start_of(generation: Generation, index: int) -> int:
        return generation.entries[index - 1].end if index else generation.num_prefix

    def truncate(self, offset: int) -> list[Generation]:
        """Go back to the state before `offset` -> generations that began after it and are gone."""
        gone = []
        while self.retired and self.current.born_at >= offset:
            gone.append(self.current)
            self.current = self.retired.pop()
            self.current.is_retired = False
        self.current._truncate(offset)
        self.evaluated.clear()
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
