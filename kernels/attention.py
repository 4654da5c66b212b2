"""Attention over paged KV: one kernel for prefill, decode, drafts and forks, so that a row's bits are its own.

A program computes a tile of query rows for one head of K and V: several tokens, times the query heads that share it,
packed into the rows of one product. It walks the keys in tiles of `key_tile`, in ascending order, with an online
softmax that begins anew in every split of `key_split` keys. The splits of a row are merged in ascending order, with the
same arithmetic in the program itself (a whole item) and in a second kernel (split items). Work is cut by work.py.

What makes a row's bits its own:
    tiles and splits lie at absolute positions, whatever the chunk;
    a tile of which a row sees nothing changes nothing of it: its weights are exactly 0, its factor exactly 1;
    a row of a product depends on no other row, and all tiles use the same matrix instruction: at least 64 rows, 16 of
    them in each warp, so that a row's sums are made by the same four threads in the same order;
    multiply-adds are written out, so that no compiler contracts them here and not there.

Online softmax: Milakov and Gimelshein 2018; tiles and the split over keys: FlashAttention-2, Flash-Decoding; query
heads in the rows of a tile, as in vLLM's Triton backend.
"""

import torch
import triton
import triton.language as tl

from streamproc.kernels.attention_configs import NEVER, Attention, attention_of
from streamproc.kernels.compiling import Variant
from streamproc.kernels.configs import Chip
from streamproc.kernels.dots import dot
from streamproc.kernels.rounding import rounded
from streamproc.kernels.work import FIELDS, Scratch, Work

LOG2_E = 1.4426950408889634
LOWEST = tl.constexpr(-1e30)  # the maximum of no scores: finite, so that differences are
UNROLLED = 16  # partial results that are read ahead of the chain that merges them
MERGED_HEADS = 1  # of a row, in one program: a chain of splits is short of programs, not of threads
ITEM = tl.constexpr(FIELDS)


@triton.jit
def merge(top, total, out, top2, total2, out2):
    """Two partial softmaxes, in this order: maxima and sums [rows], sums of values [rows, head_dim]."""
    highest = tl.maximum(top, top2)
    scale, scale2 = tl.exp2(top - highest), tl.exp2(top2 - highest)
    out = tl.fma(out, tl.broadcast_to(scale[:, None], out.shape), out2 * scale2[:, None])
    return highest, tl.fma(total, scale, total2 * scale2), out


@triton.jit
def tanh(x):
    """Saturates to 1 and -1."""
    grown = tl.exp2(tl.abs(x) * -2.885390081777927)
    size = tl.div_rn(1.0 - grown, 1.0 + grown)
    return tl.where(x < 0, -size, size)


@triton.jit
def divided(out, total):
    """Nothing where there was no key."""
    return tl.div_rn(out, tl.broadcast_to(tl.where(total > 0, total, 1.0)[:, None], out.shape))


@triton.jit
def load_cells(pointers, dims, is_near, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr):
    """A tile of keys or values, filled up with zeros to a power of two of dimensions; MASKED: only of those near."""
    if MASKED:
        cells = tl.load(pointers, is_near & (dims < HEAD_DIM), other=0.0)
    elif dims.shape[0] * dims.shape[1] == HEAD_DIM:
        cells = tl.load(pointers)
    else:
        cells = tl.load(pointers, dims < HEAD_DIM, other=0.0)
    return cells


