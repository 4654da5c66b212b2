"""Rotary embedding and writing: queries, and every byte of the pool, are what the formula says."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from guarded import guarded, poisoned
from roundings import assert_rounded_once

from streamproc.kernels import reference
from streamproc.kernels.rotary import rotary_write

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CODES = [torch.int8, torch.float8_e4m3fn]
NUM_BLOCKS, LAYERS, BLOCK_SIZE, LAYER = 4, 2, 4, 1
ALL = slice(None)


@dataclass
class Pool:
    """Blocks of bytes: those of K and V, those of the scales, and some that are nobody's."""

    memory: torch.Tensor
    kv: torch.Tensor
    scales: torch.Tensor | None

    @classmethod
    def of(cls, dtype: torch.dtype, kv_heads: int, head_dim: int) -> "Pool":
        cells = LAYERS * 2 * kv_heads * BLOCK_SIZE
        kv_bytes = cells * head_dim * dtype.itemsize
        scale_bytes = cells * 4 if dtype.itemsize == 1 else 0
        memory = guarded(torch.full((NUM_BLOCKS + 1, kv_bytes + scale_bytes + 16), 0x33, dtype=torch.uint8))
        kv = memory[:, :kv_bytes].view(dtype).unflatten(1, (LAYERS, 2, kv_heads, BLOCK_SIZE, head_dim))
        if not scale_bytes:
            return cls(memory, kv, None)
        scales = memory[:, kv_bytes:-16].view(torch.float32).unflatten(1, (LAYERS, 2, kv_heads, BLOCK_SIZE))
        return cls(memory, kv, scales)

    def cells(self, cells: torch.Tensor) -> torch.Tensor:
        """[rows, 2 (K, V), kv_heads, head_dim] as they read, in float64."""
        block, slot = cells // BLOCK_SIZE, cells % BLOCK_SIZE
        found = self.kv.float()[block, LAYER, :, :, slot].double()
        return found if self.scales is None else found * self.scales[block, LAYER, :, :, slot].double()[..., None]


