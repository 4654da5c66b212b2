"""Rotary embedding of queries and keys, with the norms that some models have before it; keys and values into cells."""

import torch
import triton
import triton.language as tl

from streamproc.kernels.compiling import Variant
from streamproc.kernels.configs import Chip
from streamproc.kernels.rounding import e4m3, int8, rounded


def rotary_write(qkv: torch.Tensor, cells: torch.Tensor, positions: torch.Tensor, cosines: torch.Tensor | None,
                 sines: torch.Tensor | None, kv: torch.Tensor, scales: torch.Tensor | None, layer: int, num_heads: int,
                 query_norm: torch.Tensor | None = None, key_norm: torch.Tensor | None = None, eps: float = 0.0,
                 out: torch.Tensor | None = None) -> torch.Tensor:
    """Turns every pair (x1, x2) of a head by its position's angle (Su et al., 2021): x1 cos - x2 sin, x2 cos + x1 sin.

    qkv: [rows, (num_heads + 2 * kv_heads) * head_dim], heads of queries, of keys, of values; rows may lie apart
    cells: [rows] int32, block * block_size + slot that the row's key and value go to; -1: nowhere
    positions: [rows] int32, a row of cosines and sines; where a row's cell is -1 too
    cosines, sines: [positions, rotated / 2] float32; x1 is a head's first rotated / 2 dimensions, x2 the next ones,
        what is left of head_dim stays as it is; both None: all of it does
    kv: [num_blocks + 1, layers, 2 (K, V), kv_heads, block_size, head_dim] of qkv's dtype, or of int8 or float8_e4m3fn:
        codes, of which each cell's head has a scale, the largest number / 127 or / 448
    scales: [num_blocks + 1, layers, 2, kv_heads, block_size] float32; None where kv has no codes. A head with a number
        that is not finite gets codes of 0 and a scale that is not finite either, so that it reads as NaN
    query_norm, key_norm: [head_dim] float32, weights of RMS norms of each head before it is turned, both or neither
    -> [rows, num_heads, head_dim] of qkv's dtype, in `out` where one is given: the queries
    """
    rows, (kv_heads, block_size, head_dim) = qkv.shape[0], kv.shape[3:]
    assert (kv.element_size() == 1) == (scales is not None), "codes have scales, and nothing else has"
    assert (query_norm is None) == (key_norm is None), "queries and keys have norms, or neither has"
    if out is None:
        out = torch.empty(rows, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    if rows:
        turn_and_write[(rows, num_heads + 2 * kv_heads)](
            qkv, cells, positions, cosines, sines, query_norm, key_norm,
            kv.view(torch.uint8) if kv.dtype == torch.float8_e4m3fn else kv, scales, out,
            qkv.stride(0), out.stride(0), out.stride(1), layer, *kv.stride()[:5],
            *((0,) * 5 if scales is None else scales.stride()), eps,
            num_heads, kv_heads, head_dim, 0 if cosines is None else cosines.shape[1], block_size,
            triton.next_power_of_2(head_dim), num_warps=1)
    return out


def variants(chip: Chip) -> list[Variant]:
    return [variant_of(128, "bf16", has_norms=True), variant_of(128, "i8"), variant_of(128, "u8"),
            variant_of(80, "bf16"), variant_of(256, "bf16", has_norms=True), variant_of(256, "u8", has_norms=True),
            variant_of(128, "bf16", half=0)]  # fmt: skip


def variant_of(head_dim: int, kv: str, has_norms: bool = False, half: int | None = None) -> Variant:
    half = head_dim // 2 if half is None else half
    types = {"qkv_ptr": "*bf16", "cells_ptr": "*i32", "positions_ptr": "*i32", "kv_ptr": f"*{kv}", "out_ptr": "*bf16",
             "layer": "i32", "eps": "fp32"}  # fmt: skip
    strides = [name for name in turn_and_write.arg_names if name.endswith("_stride")]
    types |= dict.fromkeys(strides, "i32:16")
    constants = {"NUM_HEADS": 32, "KV_HEADS": 8, "HEAD_DIM": head_dim, "HALF": half, "BLOCK_SIZE": 16,
                 "BLOCK": triton.next_power_of_2(head_dim)}  # fmt: skip
    optional = {"cosines_ptr": half, "sines_ptr": half, "query_norm_ptr": has_norms, "key_norm_ptr": has_norms,
                "scales_ptr": kv != "bf16"}  # fmt: skip
    types |= {name: "*fp32" for name, is_given in optional.items() if is_given}
    constants |= {name: None for name, is_given in optional.items() if not is_given}
    if kv != "bf16":
        del types["scale_slot_stride"]
        constants["scale_slot_stride"] = 1
    name = f"{head_dim}_{half}_{kv}{'_normed' if has_norms else ''}"
    return Variant(name, turn_and_write, types, constants, num_warps=1, num_stages=3, blocks_per_multiprocessor=24)


@triton.jit(do_not_specialize=["layer"])
def turn_and_write(qkv_ptr, cells_ptr, positions_ptr, cosines_ptr, sines_ptr, query_norm_ptr, key_norm_ptr,
                   kv_ptr, scales_ptr, out_ptr, qkv_stride, out_stride, out_head_stride, layer,
                   kv_block_stride, kv_layer_stride, kv_part_stride, kv_head_stride, kv_slot_stride,
                   scale_block_stride, scale_layer_stride, scale_part_stride, scale_head_stride, scale_slot_stride,
                   eps, NUM_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr,
                   BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """A program has one head of one row."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    here = columns < HEAD_DIM
    source = qkv_ptr + row * qkv_stride + head * HEAD_DIM
    x = tl.load(source + columns, here, 0.0).to(tl.float32)
    if head < NUM_HEADS + KV_HEADS:
        is_first, is_turned = columns < HALF, columns < 2 * HALF
        partners = tl.where(is_first, columns + HALF, columns - HALF)
        partner = tl.load(source + partners, is_turned, 0.0).to(tl.float32)
        if query_norm_ptr is not None:
            scale = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(x * x, 0), HEAD_DIM * 1.0) + eps))
            norm_ptr = query_norm_ptr if head < NUM_HEADS else key_norm_ptr
            x = x * scale * tl.load(norm_ptr + columns, here, 0.0)
            partner = partner * scale * tl.load(norm_ptr + partners, is_turned, 0.0)
        if HALF:
            angles = tl.load(positions_ptr + row).to(tl.int64) * HALF + tl.where(is_first, columns, columns - HALF)
            cosine = tl.load(cosines_ptr + angles, is_turned, 1.0)
            sine = tl.load(sines_ptr + angles, is_turned, 0.0)
            turned = tl.fma(x, cosine, partner * tl.where(is_first, -sine, sine))
            x = tl.where(is_turned, turned, x)
    if head < NUM_HEADS:
        place = out_ptr + row * out_stride + head * out_head_stride
        tl.store(place + columns, rounded(x, out_ptr.dtype.element_ty), here)
    else:
        cell = tl.load(cells_ptr + row).to(tl.int64)     # a pool has more numbers than int32
        if cell >= 0:
            part = (head - NUM_HEADS) // KV_HEADS
            kv_head = (head - NUM_HEADS) % KV_HEADS
            block, slot = cell // BLOCK_SIZE, cell % BLOCK_SIZE
            place = kv_ptr + block * kv_block_stride + layer.to(tl.int64) * kv_layer_stride \
                + part * kv_part_stride + kv_head * kv_head_stride + slot * kv_slot_stride
            if scales_ptr is None:
                tl.store(place + columns, rounded(x, kv_ptr.dtype.element_ty), here)
            else:
                codes, scale = quantized(x, kv_ptr.dtype.element_ty)
                tl.store(place + columns, codes, here)
                tl.store(scales_ptr + block * scale_block_stride + layer.to(tl.int64) * scale_layer_stride
                         + part * scale_part_stride + kv_head * scale_head_stride + slot * scale_slot_stride, scale)


@triton.jit
def quantized(x, dtype: tl.constexpr):
    """[width] float32 -> codes, int8 or uint8 with the bits of e4m3, and the scale that they are multiplied by."""
    largest: tl.constexpr = 127.0 if dtype == tl.int8 else 448.0
    scale = tl.div_rn(tl.max(tl.where(x == x, tl.abs(x), float("inf")), 0), largest)
    is_usual = (scale > 0.0) & (scale < float("inf"))
    ratio = tl.where(is_usual, tl.div_rn(x, tl.where(is_usual, scale, 1.0)), 0.0)
    ratio = tl.minimum(tl.maximum(ratio, -largest), largest)       # a subnormal scale is not exact
    return int8(ratio) if dtype == tl.int8 else e4m3(ratio), scale