@triton.jit
def attend_tile(
    top, total, out, query, places, last_place, first_key, kv, scales, table,
    block_stride, value_offset, scale_block_stride, scale_value_offset, to_log2, softcap, cap_scale,
    KEY_TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, WINDOW: tl.constexpr,
    MASKED: tl.constexpr, CAPPED: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Keys first_key, first_key + 1, ... more. kv, scales: this layer's and head's keys in block 0; `table`: the blocks
    of the sequence; `places`: the rows' positions, -1 where there is no row; `last_place`: the largest.

    Values behind the last row are not looked at: whatever was left there, times a weight of 0, would be NaN if it is.
    """
    DIM: tl.constexpr = query.shape[1]
    key = tl.arange(0, KEY_TILE)
    dims = tl.arange(0, DIM)
    blocks = tl.load(table + (first_key + key) // BLOCK_SIZE).to(tl.int64)
    slots = (first_key + key) % BLOCK_SIZE if BLOCK_SIZE > KEY_TILE else key % BLOCK_SIZE
    cells = kv + blocks * block_stride + slots * HEAD_DIM
    is_near = first_key + key <= last_place
    keys = load_cells(cells[None, :] + dims[:, None], dims[:, None], is_near[None, :], HEAD_DIM, False)
    of_values = cells[:, None] + value_offset + dims[None, :]
    values = load_cells(of_values, dims[None, :], is_near[:, None], HEAD_DIM, MASKED)
    scores = dot(query, keys.to(query.dtype), tl.zeros([query.shape[0], KEY_TILE], tl.float32))
    if SCALED:
        of_cells = scales + blocks * scale_block_stride + slots
        scores = scores * tl.load(of_cells)[None, :]
    if CAPPED:
        scores = softcap * tanh(scores * cap_scale)
    if MASKED:
        position = first_key + key
        is_seen = position[None, :] <= places[:, None]
        if WINDOW > 0:
            is_seen = is_seen & (position[None, :] > places[:, None] - WINDOW)
        scores = tl.where(is_seen, scores, float("-inf"))
    highest = tl.maximum(top, tl.max(scores, 1) * to_log2)
    weights = tl.exp2(tl.fma(scores, to_log2 + tl.zeros_like(scores), tl.broadcast_to(-highest[:, None], scores.shape)))
    rescale = tl.exp2(top - highest)
    total = tl.fma(total, rescale, tl.sum(weights, 1))
    if SCALED:
        weights = weights * tl.load(of_cells + scale_value_offset, is_near, other=0.0)[None, :]
    out = dot(rounded(weights, query.dtype), values.to(query.dtype), out * rescale[:, None])
    return highest, total, out


@triton.jit
def attend_items(
    query, kv, scales, out, stats, sums, rows, tables, positions, slots, items, counts,
    query_stride, block_stride, head_stride, value_offset, scale_block_stride, scale_head_stride, scale_value_offset,
    to_log2, softcap, cap_scale,
    WHOLE: tl.constexpr, GROUPS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr,
    KEY_TILE: tl.constexpr, KEY_SPLIT: tl.constexpr, BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr,
    CAPPED: tl.constexpr, SCALED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Program (item, head of K and V). kv, scales: this layer's keys in block 0."""
    item, head = tl.program_id(0), tl.program_id(1)
    if item >= tl.load(counts + (0 if WHOLE else 1)):
        return
    items += item * ITEM
    first_row, num_rows, table = tl.load(items), tl.load(items + 1), tl.load(items + 2)
    first_tile, seen_by_all, end_tile = tl.load(items + 3), tl.load(items + 4), tl.load(items + 5)
    kv += head * head_stride
    scales += head * scale_head_stride
    tables += table

    place = tl.arange(0, ROWS)
    token = place // GROUPS
    is_row = (token < num_rows) & (token < ROWS // GROUPS)
    row = tl.load(rows + first_row + token, is_row, other=0).to(tl.int64)
    position = tl.load(positions + row, is_row, other=-1)
    last_place = tl.max(position, 0)
    heads = head * GROUPS + place % GROUPS
    dims = tl.arange(0, DIM)
    asked = tl.load(query + row[:, None] * query_stride + heads[:, None] * HEAD_DIM + dims[None, :],
                    is_row[:, None] & (dims[None, :] < HEAD_DIM), other=0.0)

    top, total, found = tl.full([ROWS], LOWEST, tl.float32), tl.zeros([ROWS], tl.float32), \
        tl.zeros([ROWS, DIM], tl.float32)
    all_top, all_total, all_found = top, total, found
    for phase in tl.static_range(1 if WINDOW > 0 else 0, 2):  # tiles that all rows see, then the others
        for tile in tl.range(first_tile if phase == 0 else seen_by_all, seen_by_all if phase == 0 else end_tile,
                             num_stages=STAGES):
            top, total, found = attend_tile(
                top, total, found, asked, position, last_place, tile * KEY_TILE, kv, scales, tables,
                block_stride, value_offset, scale_block_stride, scale_value_offset, to_log2, softcap, cap_scale,
                KEY_TILE, BLOCK_SIZE, HEAD_DIM, WINDOW, phase == 1, CAPPED, SCALED)
            if WHOLE:  # noqa: SIM102  (the first is decided when the kernel is compiled)
                if (tile + 1) % (KEY_SPLIT // KEY_TILE) == 0:
                    all_top, all_total, all_found = merge(all_top, all_total, all_found, top, total, found)
                    top, total = tl.full([ROWS], LOWEST, tl.float32), tl.zeros([ROWS], tl.float32)
                    found = tl.zeros([ROWS, DIM], tl.float32)
    is_kept = is_row[:, None] & (dims[None, :] < HEAD_DIM)
    if WHOLE:
        all_top, all_total, all_found = merge(all_top, all_total, all_found, top, total, found)
        place_out = (row[:, None] * (GROUPS * tl.num_programs(1)) + heads[:, None]) * HEAD_DIM + dims[None, :]
        result = divided(all_found, all_total)
        tl.store(out + place_out, rounded(result, out.dtype.element_ty), is_kept)
    else:
        split = first_tile // (KEY_SPLIT // KEY_TILE)
        sees = is_row & (position >= split * KEY_SPLIT)
        if WINDOW > 0:
            sees = sees & (position - WINDOW + 1 < (split + 1) * KEY_SPLIT)
        slot = (tl.load(slots + row, is_row, other=0) + split).to(tl.int64) * (GROUPS * tl.num_programs(1)) + heads
        tl.store(stats + 2 * slot, top, sees)
        tl.store(stats + 2 * slot + 1, total, sees)
        tl.store(sums + slot[:, None] * HEAD_DIM + dims[None, :], found, is_kept & sees[:, None])


@triton.jit
def merge_splits(
    out, stats, sums, positions, slots, merged, counts, num_heads,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, HEADS: tl.constexpr, KEY_SPLIT: tl.constexpr, WINDOW: tl.constexpr,
    UNROLLED: tl.constexpr,
):  # fmt: skip
    """Program (row, heads of it): what its splits gave, in ascending order."""
    if tl.program_id(0) >= tl.load(counts + 2):
        return
    row = tl.load(merged + tl.program_id(0)).to(tl.int64)
    position = tl.load(positions + row)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(position - WINDOW + 1, 0) // KEY_SPLIT
    end = position // KEY_SPLIT + 1
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    dims = tl.arange(0, DIM)
    is_head = heads < num_heads
    is_kept = is_head[:, None] & (dims[None, :] < HEAD_DIM)
    base = tl.load(slots + row).to(tl.int64)
    top, total = tl.full([HEADS], LOWEST, tl.float32), tl.zeros([HEADS], tl.float32)
    found = tl.zeros([HEADS, DIM], tl.float32)
    for begin in range(first, end, UNROLLED):
        for i in tl.static_range(UNROLLED):
            is_split = begin + i < end
            slot = (base + begin + i) * num_heads + heads
            top2 = tl.load(stats + 2 * slot, is_head & is_split, other=LOWEST)
            total2 = tl.load(stats + 2 * slot + 1, is_head & is_split, other=0.0)
            found2 = tl.load(sums + slot[:, None] * HEAD_DIM + dims[None, :], is_kept & is_split, other=0.0)
            top, total, found = merge(top, total, found, top2, total2, found2)
    result = divided(found, total)
    place = (row * num_heads + heads[:, None]) * HEAD_DIM + dims[None, :]
    tl.store(out + place, rounded(result, out.dtype.element_ty), is_kept)


def attend(
    query: torch.Tensor, kv: torch.Tensor, scales: torch.Tensor | None, layer: int, work: Work, scratch: Scratch,
    sizes: Attention, scaling: float, window: int | None = None, softcap: float | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Causal attention of the rows of `work` over their cells of one layer; rows that no list names stay as they are.

    query   [rows, heads, head_dim]: the last two contiguous
    kv      [blocks, layers, 2 (K, V), kv_heads, block_size, head_dim], scales likewise without head_dim where kv holds
            codes of fp8 or int8: a cell is code * scale
    scaling of the scores; window: a row sees its own position and window - 1 before it; softcap: Gemma 2's
    -> [rows, heads, head_dim] of the query's dtype
    """
    if out is None:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    num_heads, head_dim = query.shape[1:]
    kv_heads, block_size = kv.shape[3:5]
    cells = kv[:, layer]
    of_cells = query if scales is None else scales[:, layer]
    strides = (0, 0, 0) if scales is None else (of_cells.stride(0), of_cells.stride(2), of_cells.stride(1))
    dim = max(triton.next_power_of_2(head_dim), 16)
    shape = dict(HEAD_DIM=head_dim, DIM=dim, KEY_SPLIT=sizes.key_split, WINDOW=window or 0)
    for items, is_whole, tile in ((work.whole, True, sizes.whole), (work.split, False, sizes.split)):
        if not len(items):
            continue
        attend_items[(len(items), kv_heads)](
            query, cells, of_cells, out, scratch.stats, scratch.sums, work.rows, work.tables, work.positions,
            work.slots, items, work.counts, query.stride(0), cells.stride(0), cells.stride(2), cells.stride(1),
            *strides, (1 if softcap else scaling) * LOG2_E, softcap or 0.0, scaling / softcap if softcap else 0.0,
            WHOLE=is_whole, GROUPS=num_heads // kv_heads, ROWS=tile.rows, KEY_TILE=sizes.key_tile,
            BLOCK_SIZE=block_size, CAPPED=softcap is not None, SCALED=scales is not None,
            STAGES=tile.stages, num_warps=tile.warps, **shape)
    if len(work.merged):
        merge_splits[(len(work.merged), triton.cdiv(num_heads, MERGED_HEADS))](
            out, scratch.stats, scratch.sums, work.positions, work.slots, work.merged, work.counts, num_heads,
            HEADS=MERGED_HEADS, UNROLLED=UNROLLED, num_warps=1, **shape)
    return out


def variants(chip: Chip) -> list[Variant]:
    """Head sizes, both kinds of items, windows, capped scores, codes for K and V, and bf16 beside fp16."""
    codes = ("*i8",) if chip.name == "sm_80" else ("*i8", "*fp8e4nv")     # older chips cannot convert fp8
    kinds = [(head_dim, "*bf16", 0, False) for head_dim in (64, 80, 96, 128, 256)]
    kinds += [(128, "*fp16", 0, False), (128, "*bf16", 1024, False)]
    kinds += [(head_dim, "*bf16", 1024, True) for head_dim in (128, 256)]
    kinds += [(head_dim, cells, 0, False) for head_dim in (64, 128, 256) for cells in codes]
    found = [_variant(chip, *kind, is_whole) for kind in kinds for is_whole in (True, False)]
    pointers = dict(out="*bf16", stats="*fp32", sums="*fp32", positions="*i32", slots="*i32", merged="*i32",
                    counts="*i32", num_heads="i32:16")
    shape = dict(HEAD_DIM=128, DIM=128, HEADS=MERGED_HEADS, KEY_SPLIT=512, WINDOW=0, UNROLLED=UNROLLED)
    merging = Variant("merge_splits", merge_splits, pointers, shape, num_warps=1, num_stages=3)
    return [*(variant for variant in found if variant), merging]


def _variant(chip: Chip, head_dim: int, cells: str, window: int, is_capped: bool, is_whole: bool
             ) -> Variant | None:
    """None where such items are never made."""
    has_codes = cells not in ("*bf16", "*fp16")
    sizes = attention_of(chip.name, head_dim, has_codes or is_capped)
    if is_whole and sizes.least_whole == NEVER:
        return None
    numbers = "*bf16" if has_codes else cells
    tile = sizes.whole if is_whole else sizes.split
    kind = f"{'_window' * (window > 0)}{'_cap' * is_capped}{('_' + cells[1:]) * (cells != '*bf16')}"
    name = f"{'whole' if is_whole else 'split'}_{head_dim}{kind}"
    lists = dict.fromkeys(("rows", "tables", "positions", "slots", "items", "counts"), "*i32")
    strides = dict.fromkeys(("query_stride", "block_stride", "head_stride", "value_offset", "scale_block_stride",
                             "scale_head_stride", "scale_value_offset"), "i32:16")    # fmt: skip
    scalars = dict.fromkeys(("to_log2", "softcap", "cap_scale"), "fp32")
    pointers = dict(query=numbers, kv=cells, scales="*fp32" if has_codes else numbers, out=numbers, stats="*fp32",
                    sums="*fp32")
    constants = dict(
        WHOLE=is_whole, GROUPS=4, HEAD_DIM=head_dim, DIM=triton.next_power_of_2(head_dim), ROWS=tile.rows,
        KEY_TILE=sizes.key_tile, KEY_SPLIT=sizes.key_split, BLOCK_SIZE=16, WINDOW=window, CAPPED=is_capped,
        SCALED=has_codes, STAGES=tile.stages)
    return Variant(name, attend_items, {**pointers, **lists, **strides, **scalars}, constants, tile.warps, tile.stages,
                   ("matrix", "copies"))
