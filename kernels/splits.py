"""Which spans see which lines of the keys: computed once for steps of the same sequences, until one of them comes to
its next split.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamproc.kernels.tables import Table, Tables


@dataclass(eq=False, frozen=True, slots=True)
class Reads:
    """Pairs of a span and a split of which it may see something, group after group: spans that have the same line.

    In the step's tables every span's own last line comes first, which may end before others' do; then those lines that
    several spans may have, of splits that are behind their last one. Pairs are in the other order.
    """

    span: np.ndarray        # [pairs] like all of these int32
    split: np.ndarray       # [pairs]
    group: np.ndarray       # [pairs] ascending
    table: np.ndarray       # [pairs] where the table would begin that has the pair's line in its place
    lines: np.ndarray       # [groups of maybe several spans] numbers of their lines
    own: np.ndarray         # [spans] numbers of the last ones
    kept: dict[Hashable, Any] = field(default_factory=dict)     # by work.py, as long as these are the same

    @property
    def num_lines(self) -> int:
        return len(self.lines) + len(self.own)


def reads_of(held: Sequence[Table], first: np.ndarray, last: np.ndarray, tables: Tables) -> Reads:
    """first, last [spans]: the splits that each one's rows see something of"""
    bounds = list(zip(held, first.tolist(), last.tolist(), strict=True))
    nothing = np.empty(0, np.int32)
    lines = np.concatenate([nothing, *(table.lines[begin:end] for table, begin, end in bounds)])
    spans, counts = np.arange(len(held), dtype=np.int32), last - first
    span, split = np.repeat(spans, counts), ascending(first, counts)
    group = np.arange(len(lines), dtype=np.int32)
    leader = np.empty(len(tables.contents), np.int32)
    leader[lines[::-1]] = group[::-1]           # of pairs with the same line the first: what is written last stays
    leaders = leader[lines]
    is_leader = leaders == group
    if not is_leader.all():
        group = (np.cumsum(is_leader, dtype=np.int32) - 1)[leaders]
        order = np.argsort(group, kind="stable")
        span, split, group, lines = span[order], split[order], group[order], lines[is_leader]
    own = np.array([table.lines[end] for table, _, end in bounds], np.int32)
    place = np.concatenate((group + len(own), spans))
    split = np.concatenate((split, last))
    table = place * tables.width - split * tables.cut.key_split // tables.cut.block_size
    return Reads(np.concatenate((span, spans)), split, np.concatenate((group, len(lines) + spans)), table, lines, own)


def ascending(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1, ... counts[0] of them, then from first[1] on, ..."""
    ends = counts.cumsum(dtype=np.int32)
    return (first - (ends - counts)).repeat(counts) + np.arange(ends[-1] if len(ends) else 0, dtype=np.int32)
