"""Gated MLPs: correct to one rounding for gates of any size."""

import pytest
import torch
import torch.nn.functional as F
from guarded import guarded, poisoned
from roundings import assert_rounded_once

from streamproc.kernels import reference
from streamproc.kernels.gated import gated

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def slope_of(gate: torch.Tensor, is_gelu: bool) -> torch.Tensor:
    """x of act's gate * sigmoid(x): 2 u for GELU's (1 + tanh(u)) / 2, of which float64 keeps no digits at u = -20."""
    return (8 / torch.pi) ** 0.5 * (gate + 0.044715 * gate ** 3) if is_gelu else gate


def assert_gated(actual: torch.Tensor, gate_up: torch.Tensor, is_gelu: bool) -> None:
    gate, up = gate_up.double().cpu().chunk(2, -1)
    x = slope_of(gate, is_gelu)
    # exp makes of a relative error of x one that is |x| times as large
    assert_rounded_once(actual, gate / (1 + torch.exp(-x)) * up, ulps=8 + 4 * x.abs())


@pytest.mark.parametrize("is_gelu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "inner"), [(1, 1), (3, 7), (2, 1024), (5, 1025), (1, 3001), (0, 8)])
def test_it_is_exact_but_for_one_rounding(rows: int, inner: int, dtype: torch.dtype, is_gelu: bool) -> None:
    gate_up = guarded((torch.randn(rows, 2 * inner, generator=torch.Generator().manual_seed(0)) * 2).to(dtype))
    out = poisoned(rows, inner, dtype=dtype)
    assert gated(gate_up, is_gelu, out) is out
    assert_gated(out, gate_up, is_gelu)
    assert_gated(reference.gated(gate_up.cpu(), is_gelu), gate_up, is_gelu)


def test_it_is_what_models_call_silu_and_gelu() -> None:
    gate_up = torch.randn(3, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gate, up = gate_up.chunk(2, -1)
    assert torch.allclose(reference.gated(gate_up, False), F.silu(gate) * up, rtol=1e-14, atol=1e-15)
    assert torch.allclose(reference.gated(gate_up, True), F.gelu(gate, approximate="tanh") * up, rtol=1e-14,
                          atol=1e-15)


@pytest.mark.parametrize("is_gelu", [False, True])
def test_large_gates_saturate(is_gelu: bool) -> None:
    gates = torch.tensor([-3e38, -1000.0, -100.0, -20.0, -0.0, 0.0, 20.0, 100.0, 1e30, float("inf"), float("nan")])
    out = gated(guarded(torch.cat([gates, torch.ones(11)])[None].contiguous()), is_gelu).cpu()[0]
    assert out[:2].tolist() == [0.0, 0.0]
    assert (-1e-7 < out[3] < out[2] <= 0) if not is_gelu else (out[2] == out[3] == 0)
    assert out[4:10].tolist() == [0.0, 0.0, 20.0, 100.0, gates[8].item(), float("inf")]
    assert out[10].isnan()


def test_a_row_has_the_same_bits_alone_and_rows_may_lie_apart() -> None:
    joined = torch.randn(9, 4000, generator=torch.Generator().manual_seed(0)).bfloat16()
    gate_up, out = guarded(joined[:, 500:3100]), guarded(joined[:, 3:1303])
    gated(gate_up, False, out)
    for row in range(9):
        assert torch.equal(gated(guarded(gate_up[row:row + 1].contiguous()), False)[0], out[row])
