"""The product of two tiles, added to a sum: the chip's matrix instructions, or the same in Triton's interpreter."""

import triton
import triton.language as tl

from streamproc.kernels.interpreting import INTERPRETING

INTERPRETED = tl.constexpr(INTERPRETING)


@triton.jit
def dot(a, b, total):
    """total [m, n] float32 + a [m, k] @ b [k, n], float32 operands without tf32.

    The interpreter multiplies the raw bits of bf16, and leaves fp32 to a BLAS, whose order of adding depends on the
    shapes. Here it adds along k in ascending order, whatever m and n are (2 or more: numpy adds pairwise what is
    contiguous), so that results of tiles of equal k can be compared bit by bit.
    """
    if INTERPRETED:
        products = a.to(tl.float32)[:, :, None] * b.to(tl.float32)[None, :, :]
        total += tl.sum(products, 1)
    else:
        total = tl.dot(a, b, total, input_precision="ieee")
    return total
