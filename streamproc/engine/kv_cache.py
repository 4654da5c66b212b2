"""The KV pool on the device: one tensor, block-major across layers.

    blocks    [num_blocks + 1, num_layers, 2 (K, V), num_kv_heads, block_size, head_dim]

All layers of a block are one contiguous piece: the same bytes on the device, in memory and on disk; our own code on the
CPU lays K and V of a block down in its own order (cpu/forward.cpp). Codes of eight bits (fp8, int8) have a scale for
every cell, in float32, behind the codes of their block: a cell's bytes depend on nothing else. The pool is zero where
nothing was written, hence finite: masked cells are read and multiplied by zero. The last block is nobody's: it stays
zero and fills up the block tables of short sequences.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from streamproc.engine.memory import zeros

Copies = Sequence[tuple[int, int]]      # (source, destination)
MOST_CHECKED = 2**20    # blocks of tables that are remembered
NUMBERS = itertools.count()
CODES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


@dataclass(frozen=True, slots=True)
class Layout:
    """What one block holds."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype      # of cells

    @property
    def has_scales(self) -> bool:
        return self.dtype in CODES.values()

    @property
    def block_shape(self) -> tuple[int, ...]:
        return (self.num_layers, 2, self.num_kv_heads, self.block_size, self.head_dim)

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * (self.head_dim * int(self.dtype.itemsize) + self.scale_bytes)

    @property
    def scale_bytes(self) -> int:
        """Of one head's cell."""
        return torch.float32.itemsize if self.has_scales else 0

    @property
    def block_bytes(self) -> int:
        return self.bytes_per_token * self.block_size


class KVCache:
    """`num_blocks` blocks of cells. Who owns which block is decided elsewhere. is_kept: not made for one answer."""

    def __init__(self, layout: Layout, num_blocks: int, device: torch.device, is_kept: bool = True) -> None:
        self.is_kept = is_kept
        self.number = next(NUMBERS)     # another one for each pool, in memory that another one had, too
        self.layout = layout
        self.num_blocks = num_blocks
        self.null_block = num_blocks
        shape = (num_blocks + 1, layout.block_bytes)
        self.data = (zeros(shape, torch.uint8) if device.type == "cpu"
                     else torch.zeros(shape, dtype=torch.uint8, device=device))     # a block's bytes in a row
        num_codes = math.prod(layout.block_shape) * layout.dtype.itemsize
        self.blocks = self.data[:, :num_codes].view(layout.dtype).unflatten(1, layout.block_shape)
        self.scales = (self.data[:, num_codes:].view(torch.float32).unflatten(1, layout.block_shape[:-1])
                       if layout.has_scales else None)  # fmt: skip
        self._checked: dict[int, tuple[int, ...]] = {}
        self._num_checked = 0

    @property
    def cells(self) -> torch.Tensor:
        """[cells of all blocks, layers, K/V and heads, head_dim]: a view, to be written."""
        return self.blocks.view(-1, self.layout.head_dim)

    @property
    def runs(self) -> torch.Tensor:
        """[blocks * layers * 2 * heads, block_size * head_dim]: a view; a row is one head's part of a block."""
        return self.blocks.view(-1, self.layout.block_size * self.layout.head_dim)

    @property
    def layer_stride(self) -> int:
        """Rows of `runs` from one layer of a block to the next."""
        return 2 * self.layout.num_kv_heads

    @property
    def block_stride(self) -> int:
        """Rows of `runs` from one block to the next."""
        return self.layout.num_layers * self.layer_stride

    def check(self, seq_id: int, block_table: tuple[int, ...]) -> None:
        """Assert that the blocks are the pool's: those that this sequence had at its last check are not looked at."""
        checked = self._checked.get(seq_id, ())
        if checked is block_table:
            return
        table = tuple(block_table)
        new = table[len(checked):] if table[:len(checked)] == checked else table
        if new:
            assert min(new) >= 0 and max(new) < self.num_blocks, "a block outside the pool"  # noqa: PT018
            self._num_checked += len(new)
        if self._num_checked > MOST_CHECKED:
            self._checked, self._num_checked = {}, len(table)
        self._checked[seq_id] = table

    def gather(self, block_ids: Sequence[int]) -> torch.Tensor:
        """A copy of these blocks: [len(block_ids), *layout.block_shape]; their numbers, where they are codes."""
        index = self._index(block_ids)
        if self.scales is None:
            return self.blocks.index_select(0, index)
        return self.blocks[index].float() * self.scales[index][..., None]

    def scatter(self, block_ids: Sequence[int], blocks: torch.Tensor) -> None:
        """Overwrite these blocks with what `gather` returned; no codes."""
        assert self.scales is None, "numbers for codes"
        self.blocks.index_copy_(0, self._index(block_ids), blocks.to(self.blocks.device))

    def read(self, block_id: int) -> np.ndarray:
        """The bytes of a block, copied to the CPU: [layout.block_bytes] uint8."""
        assert 0 <= block_id < self.num_blocks, "a block outside the pool"
        copied: np.ndarray = self.data[block_id].cpu().numpy().copy()
        return copied

    def write(self, block_id: int, data: Any) -> None:
        """Overwrite a block with bytes that `read` returned, or any buffer of them."""
        assert 0 <= block_id < self.num_blocks, "a block outside the pool"
        source = np.frombuffer(data, np.uint8)
        assert source.size == self.layout.block_bytes, f"{source.size} bytes for a block of {self.layout.block_bytes}"
        target = self.data[block_id]
        if target.device.type == "cpu":
            target.numpy()[:] = source      # not by torch: it warns of memory that cannot be written, such as a file's
        else:
            target.copy_(as_pinned(source), non_blocking=True)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (source, destination); all sources are read before any destination is written."""
        if pairs:
            sources = self.data.index_select(0, self._index([source for source, _ in pairs]))
            self.data.index_copy_(0, self._index([destination for _, destination in pairs]), sources)

    def _index(self, block_ids: Sequence[int]) -> torch.Tensor:
        assert all(0 <= block < self.num_blocks for block in block_ids), "a block outside the pool"
        return torch.tensor(block_ids, dtype=torch.int64, device=self.blocks.device)


def as_pinned(array: np.ndarray) -> torch.Tensor:
    """Bytes as a GPU can fetch them by itself: where they are, if that is pinned memory, else in a copy there."""
    if array.flags.writeable and (tensor := torch.from_numpy(array)).is_pinned():
        return tensor
    pinned = torch.empty(array.size, dtype=torch.uint8, pin_memory=True)
    pinned.numpy()[:] = array
    return pinned
