"""Every rounding of kernels is PyTorch's, for every kind of number."""

import pytest
import torch
import triton
import triton.language as tl
from guarded import guarded, poisoned

from streamproc.kernels.rounding import e4m3, int8, rounded


@triton.jit
def _round(x, out, size: tl.constexpr, kind: tl.constexpr):
    i = tl.arange(0, size)
    value = tl.load(x + i)
    if kind == "e4m3":
        tl.store(out + i, e4m3(value))
    elif kind == "int8":
        tl.store(out + i, int8(value))
    else:
        tl.store(out + i, rounded(value, out.dtype.element_ty))


def numbers() -> torch.Tensor:
    """16384 of them: of all sizes, close to ties and on them."""
    halves = torch.arange(-2048, 2048) / 2
    eighths = torch.ldexp(torch.arange(-2048, 2048).float(), -torch.arange(4096) % 23)
    wild = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * torch.logspace(-8, 3, 4096)
    return torch.cat([halves, eighths, wild, torch.nextafter(eighths, torch.tensor(9e9))])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_floats(dtype: torch.dtype) -> None:
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3.0e38, -1e-38, 1.0])
    x = torch.cat([numbers(), special.repeat(2048)])
    if dtype == torch.float16:
        x = x.clamp(-60000, 60000)
    out = poisoned(x.numel(), dtype=dtype)
    _round[(1,)](guarded(x), out, x.numel(), "float")
    assert torch.equal(out.cpu().nan_to_num(7), x.to(dtype).nan_to_num(7))
    assert torch.equal(out.cpu().isnan(), x.isnan())


def test_e4m3() -> None:
    x = numbers().clamp(-448, 448)
    out = poisoned(x.numel(), dtype=torch.uint8)
    _round[(1,)](guarded(x), out, x.numel(), "e4m3")
    assert torch.equal(out.cpu(), x.to(torch.float8_e4m3fn).view(torch.uint8))


def test_int8() -> None:
    x = numbers().clamp(-127, 127)
    out = poisoned(x.numel(), dtype=torch.int8)
    _round[(1,)](guarded(x), out, x.numel(), "int8")
    assert torch.equal(out.cpu(), x.round().to(torch.int8))
