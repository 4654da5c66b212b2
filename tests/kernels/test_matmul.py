"""Products: correct to one rounding, and a row's bits the same with any number of rows, in any tile."""

from dataclasses import replace

import pytest
import torch
from guarded import DEVICE, guarded, poisoned
from roundings import assert_rounded_once

from streamproc.kernels import reference
from streamproc.kernels.configs import Chip, ProductTile, config_of
from streamproc.kernels.matmul import matmul

CHIP = config_of(DEVICE)
INTERPRETS = DEVICE.type == "cpu"
LEAST = CHIP.product.least_piece
ROW_COUNTS = (1, 2, 15, 16, 17, 63, 64, 65, 130)
SHAPES = [(70, 4 * LEAST), (100, 2 * LEAST + 16), (130, LEAST), (65, 2 * LEAST + 3), (300, 48), (40, 4 * LEAST + 32)]
if not INTERPRETS:
    SHAPES += [(6144, 4096), (4096, 4096), (4096, 14336), (28672, 4096)]
CASES = [*((shape, torch.bfloat16) for shape in SHAPES), (SHAPES[0], torch.float16), (SHAPES[1], torch.float32),
         (SHAPES[3], torch.float32)]  # fmt: skip


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def operands(rows: int, columns: int, depth: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    x, weight, bias = numbers(rows, depth), numbers(columns, depth, seed=1), numbers(columns, seed=2)
    return guarded(x.to(dtype)), guarded(weight.to(dtype)), guarded(bias.to(dtype))


def assert_exact(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """As near as sums in float32 are in the worst case: half an ulp of the sum of sizes for every addition."""
    x, weight, bias = x.double(), weight.double(), bias.double()
    exact = x @ weight.T + bias
    sizes = x.abs() @ weight.abs().T + bias.abs()
    ulps = (x.shape[1] + 2) / 2 * sizes / exact.abs().clamp_min(1e-30)
    assert_rounded_once(y, exact, ulps.cpu())


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_products_are_exact_but_for_their_roundings(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for rows in (17, 130):
        x, weight, bias = operands(rows, *shape, dtype)
        out = poisoned(rows, shape[0], dtype=dtype)
        assert matmul(x, weight, bias, out) is out
        assert_exact(out, x, weight, bias)
    expected = reference.matmul(x.cpu(), weight.cpu(), bias.cpu())
    assert_exact(expected, x.cpu(), weight.cpu(), bias.cpu())
    assert torch.equal(reference.matmul(x.cpu(), weight.cpu()), (x.double() @ weight.double().T).to(dtype).cpu())


def bits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, chip: Chip = CHIP) -> torch.Tensor:
    """In float32: rounding to fewer bits would hide most differences."""
    return matmul(x, weight, bias, poisoned(x.shape[0], weight.shape[0], dtype=torch.float32), chip)


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_a_row_has_the_same_bits_with_any_number_of_rows(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, weight, bias = operands(max(ROW_COUNTS), *shape, dtype)
    together = bits(x, weight, bias)
    for rows in ROW_COUNTS:
        assert torch.equal(bits(x[:rows], weight, bias), together[:rows]), rows
    assert torch.equal(bits(x[-3:], weight, bias), together[-3:])
    assert torch.equal(matmul(x[:5], weight, bias), together[:5].to(dtype))


def test_these_shapes_meet_every_way_of_launching() -> None:
    plans = [CHIP.product.plan(rows, *shape) for rows in ROW_COUNTS for shape in SHAPES]
    ways = {(plan.num_pieces > 1, plan.has_programs) for plan in plans}
    assert ways == {(False, False), (True, False), (True, True)}
    if INTERPRETS:
        product = CHIP.product
        assert {plan.tile for plan in plans} == {*(tile for _, tiles in product.tiles for tile in tiles), product.odd}


TILES = ((16, 32), (32, 16), (16, 128), (128, 32)) if INTERPRETS else ((64, 32), (64, 64), (64, 128), (128, 64))


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[5]], ids=str)
def test_a_row_has_the_same_bits_in_tiles_of_any_size(shape: tuple[int, int]) -> None:
    x, weight, bias = operands(37, *shape, torch.bfloat16)
    expected = bits(x, weight, bias)
    depth = CHIP.product.odd.depth if INTERPRETS else 64
    for rows, columns in TILES:
        for group in (1, 8):
            tiles = ((0, (ProductTile(rows, columns, depth, 4, 3),)),)
            chip = replace(CHIP, product=replace(CHIP.product, tiles=tiles, group=group))
            assert torch.equal(bits(x, weight, bias, chip), expected), (rows, columns, group)


def test_pieces_are_summed_from_zero_and_added_in_their_order() -> None:
    x, weight, _ = operands(3, 70, 2 * LEAST, torch.float32)
    assert CHIP.product.num_pieces(70, 2 * LEAST) == 2
    first, second = (matmul(x[:, piece], weight[:, piece]) for piece in (slice(LEAST), slice(LEAST, None)))
    assert torch.equal(matmul(x, weight), first + second)


@pytest.mark.parametrize("rows", [3, 130])
def test_rows_may_lie_apart(rows: int) -> None:
    x, weight, out = (guarded(numbers(n, 400).bfloat16()[:, 100:100 + width])
                      for n, width in ((rows, 256), (72, 256), (rows, 72)))
    assert not x.is_contiguous()
    matmul(x, weight, None, out)
    assert torch.equal(out, matmul(x.contiguous(), weight.contiguous()))


def test_what_is_not_a_number_stays_in_its_row_and_column() -> None:
    x, weight, bias = operands(20, 70, 2 * LEAST, torch.bfloat16)
    expected = matmul(x, weight, bias)
    x[4, 9] = float("nan")
    weight[13, 2] = float("nan")
    y = matmul(x, weight, bias)
    assert y[4].isnan().all()
    assert y[:, 13].isnan().all()
    expected[4], expected[:, 13], y[4], y[:, 13] = 0, 0, 0, 0
    assert torch.equal(y, expected)


def test_no_rows_are_no_work() -> None:
    x, weight, bias = operands(2, 8, 32, torch.float32)
    assert matmul(x[:0], weight, bias).shape == (0, 8)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, weight, bias = operands(2, 8, 32, torch.float32)
    for wrong in ((x[:, :16], weight, bias, None), (x, weight, bias[:4], None), (x, weight, bias, x)):
        with pytest.raises(ValueError, match="do not fit"):
            matmul(*wrong)
    with pytest.raises(ValueError, match="apart"):
        matmul(x[:, ::2], weight[:, ::2])
