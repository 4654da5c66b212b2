"""How attention is cut, by chip and head size: a table, as in configs.py.

Registers decide: a program keeps the sums of its rows in float32 twice, those of the split and those of all splits.
None of this is measured yet on a chip: the table is where measurements go.
"""

from dataclasses import dataclass
from typing import NamedTuple

from streamproc.kernels.work import Cut


@dataclass(frozen=True)
class Tile:
    """Query rows of a program."""

    rows: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Attention:
    """Bits depend on the first two, and on how the threads of a tile share a row: as `whole` so `split`. Tests of what
    the compiler made read it off.
    """

    key_tile: int       # keys of one step of the online softmax
    key_split: int      # keys of one partial result, cut at absolute positions
    whole: Tile         # where one program walks all keys of its rows
    split: Tile         # where a program computes one split
    least_whole: int = 64    # tokens of a chunk that is computed whole

    def cut(self, block_size: int, groups: int) -> Cut:
        """groups: query heads for each head of K and V."""
        whole, split = (max(tile.rows // groups, 1) for tile in (self.whole, self.split))
        return Cut(self.key_tile, self.key_split, block_size, whole, split, self.least_whole)


class Sizes(NamedTuple):
    """For heads of up to `head_dim` dimensions. `involved`: scores are capped, or K and V are codes; either takes
    registers.
    """

    head_dim: int
    plain: Attention
    involved: Attention


NEVER = 2**30   # tokens: no chunk is computed whole, its two sums take more registers than there are
AMPERE = (      # where the warps share out the keys, there is the same number of warps everywhere
    Sizes(64, Attention(64, 512, Tile(64, 4, 2), Tile(64, 4, 2)), Attention(32, 512, Tile(64, 4, 2), Tile(64, 4, 2))),
    Sizes(128, Attention(64, 512, Tile(64, 8, 3), Tile(64, 8, 3)), Attention(32, 512, Tile(64, 8, 3), Tile(64, 8, 3))),
    Sizes(256, Attention(64, 512, Tile(32, 8, 2), Tile(32, 8, 2)), Attention(32, 512, Tile(32, 8, 3), Tile(32, 8, 3))),
)
HOPPER = (      # 64 rows and 4 warps at least: fewer do not get wgmma; 16 rows in each warp
    Sizes(128, Attention(64, 512, Tile(128, 8, 3), Tile(64, 4, 3)),
          Attention(32, 512, Tile(128, 8, 3), Tile(64, 4, 3))),
    Sizes(256, Attention(32, 512, Tile(64, 8, 3), Tile(64, 8, 3)),
          Attention(16, 512, Tile(64, 8, 2), Tile(64, 8, 2), NEVER)),
)  # fmt: skip
BLACKWELL = (   # sums lie in the matrix units' own memory, differently for 64 and for 128 rows
    Sizes(128, Attention(64, 512, Tile(128, 8, 3), Tile(128, 8, 3)),
          Attention(32, 512, Tile(128, 8, 3), Tile(128, 8, 3))),
    Sizes(256, Attention(32, 512, Tile(64, 8, 2), Tile(64, 8, 2)),
          Attention(32, 512, Tile(64, 8, 2), Tile(64, 8, 2), NEVER)),
)  # fmt: skip
SMALL = Attention(16, 64, Tile(32, 4, 1), Tile(16, 4, 1), least_whole=9)
INTERPRETED = (Sizes(256, SMALL, SMALL),)
TABLES = {"sm_80": AMPERE, "sm_90": HOPPER, "sm_100": BLACKWELL, "interpreted": INTERPRETED}    # by configs.Chip.name


def attention_of(chip: str, head_dim: int, is_involved: bool = False) -> Attention:
    """ValueError: larger heads than there are kernels for."""
    for sizes in TABLES[chip]:
        if head_dim <= sizes.head_dim:
            return sizes.involved if is_involved else sizes.plain
    raise ValueError(f"heads of {head_dim} dimensions: {TABLES[chip][-1].head_dim} at most")


def attention_facts(chip: str) -> str:
    """All that bits depend on here."""
    return repr([(sizes.head_dim, [(way.key_tile, way.key_split, way.whole.rows, way.whole.warps, way.split.rows,
                                    way.split.warps) for way in sizes[1:]]) for sizes in TABLES[chip]])  # fmt: skip
