"""How large the kernels' tiles are, by chip. Nothing is tuned at run time: a table decides, and its digest says which.

Some fields decide the order in which numbers are added, and so the bits of a result; they depend on the chip and on a
layer's shape, never on the batch, and are what `digest` is made of. Others only decide who computes a row, and when.

**The product** (Llama-3.1-8B's on an H200: 4.8 TB/s, 132 multiprocessors, 227 KiB of shared memory each).
With few rows it is a stream of weights. To keep the memory busy, bandwidth times latency must be on the way: 4.8 TB/s
times 0.8 us is 3.8 MB, 29 KiB a multiprocessor, over all of them; more does not hurt, so a tile takes as many stages as
fit. A stage of 64 columns, 128 deep, is 16 KiB of weights and 16 KiB of rows, six stages have 80 KiB of weights on the
way; of the rows, those that are masked are not read. Three quarters of the multiprocessors are enough (`fill`), as each
can draw twice its share.
    columns x depth     tiles of 64 columns     pieces of the depth
    28672 x 4096        448                     1
    128256 x 4096       2004                    1
    6144 x 4096         96                      1
    4096 x 4096         64: too few             2
    4096 x 14336        64: too few             2
So a layer whose columns do not fill the chip is cut along its depth (`num_pieces`), for every row count alike. Up to 64
rows, and wherever the tiles are too few, a program computes a piece, and another kernel adds the pieces, which costs a
launch; up to 16 rows tiles of 32 columns fill the chip with 4096 columns, and one program walks both pieces instead.
At 64 rows every tile reads the 64 rows too, from the L2 cache (about 5.5 TB/s): with 64 columns as much as it reads of
weights, with 128 half of it, with 256 a quarter. So tiles get wider as soon as enough of them remain.
With many rows the matrix units are the limit: tiles of 128 x 256, or 128 x 128 where two sums are kept, and eight
neighbouring tiles of rows share what the cache holds of the weights.
None of this is measured yet on a chip: the table is where measurements go.
"""

import functools
import hashlib
from dataclasses import dataclass, replace

import torch

SUMS_OF_A_THREAD = 128     # registers for fp32 sums; a thread has 255, and its addresses need some


@dataclass(frozen=True)
class ProductTile:
    """What one program computes: rows x columns, `depth` of the inner dimension at a time. No bit depends on it."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    resident: int = 1      # such programs fit on a multiprocessor

    def holds(self, num_sums: int) -> bool:
        """Whether a thread's share of so many sums fits into its registers."""
        return num_sums * self.rows * self.columns <= SUMS_OF_A_THREAD * 32 * self.warps


@dataclass(frozen=True)
class ProductPlan:
    """How one product is launched.

    num_pieces, piece: of the depth, and how deep they are; the last may be less, or nothing
    has_programs: every piece has programs of its own, and another kernel adds what they found
    """

    tile: ProductTile
    num_pieces: int
    piece: int
    has_programs: bool


