"""The token with the largest logit, of those that are allowed. However the vocabulary is cut: nothing is added up."""

import torch
import triton
import triton.language as tl

from streamproc.kernels.compiling import Variant
from streamproc.kernels.configs import Chip

PART = 4096         # of the vocabulary, to one program
STUCK = -1
NONE = tl.constexpr(0x7FFFFFFF)      # no token's id: nothing is allowed


def greedy(logits: torch.Tensor, mask: torch.Tensor | None = None, masked: torch.Tensor | None = None
           ) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest of the ids that have the largest logit.

    logits: [rows, vocab] of bfloat16, float16 or float32; rows may lie apart
    mask: [n, ceil(vocab / 32)] int32; bit i % 32 of word i // 32, from the lowest, says that token i is allowed
    masked: [rows] int32, the row of mask that holds for a row; -1: every token may come. Both or neither
    -> ids [rows] int32, -1 (STUCK) where nothing is allowed; their logits [rows] float32, -inf where nothing is, NaN
       where any of the row's logits is NaN, allowed or not: the id then says nothing
    """
    assert (mask is None) == (masked is None), "masks, and whose they are"
    rows, vocab = logits.shape
    num_parts = triton.cdiv(vocab, PART)
    part_ids, ids = (torch.empty(shape, dtype=torch.int32, device=logits.device) for shape in ((rows, num_parts), rows))
    part_best, best = (torch.empty(x.shape, dtype=torch.float32, device=logits.device) for x in (part_ids, ids))
    if rows:
        best_of_parts[(rows, num_parts)](
            logits, mask, masked, part_ids, part_best, vocab, num_parts, logits.stride(0),
            0 if mask is None else mask.stride(0), PART, num_warps=4)
        best_of_all[(rows,)](part_ids, part_best, ids, best, num_parts, triton.next_power_of_2(num_parts), num_warps=1)
    return ids, best


def variants(chip: Chip) -> list[Variant]:
    parts = {"logits_ptr": "*bf16", "part_ids_ptr": "*i32", "part_logits_ptr": "*fp32", "vocab": "i32:16",
             "num_parts": "i32", "logits_stride": "i32:16"}  # fmt: skip
    masks = {"mask_ptr": "*i32", "masked_ptr": "*i32"}
    last = {"part_ids_ptr": "*i32", "part_logits_ptr": "*fp32", "ids_ptr": "*i32", "best_ptr": "*fp32",
            "num_parts": "i32"}  # fmt: skip
    return [
        Variant("parts", best_of_parts, {**parts, "mask_stride": "i32:16"}, {**dict.fromkeys(masks), "PART": PART},
                num_warps=4, num_stages=3),
        Variant("parts_masked", best_of_parts, {**parts, **masks, "mask_stride": "i32"}, {"PART": PART},
                num_warps=4, num_stages=3),
        Variant("all", best_of_all, last, {"BLOCK": 32}, num_warps=1, num_stages=3),
    ]  # fmt: skip


@triton.jit
def best_of_parts(logits_ptr, mask_ptr, masked_ptr, part_ids_ptr, part_logits_ptr, vocab, num_parts, logits_stride,
                  mask_stride, PART: tl.constexpr):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = part * PART + tl.arange(0, PART)
    here = ids < vocab
    x = tl.load(logits_ptr + row * logits_stride + ids, here, float("-inf")).to(tl.float32)
    is_allowed = here
    if mask_ptr is not None:
        mask_row = tl.load(masked_ptr + row).to(tl.int64)
        words = tl.load(mask_ptr + mask_row * mask_stride + ids // 32, here & (mask_row >= 0), -1)
        is_allowed = here & (((words >> (ids % 32)) & 1) != 0)
    num_nan = tl.sum((x != x).to(tl.int32), 0)
    best, best_id = largest(x, ids, is_allowed)
    tl.store(part_ids_ptr + row * num_parts + part, best_id)
    tl.store(part_logits_ptr + row * num_parts + part, tl.where(num_nan > 0, float("nan"), best))


@triton.jit
def best_of_all(part_ids_ptr, part_logits_ptr, ids_ptr, best_ptr, num_parts, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    parts = tl.arange(0, BLOCK)
    here = parts < num_parts
    x = tl.load(part_logits_ptr + row * num_parts + parts, here, float("-inf"))
    ids = tl.load(part_ids_ptr + row * num_parts + parts, here, NONE)
    num_nan = tl.sum((x != x).to(tl.int32), 0)
    best, best_id = largest(x, ids, ids != NONE)
    tl.store(ids_ptr + row, tl.where(best_id == NONE, -1, best_id))
    tl.store(best_ptr + row, tl.where(num_nan > 0, float("nan"), best))


@triton.jit
def largest(x, ids, is_allowed):
    """-> the largest number that is allowed, -inf if none is; the lowest id of those that it has, or NONE."""
    best = tl.max(tl.where(is_allowed & (x == x), x, float("-inf")), 0)
    return best, tl.min(tl.where(is_allowed & (x == best), ids, NONE), 0)
