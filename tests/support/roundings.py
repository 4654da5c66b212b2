"""How far a result may lie from what is exact."""

import torch

EPSILON = {torch.float32: 2.0 ** -23, torch.float16: 2.0 ** -10, torch.bfloat16: 2.0 ** -7}     # an ulp of 1
TINY = {torch.float32: 2.0 ** -126, torch.float16: 2.0 ** -14, torch.bfloat16: 2.0 ** -126}     # the smallest normal


def assert_rounded_once(actual: torch.Tensor, exact: torch.Tensor, ulps: float | torch.Tensor = 4) -> None:
    """Each number is the exact one (float64), but for this many ulps of float32, rounded once to its own dtype."""
    exact, found = exact.cpu(), actual.cpu().double()
    assert found.shape == exact.shape
    size = torch.frexp(exact.abs().clamp_min(TINY[actual.dtype])).exponent - 1      # of the power of two below
    own_ulp = torch.ldexp(torch.full_like(exact, EPSILON[actual.dtype]), size)
    half = 0 if actual.dtype == torch.float32 else own_ulp / 2
    away = (found - exact).abs() - half - ulps * 2.0 ** -23 * exact.abs() - 2.0 ** -126
    worst = away.flatten().argmax() if away.numel() else 0
    assert bool((away <= 0).all()), f"{found.flatten()[worst]} is not {exact.flatten()[worst]}, at {worst}"