@dataclass(frozen=True)
class Product:
    """Tiles are tried in their order: the first of which there are enough to fill the chip is taken, or the last."""

    instruction: str    # bits depend on it: the matrix instruction of all tiles
    depth_step: int     # bits depend on it: a piece's depth is a multiple of it, the tiles' depths divide it
    least_piece: int    # bits depend on it: no piece is shallower
    fill: int           # bits depend on it: programs that fill the chip
    tiles: tuple[tuple[int, tuple[ProductTile, ...]], ...]      # (up to so many rows, tiles); the last: all others
    odd: ProductTile    # for float32, and where rows are not aligned to 16 elements: no asynchronous copies
    group: int = 8      # tiles of rows that take turns over the same columns

    def num_pieces(self, columns: int, depth: int) -> int:
        """A power of two that the weights' shape alone decides."""
        pieces = 1
        while pieces * -(-columns // 64) < self.fill and 2 * pieces * self.least_piece <= depth:
            pieces *= 2
        return pieces

    def plan(self, num_rows: int, columns: int, depth: int, is_wide: bool = False) -> ProductPlan:
        """`is_wide`: of float32, for which the chips' tables have no tiles."""
        num_pieces = self.num_pieces(columns, depth)
        piece = -(-depth // (num_pieces * self.depth_step)) * self.depth_step
        if is_wide or depth % 16:
            return ProductPlan(self.odd, num_pieces, piece, has_programs=False)
        tiles = next((tiles for most, tiles in self.tiles if num_rows <= most), self.tiles[-1][1])
        tiles = tuple(tile for tile in tiles if tile.holds(1 + (num_pieces > 1)))

        def programs(tile: ProductTile) -> int:
            return -(-num_rows // tile.rows) * -(-columns // tile.columns)

        ways = [(tile, False) for tile in tiles if programs(tile) >= self.fill]
        ways += [(tile, True) for tile in tiles if num_pieces > 1 and num_pieces * programs(tile) >= self.fill]
        tile, has_programs = (*ways, (tiles[-1], num_pieces > 1))[0]
        return ProductPlan(tile, num_pieces, piece, has_programs)


@dataclass(frozen=True)
class Chip:
    """`name`: of the table, that of the architecture it was made for; `capability`: of the chip itself."""

    name: str
    product: Product
    capability: tuple[int, int] = (0, 0)

    @property
    def digest(self) -> str:
        """sha256 of all that bits depend on here. Nobody promises that two chips' matrix units round alike."""
        product = self.product
        sizes = (product.instruction, product.depth_step, product.least_piece, product.fill)
        return hashlib.sha256(repr((self.name, self.capability, sizes)).encode()).hexdigest()


ODD = ProductTile(64, 64, 32, 4, 2)
AMPERE = Chip(
    name="sm_80",
    product=Product(    # one stage less than it says has a buffer; all fit into the 99 KiB of 8.6, 8.9 and 12
        instruction="mma.m16n8k16", depth_step=128, least_piece=1024, fill=80, odd=ODD,
        tiles=(
            (16, (ProductTile(16, 64, 128, 4, 5, 2), ProductTile(16, 32, 128, 4, 6, 2))),
            (64, (ProductTile(64, 128, 64, 8, 5), ProductTile(64, 64, 64, 4, 5, 2))),
            (0, (ProductTile(128, 256, 32, 8, 4), ProductTile(128, 128, 64, 8, 4), ProductTile(64, 64, 64, 4, 5, 2))),
        ),
    ),
)  # fmt: skip
HOPPER = Chip(
    name="sm_90",
    product=Product(    # 64 rows and 4 warps at least: fewer do not get wgmma
        instruction="wgmma.m64k16", depth_step=128, least_piece=1024, fill=96, odd=ODD,
        tiles=(
            (16, (ProductTile(64, 64, 128, 4, 6), ProductTile(64, 32, 128, 4, 8))),
            (64, (ProductTile(64, 256, 64, 4, 5), ProductTile(64, 128, 64, 4, 8), ProductTile(64, 64, 128, 4, 6))),
            (0, (ProductTile(128, 256, 64, 8, 4), ProductTile(128, 128, 64, 8, 4), ProductTile(64, 64, 128, 4, 6))),
        ),
    ),
)  # fmt: skip
BLACKWELL = Chip(
    name="sm_100",
    product=Product(    # 64 rows at least, as tcgen05 has it; sums lie in the tensor memory
        instruction="tcgen05.k16", depth_step=128, least_piece=1024, fill=108, odd=ODD,
        tiles=(
            (16, (ProductTile(64, 64, 128, 8, 6), ProductTile(64, 32, 128, 8, 8))),
            (64, (ProductTile(64, 256, 64, 4, 5), ProductTile(64, 128, 64, 4, 8), ProductTile(64, 64, 128, 8, 6))),
            (0, (ProductTile(128, 256, 64, 8, 4), ProductTile(128, 128, 64, 8, 4), ProductTile(64, 64, 128, 8, 6))),
        ),
    ),
)  # fmt: skip
INTERPRETED = Chip(     # small enough for tests to meet every tile, and pieces; one depth, so that sums have one order
    name="interpreted",
    product=Product(
        instruction="sum", depth_step=32, least_piece=64, fill=4, odd=ProductTile(64, 64, 32, 4, 1),
        tiles=(
            (16, (ProductTile(16, 64, 32, 1, 1), ProductTile(16, 32, 32, 1, 1))),
            (64, (ProductTile(64, 64, 32, 4, 1), ProductTile(64, 32, 32, 4, 1))),
            (0, (ProductTile(128, 64, 32, 8, 1), ProductTile(64, 32, 32, 4, 1))),
        ),
    ),
)  # fmt: skip
CHIPS = {8: AMPERE, 9: HOPPER, 10: BLACKWELL, 12: AMPERE}   # 12 has neither wgmma nor tcgen05, and 99 KiB, as 8.9 has


def config_for(capability: tuple[int, int]) -> Chip:
    """The table of a compute capability (major, minor); the newest if newer than all. ValueError: older than 8.0."""
    known = [chip for oldest, chip in CHIPS.items() if oldest <= capability[0]]
    if not known:
        major, minor = capability
        raise ValueError(f"compute capability {major}.{minor} has no bf16 matrix instructions: 8.0 or newer is needed")
    return replace(known[-1], capability=capability)


@functools.cache
def config_of(device: torch.device) -> Chip:
    """The table of a device; on a CPU, where kernels run in Triton's interpreter, one of small tiles."""
    return INTERPRETED if device.type == "cpu" else config_for(torch.cuda.get_device_capability(device))
