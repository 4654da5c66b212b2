"""Whole blocks of the pool, as bytes: out of it into a row of blocks, back, and from one place in it to another."""

import torch
import triton
import triton.language as tl

from streamproc.kernels.compiling import Variant
from streamproc.kernels.configs import Chip

WORDS = 2048        # of 8 bytes, to one program


def gather_blocks(pool: torch.Tensor, block_ids: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """pool: [num_blocks, block_bytes] uint8, block_bytes a multiple of 16; block_ids: [n] int32
    -> [n, block_bytes] uint8, in `out` where one is given
    """
    out = torch.empty(len(block_ids), pool.shape[1], dtype=pool.dtype, device=pool.device) if out is None else out
    _move(pool, out, block_ids, None)
    return out


def scatter_blocks(pool: torch.Tensor, block_ids: torch.Tensor, blocks: torch.Tensor) -> None:
    """The inverse of gather_blocks; no id comes twice."""
    _move(blocks, pool, None, block_ids)


def copy_blocks(pool: torch.Tensor, sources: torch.Tensor, destinations: torch.Tensor) -> None:
    """pool: as of gather_blocks; sources, destinations: [n] int32. No destination comes twice or is a source too."""
    _move(pool, pool, sources, destinations)


def _move(source: torch.Tensor, target: torch.Tensor, from_ids: torch.Tensor | None, to_ids: torch.Tensor | None
          ) -> None:
    ids = to_ids if from_ids is None else from_ids
    assert ids is not None
    assert source.shape[1] == target.shape[1]
    assert not any(size % 16 for x in (source, target) for size in (x.shape[1], x.stride(0), x.data_ptr()))
    if len(ids):
        move[(len(ids), triton.cdiv(source.shape[1] // 8, WORDS))](
            source.view(torch.int64), target.view(torch.int64), from_ids, to_ids, source.shape[1] // 16,
            source.stride(0) // 16, target.stride(0) // 16, WORDS, num_warps=4)


def variants(chip: Chip) -> list[Variant]:
    types = {"from_ptr": "*i64", "to_ptr": "*i64", **dict.fromkeys(("pieces", "from_stride", "to_stride"), "i32:16")}
    ids = {"gather": ["sources_ptr"], "scatter": ["destinations_ptr"], "copy": ["sources_ptr", "destinations_ptr"]}
    return [
        Variant(name, move, {**types, **dict.fromkeys(given, "*i32")},
                {"BLOCK": WORDS, **dict.fromkeys({"sources_ptr", "destinations_ptr"} - set(given))},
                num_warps=4, num_stages=3, blocks_per_multiprocessor=8)
        for name, given in ids.items()
    ]  # fmt: skip


@triton.jit
def move(from_ptr, to_ptr, sources_ptr, destinations_ptr, pieces, from_stride, to_stride, BLOCK: tl.constexpr):
    """pieces and strides are counted in 16 bytes, so that the compiler knows that a thread may move as many at once."""
    row = tl.program_id(0).to(tl.int64)
    source, destination = row, row
    if sources_ptr is not None:
        source = tl.load(sources_ptr + row).to(tl.int64)
    if destinations_ptr is not None:
        destination = tl.load(destinations_ptr + row).to(tl.int64)
    words = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = words < pieces * 2
    moved = tl.load(from_ptr + source * (from_stride * 2) + words, here)
    tl.store(to_ptr + destination * (to_stride * 2) + words, moved, here)