@dataclass
class Step:
    """What a call is given; `exact` is what it is to give."""

    arguments: dict[str, Any]
    num_heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, rows: int, heads: tuple[int, int], head_dim: int, half: int, dtype: torch.dtype,
           has_norms: bool = False) -> "Step":
        generator = torch.Generator().manual_seed(rows)
        qkv = (torch.randn(rows, (heads[0] + 2 * heads[1]) * head_dim, generator=generator) * 2).to(dtype)
        angles = torch.outer(torch.arange(40), 10.0 ** -torch.linspace(0, 3, half)) if half else None
        weights = torch.randn(2, head_dim, generator=generator)
        cells = torch.randperm(NUM_BLOCKS * BLOCK_SIZE, generator=generator, dtype=torch.int32)[:rows]
        cells[1::3] = -1
        return cls({
            "qkv": guarded(qkv), "cells": guarded(cells),
            "positions": guarded(torch.randint(40, (rows,), dtype=torch.int32, generator=generator)),
            "cosines": None if angles is None else guarded(angles.cos()),
            "sines": None if angles is None else guarded(angles.sin()),
            "query_norm": guarded(weights[0]) if has_norms else None,
            "key_norm": guarded(weights[1]) if has_norms else None,
            "layer": LAYER, "num_heads": heads[0], "eps": 1e-6,
        }, *heads, head_dim)  # fmt: skip

    def write(self, pool: Pool, rows: slice = ALL) -> torch.Tensor:
        """The queries of these rows, whose keys and values are in the pool then."""
        given = dict(self.arguments)
        for name in ("qkv", "cells", "positions"):
            given[name] = guarded(given[name][rows].contiguous())
        out = poisoned(len(given["qkv"]), self.num_heads, self.head_dim, dtype=given["qkv"].dtype)
        assert rotary_write(**given, kv=pool.kv, scales=pool.scales, out=out) is out
        return out

    def pool(self, dtype: torch.dtype) -> Pool:
        return Pool.of(dtype, self.kv_heads, self.head_dim)

    def exact(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries, and [rows, 2, kv_heads, head_dim], as Llama's and Qwen3's authors write it, in float64."""
        given = self.arguments
        heads = given["qkv"].double().unflatten(1, (-1, self.head_dim))
        query, key, value = heads.split([self.num_heads, self.kv_heads, self.kv_heads], 1)
        turned = []
        for x, weight in ((query, given["query_norm"]), (key, given["key_norm"])):
            normed = x if weight is None else F.rms_norm(x, (self.head_dim,), weight.double(), given["eps"])
            if given["cosines"] is not None:
                cos, sin = (torch.cat([table, table], 1)[given["positions"]].double()[:, None]
                            for table in (given["cosines"], given["sines"]))
                part, rest = normed[..., :cos.shape[-1]], normed[..., cos.shape[-1]:]
                first, second = part.chunk(2, -1)
                normed = torch.cat([part * cos + torch.cat([-second, first], -1) * sin, rest], -1)
            turned.append(normed)
        return turned[0], torch.stack([turned[1], value], 1)


SHAPES = [      # rows, (heads, kv_heads), head_dim, rotated / 2
    (1, (1, 1), 16, 8),
    (4, (4, 2), 32, 8),
    (3, (3, 1), 80, 40),
    (2, (2, 2), 96, 24),
    (5, (4, 1), 64, 0),
    (2, (2, 1), 128, 64),
    (2, (1, 1), 256, 128),
    (0, (2, 1), 32, 16),
]


@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_queries_keys_and_values_are_exact_but_for_one_rounding(shape: Any, dtype: torch.dtype, has_norms: bool
                                                                ) -> None:
    step = Step.of(*shape, dtype, has_norms)
    pool, also = step.pool(dtype), step.pool(dtype)
    out, (query, kv) = step.write(pool), step.exact()
    near = torch.tensor(2.0 ** -20)     # sums of two products may cancel
    assert_near(out, query, near)
    cells = step.arguments["cells"]
    assert_near(pool.cells(cells)[cells >= 0].to(dtype), kv[cells >= 0], near)
    assert torch.equal(pool.cells(cells)[cells >= 0][:, 1], kv[cells >= 0][:, 1])      # values are copied
    expected = reference.rotary_write(**step.arguments, kv=also.kv, scales=None)
    assert_rounded_once(expected, query)
    assert_rounded_once(also.cells(cells)[cells >= 0].to(dtype), kv[cells >= 0])
    assert_only_these_cells(pool, cells)
    assert_only_these_cells(also, cells)


def assert_near(actual: torch.Tensor, exact: torch.Tensor, near: torch.Tensor) -> None:
    """But for one rounding, and for `near` of the largest number of the head."""
    ulps = near * 2 ** 23 * exact.abs().amax(-1, keepdim=True) / exact.abs().clamp_min(1e-30)
    assert_rounded_once(actual, exact, ulps=ulps)


def assert_only_these_cells(pool: Pool, cells: torch.Tensor) -> None:
    """Nothing else of the pool has been written to: other layers, other cells, the null block, what lies between."""
    is_written = torch.zeros_like(pool.memory, dtype=torch.bool)
    of_kv = is_written[:, :pool.kv[0].numel() * pool.kv.element_size()].unflatten(
        1, (*pool.kv.shape[1:5], pool.kv.shape[5] * pool.kv.element_size()))
    written = cells[cells >= 0]
    of_kv[written // BLOCK_SIZE, LAYER, :, :, written % BLOCK_SIZE] = True
    if pool.scales is not None:
        of_scales = is_written[:, pool.kv[0].numel():-16].unflatten(1, (*pool.scales.shape[1:], 4))
        of_scales[written // BLOCK_SIZE, LAYER, :, :, written % BLOCK_SIZE] = True
    assert bool((pool.memory[~is_written] == 0x33).all())


@pytest.mark.parametrize("codes", CODES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_are_those_of_the_reference(shape: Any, codes: torch.dtype) -> None:
    step = Step.of(*shape, torch.float32, has_norms=True)
    wide, pool = step.pool(torch.float32), step.pool(codes)
    assert torch.equal(step.write(pool), step.write(wide))
    cells = step.arguments["cells"]
    block, slot = cells[cells >= 0] // BLOCK_SIZE, cells[cells >= 0] % BLOCK_SIZE
    kv = wide.cells(cells)[cells >= 0]
    expected, scales = reference.quantized(kv.float(), codes)
    assert pool.scales is not None
    assert torch.equal(pool.kv.view(torch.uint8)[block, LAYER, :, :, slot], expected.view(torch.uint8))
    assert torch.equal(pool.scales[block, LAYER, :, :, slot], scales)
    assert_only_these_cells(pool, cells)
    away = (pool.cells(cells)[cells >= 0] - kv).abs()
    largest = kv.abs().amax(-1, keepdim=True)
    of_e4m3 = torch.maximum(kv.abs() / 16, largest / 448 / 1024)       # half an ulp: of 4 bits, or of a subnormal
    bound = largest / 254 if codes == torch.int8 else of_e4m3
    assert bool((away <= bound * (1 + 1e-6)).all())


@pytest.mark.parametrize("codes", CODES, ids=str)
def test_the_reference_quantises_what_the_formula_gives(codes: torch.dtype) -> None:
    step = Step.of(5, (3, 2), 48, 24, torch.bfloat16, has_norms=True)
    pool, (_, kv) = step.pool(codes), step.exact()
    reference.rotary_write(**step.arguments, kv=pool.kv, scales=pool.scales)
    cells = step.arguments["cells"]
    expected, scales = reference.quantized(kv[cells >= 0].float(), codes)
    assert torch.allclose(pool.cells(cells)[cells >= 0], expected.double() * scales.double()[..., None], rtol=1e-6)
    assert_only_these_cells(pool, cells)


@pytest.mark.parametrize("codes", CODES, ids=str)
@pytest.mark.parametrize("value", [0.0, 1e-44, 1e-38, 3e38, float("inf"), float("nan")])
def test_heads_of_extreme_numbers(value: float, codes: torch.dtype) -> None:
    step = Step.of(1, (1, 2), 16, 0, torch.float32)
    step.arguments["qkv"][0, 16:32] = torch.linspace(-1, 1, 16) * (value if value < 1e38 else 1)
    step.arguments["qkv"][0, 20] = value
    pool = step.pool(codes)
    step.write(pool)
    expected, scales = reference.quantized(step.arguments["qkv"][0, 16:].float().view(2, 2, 16), codes)
    cell = int(step.arguments["cells"][0])
    found = pool.kv[cell // BLOCK_SIZE, LAYER, :, :, cell % BLOCK_SIZE]
    assert torch.equal(found.cpu().view(torch.uint8), expected.cpu().view(torch.uint8))
    read = pool.cells(step.arguments["cells"])[0]
    if value < float("inf"):
        assert bool(read.isfinite().all())
        assert torch.equal(read, expected.double() * scales.double()[..., None])
    else:
        assert read.isnan().sum(-1).tolist() == [[16, 0], [0, 0]]


def test_what_is_not_turned_is_copied_whatever_it_is() -> None:
    step = Step.of(1, (1, 1), 32, 8, torch.float32)
    step.arguments["qkv"][0, 16:32] = torch.tensor([float("inf"), -0.0, float("-inf"), 3e-39]).repeat(4)
    pool = step.pool(torch.float32)
    out, expected = step.write(pool)[0, 0, 16:], step.arguments["qkv"][0, 16:32]
    assert torch.equal(out.view(torch.int32), expected.view(torch.int32))      # bits: 0.0 is not -0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, *CODES], ids=str)
def test_a_row_has_the_same_bits_alone(dtype: torch.dtype) -> None:
    step = Step.of(6, (4, 2), 48, 20, torch.bfloat16, has_norms=True)
    together, alone = step.pool(dtype), step.pool(dtype)
    out = step.write(together)
    for row in range(6):
        assert torch.equal(step.write(alone, slice(row, row + 1))[0], out[row])
    assert torch.equal(alone.memory, together.memory)


def test_rows_may_lie_apart() -> None:
    step = Step.of(4, (2, 1), 32, 16, torch.bfloat16)
    one, other = step.pool(torch.bfloat16), step.pool(torch.bfloat16)
    expected = step.write(one)
    joined = F.pad(step.arguments["qkv"], (16, 48))
    step.arguments["qkv"] = guarded(joined[:, 16:-48])
    out = rotary_write(**step.arguments, kv=other.kv, scales=None)
    assert torch.equal(out, expected)
    assert torch.equal(one.memory, other.memory)
