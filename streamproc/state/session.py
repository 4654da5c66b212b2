"""Sessions and their generations: token sequences that only grow, and hop to a new generation when they are full.

    token_ids   [prefix | record | record | record ...]
                 0                                    num_tokens
    KV cells    [computed ...............]                          <= num_tokens: a step lets computed catch up
                                          num_computed

`Session.append` is the only writer of token ids and offsets, `Generation.advance` of what is computed. Where a
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
from typing import Any, NamedTuple, Protocol

from streamproc.errors import BadRecord
from streamproc.messages import Head
from streamproc.past import Past
from streamproc.records import Record
from streamproc.state.blocks import ROOT, BlockPool, name_of
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

    @property
    def lead_tokens(self) -> int:
        """Tokens between the moment when the next generation is begun and the hop to it, at most."""
        return min(self.context_tokens // 8, self.keep_tokens // 2)

    @property
    def mark(self) -> int:
        """Tokens of a generation from which on the next one is made ahead."""
        return self.context_tokens - self.lead_tokens


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
        self._names: list[bytes] = []
        self.num_waiting_forks = 0  # questions that still need this generation's cells
        self.num_running_forks = 0
        self.is_ahead = False  # its session has not hopped to it yet
        self.is_retired = False  # a newer generation has taken its place

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def name(self, index: int, block_size: int) -> bytes:
        """Of the full block of this index (blocks.py); ROOT for -1."""
        while len(self._names) <= index:
            start = len(self._names) * block_size
            before = self._names[-1] if self._names else ROOT
            self._names.append(name_of(before, self.token_ids[start : start + block_size]))
        return self._names[index] if index >= 0 else ROOT

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
        if not self.entries:
            self.start_offset = offset
        self.token_ids.extend(ids)
        self.entries.append(Entry(offset, len(self.token_ids), record))

    def _truncate(self, offset: int) -> None:
        while self.entries and self.entries[-1].offset >= offset:
            self.entries.pop()
        end = self.entries[-1].end if self.entries else self.num_prefix
        del self.token_ids[end:]
        self._facts, self._num_in_facts = Facts(), 0
        self._past, self._num_in_past = Past(), 0
        self._names = []
        self.num_computed = min(self.num_computed, end)

    def trim_blocks(self, pool: BlockPool) -> list[int]:
        """Take out of the block table what holds none of the tokens, or a token that is gone in a block whose content
        others may rely on -> those blocks.
        """
        num_blocks = pool.num_blocks_for(self.num_tokens)
        last = self.num_tokens // pool.block_size
        if last < len(self.block_table) and last < num_blocks and pool.is_named(self.block_table[last]):
            num_blocks = last
            self.num_computed = min(self.num_computed, last * pool.block_size)
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
        self.next: Generation | None = None
        self.unused: list[Generation] = []  # made ahead in vain; whoever knows of their cells takes them from here
        self.head: Head | None = None  # as committed to the sessions topic
        self.evaluated: dict[str, tuple[str, int]] = {}  # query id -> version and offset of its newest idle fork
        self.newest: dict[Any, Any] = {}  # answers by what was asked (state/recent.py)

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
        ids = self._ids_after(self.current, record, ids)
        self._check_fits(record, ids)
        hops = len(self.current.token_ids) + len(ids) > self.shape.context_tokens
        if hops:
            ids = self._hop(offset, record, ids, new_seq_id)
        self.current._append(offset, record, ids)
        if self.next:
            self.next._append(offset, record, self._ids_after(self.next, record, ids))
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
            new._append(entry.offset, entry.record, ids)
        new.is_ahead = True
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
        self.current._truncate(offset)
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
