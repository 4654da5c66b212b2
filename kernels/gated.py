"""The middle of a gated MLP: act(gate) * up, of both halves of one joined product."""

import torch
import triton
import triton.language as tl

from streamproc.kernels.compiling import Variant
from streamproc.kernels.configs import Chip
from streamproc.kernels.rounding import rounded

BLOCK = 1024


def gated(gate_up: torch.Tensor, is_gelu: bool, out: torch.Tensor | None = None) -> torch.Tensor:
    """act(gate) * up (Shazeer, 2020: SwiGLU and GEGLU).

    gate_up: [rows, 2 * inner], all gates and then all ups, of bfloat16, float16 or float32; rows may lie apart
    is_gelu: act is GELU in its form with tanh; else SiLU
    -> [rows, inner] of gate_up's dtype, in `out` where one is given
    """
    rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, inner, dtype=gate_up.dtype, device=gate_up.device) if out is None else out
    if rows:
        activate[(rows, triton.cdiv(inner, BLOCK))](gate_up, out, inner, gate_up.stride(0), out.stride(0), is_gelu,
                                                    BLOCK, num_warps=4)
    return out


def variants(chip: Chip) -> list[Variant]:
    types = {"gate_up_ptr": "*bf16", "out_ptr": "*bf16",
             **dict.fromkeys(("inner", "gate_up_stride", "out_stride"), "i32:16")}  # fmt: skip
    return [Variant(name, activate, types, {"IS_GELU": name == "gelu", "BLOCK": BLOCK}, num_warps=4, num_stages=3,
                    blocks_per_multiprocessor=8) for name in ("silu", "gelu")]


@triton.jit
def activate(gate_up_ptr, out_ptr, inner, gate_up_stride, out_stride, IS_GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = columns < inner
    gates = gate_up_ptr + row * gate_up_stride + columns
    gate = tl.load(gates, here, 0.0).to(tl.float32)
    up = tl.load(gates + inner, here, 0.0).to(tl.float32)
    if IS_GELU:
        # 0.5 * (1 + tanh(u)) is sigmoid(2 u). Beyond 16 it is 0 or 1, and nothing overflows on the way.
        inside = tl.minimum(tl.maximum(gate, -16.0), 16.0)
        slope = _sigmoid(1.5957691216057308 * (inside + 0.044715 * inside * inside * inside))
    else:
        slope = _sigmoid(gate)
    tl.store(out_ptr + row * out_stride + columns, rounded(gate * slope * up, out_ptr.dtype.element_ty), here)


@triton.jit
def _sigmoid(x):
    small = tl.exp(-tl.abs(x))      # never more than 1
    return tl.div_rn(tl.where(x < 0.0, small, 1.0), 1.0 + small)
