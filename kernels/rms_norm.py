"""Root mean square norms of rows, alone and of a sum. One program a row, whose width alone decides how it is summed."""

import torch
import triton
import triton.language as tl

from streamproc.kernels.compiling import Variant
from streamproc.kernels.configs import Chip
from streamproc.kernels.rounding import rounded

MAX_WIDTH = 16384


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, 2019).

    x: [rows, width] of bfloat16, float16 or float32; rows may lie apart
    weight: [width] float32; a model that norms by 1 + w gives that sum
    -> [rows, width] of x's dtype, in `out` where one is given
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    _launch(x, None, weight, eps, out)
    return out


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float,
                 out: torch.Tensor | None = None) -> torch.Tensor:
    """`rms_norm` of residual + x, which replaces residual; the sum is rounded to its dtype before the norm is taken.

    x, weight, out: as of rms_norm; residual: [rows, width]
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    _launch(x, residual, weight, eps, out)
    return out


def _launch(x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float,
            out: torch.Tensor) -> None:
    rows, width = x.shape
    assert width <= MAX_WIDTH, f"rows of {width} are wider than {MAX_WIDTH}"
    block = triton.next_power_of_2(width)
    if rows:
        normalize[(rows,)](
            x, residual, weight, out, x.stride(0), 0 if residual is None else residual.stride(0), out.stride(0),
            eps, width, block, num_warps=warps_of(block))


def warps_of(block: int) -> int:
    """A sum's order depends on it, so it depends on the width alone."""
    return min(max(block // 512, 1), 16)


def variants(chip: Chip) -> list[Variant]:
    return [variant_of(4096, False), variant_of(4096, True), variant_of(16384, True), variant_of(577, True)]


def variant_of(width: int, is_sum: bool) -> Variant:
    block, number = triton.next_power_of_2(width), "i32" if width % 16 else "i32:16"
    strides = dict.fromkeys(("x_stride", "residual_stride", "out_stride"), number)
    residual, none = ({"residual_ptr": "*bf16"}, {}) if is_sum else ({}, {"residual_ptr": None})
    return Variant(
        f"{'sum' if is_sum else 'row'}_of_{width}", normalize,
        {"x_ptr": "*bf16", "weight_ptr": "*fp32", "out_ptr": "*bf16", "eps": "fp32", **residual, **strides},
        {"WIDTH": width, "BLOCK": block, **none}, warps_of(block), num_stages=3,
    )  # fmt: skip


@triton.jit
def normalize(x_ptr, residual_ptr, weight_ptr, out_ptr, x_stride, residual_stride, out_stride, eps,
              WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    here = columns < WIDTH
    x = tl.load(x_ptr + row * x_stride + columns, here, 0.0).to(tl.float32)
    if residual_ptr is not None:
        residual = residual_ptr + row * residual_stride + columns
        total = rounded(tl.load(residual, here, 0.0).to(tl.float32) + x, residual_ptr.dtype.element_ty)
        tl.store(residual, total, here)
        x = total.to(tl.float32)
    weight = tl.load(weight_ptr + columns, here, 0.0)
    scale = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(x * x, 0), WIDTH * 1.0) + eps))
    tl.store(out_ptr + row * out_stride + columns, rounded(x * scale * weight, out_ptr.dtype.element_ty), here)
