"""Norms of rows: correct to one rounding, and to the last bit the same in any company."""

import pytest
import torch
import torch.nn.functional as F
from guarded import guarded, poisoned
from roundings import assert_rounded_once

from streamproc.kernels import reference
from streamproc.kernels.rms_norm import add_rms_norm, rms_norm

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = 1e-6


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (5, 64), (2, 577), (3, 2560), (1, 16384), (0, 8)])
def test_norms_are_exact_but_for_one_rounding(rows: int, width: int, dtype: torch.dtype) -> None:
    x = guarded((numbers(rows, width) * 3).to(dtype))
    weight = guarded(numbers(width, seed=1) + 1)
    out = poisoned(rows, width, dtype=dtype)
    assert rms_norm(x, weight, EPS, out) is out
    exact = F.rms_norm(x.double(), (width,), weight.double(), EPS)
    assert_rounded_once(out, exact)
    assert torch.equal(reference.rms_norm(x.cpu(), weight.cpu(), EPS), exact.to(dtype).cpu())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 8), (4, 129), (2, 3072)])
def test_the_sum_is_rounded_and_then_normed(rows: int, width: int, dtype: torch.dtype) -> None:
    x, residual = guarded(numbers(rows, width).to(dtype)), guarded((numbers(rows, width, seed=1) * 9).to(dtype))
    weight, out = guarded(numbers(width, seed=2)), poisoned(rows, width, dtype=dtype)
    total, expected = (x.double() + residual.double()).to(dtype), residual.cpu().clone()
    also = reference.add_rms_norm(x.cpu(), expected, weight.cpu(), EPS)
    add_rms_norm(x, residual, weight, EPS, out)
    assert torch.equal(residual, total)
    assert torch.equal(expected, total.cpu())
    assert torch.equal(out, rms_norm(total, weight, EPS))
    assert_rounded_once(out, F.rms_norm(total.double(), (width,), weight.double(), EPS))
    assert_rounded_once(also, F.rms_norm(total.double(), (width,), weight.double(), EPS))


@pytest.mark.parametrize("rows", [255, 256, 257])
def test_a_row_has_the_same_bits_alone(rows: int) -> None:
    x, weight = guarded(numbers(rows, 96).bfloat16()), guarded(numbers(96))
    together = rms_norm(x, weight, EPS)
    for row in (0, 1, 128, rows - 1):
        assert torch.equal(rms_norm(x[row:row + 1], weight, EPS)[0], together[row])


def test_rows_may_lie_apart() -> None:
    joined, weight = numbers(5, 300), guarded(numbers(100))
    x, residual = guarded(joined[:, 100:200]), guarded(joined[:, :100])
    out, expected = guarded(joined[:, 200:]), rms_norm(x.contiguous(), weight, EPS)
    assert torch.equal(rms_norm(x, weight, EPS, out), expected)
    assert torch.equal(add_rms_norm(x, residual, weight, EPS, out),
                       add_rms_norm(x.contiguous(), guarded(joined[:, :100].contiguous()), weight, EPS))


@pytest.mark.parametrize("value", [0.0, 1e-30, 60000.0])
def test_rows_of_extreme_numbers(value: float) -> None:
    x, weight = guarded(torch.full((2, 48), value)), guarded(numbers(48))
    assert_rounded_once(rms_norm(x, weight, EPS), F.rms_norm(x.double(), (48,), weight.double(), EPS))


def test_a_row_that_is_not_a_number_stays_one_and_alone() -> None:
    x, weight = guarded(numbers(3, 40).bfloat16()), guarded(numbers(40))
    x[1, 7] = float("nan")
    assert rms_norm(x, weight, EPS).isnan().sum(1).tolist() == [0, 40, 0]
