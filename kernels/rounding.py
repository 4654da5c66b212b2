"""How kernels round what they have computed in float32: to nearest, ties to even, once."""

import triton
import triton.language as tl

from streamproc.kernels.interpreting import INTERPRETING

CUTS_BFLOAT16 = tl.constexpr(INTERPRETING)      # the interpreter drops the low bits where a chip rounds


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 -> dtype (bfloat16, float16 or float32)."""
    if CUTS_BFLOAT16 and dtype == tl.bfloat16:
        bits = tl.where(x == x, x, 0.0).to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        y = tl.where(x == x, bits, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        y = x.to(dtype)
    return y


@triton.jit
def e4m3(x):
    """float32 within -448 .. 448 -> its bits in float8_e4m3fn, as uint8. In integers: chips before sm_89 lack it."""
    bits = x.to(tl.uint32, bitcast=True)
    size = tl.abs(x)
    normal = size.to(tl.uint32, bitcast=True)
    normal = ((normal + 0x7FFFF + ((normal >> 20) & 1)) >> 20) - ((127 - 7) << 3)
    # 2^14 has an ulp of 2^-9, which is that of the subnormal: the addition rounds to it.
    small = (size + 16384.0).to(tl.uint32, bitcast=True) & 0xF
    code = tl.where(size < 0.015625, small, normal)
    return (code | ((bits >> 31) << 7)).to(tl.uint8)


@triton.jit
def int8(x):
    """float32 within -127 .. 127 -> int8."""
    # 1.5 * 2^23 has an ulp of 1: the addition rounds to integers.
    return ((x + 12582912.0) - 12582912.0).to(tl.int8)
