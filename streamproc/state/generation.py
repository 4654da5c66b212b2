"""One context of a session: tokens that only grow, and how many of their cells are computed.

`append` is called by its session alone, `advance` by whoever has computed cells.
"""

from bisect import bisect_left
from typing import NamedTuple

from streamproc.past import Past
from streamproc.records import Record
from streamproc.state.blocks import ROOT, BlockPool, name_of
from streamproc.state.facts import Facts

Ids = tuple[int, ...]


class Entry(NamedTuple):
    """One record inside a generation."""

    offset: int
    end: int  # tokens of the generation up to and including this record
    record: Record


class Generation:
    """One context of a session: what a question sees, from `start_offset` to now."""

    def __init__(self, seq_id: int, prefix_ids: Ids, start_offset: int, records_before: int) -> None:
        self.seq_id = seq_id
        self.line = seq_id  # its session's first generation: those of one line are computed in their order
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

    def own_names(self, block_size: int) -> list[bytes]:
        """Names, as far as anybody has asked for them, of the full blocks that hold records alone: only sequences with
        the same records have those too.
        """
        return self._names[-(-self.num_prefix // block_size) :]

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

    def rewind(self, position: int) -> None:
        """Nothing is computed from this position on."""
        self.num_computed = min(self.num_computed, position)

    def forget_cells(self) -> list[int]:
        """Nothing is computed any more -> the blocks that held it."""
        block_ids, self.block_table, self.num_computed = self.block_table, [], 0
        return block_ids

    def forget_part(self, block_size: int) -> list[int]:
        """The newest, partly filled block is not computed -> that block."""
        self.num_computed -= self.num_computed % block_size
        return [self.block_table.pop()]

    def append(self, offset: int, record: Record, ids: Ids) -> None:
        if not self.entries:
            self.start_offset = offset
        self.token_ids.extend(ids)
        self.entries.append(Entry(offset, len(self.token_ids), record))

    def num_entries_before(self, offset: int) -> int:
        return bisect_left(self.entries, offset, key=lambda entry: entry.offset)

    def truncate(self, offset: int) -> None:
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
