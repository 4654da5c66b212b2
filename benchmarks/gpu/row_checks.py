"""Row-wise kernels, products and moves of blocks against their references: fresh random inputs and shapes."""

from typing import Any

import torch

from gpu.bench import Bench
from gpu.checking import Table, both, near, same
from gpu.guards import Guards
from streamproc.kernels import reference

HALVES = (torch.bfloat16, torch.float16)
ONCE, OFTEN = 1.1, 16.0     # roundings: one, and what is lost in float32 before; or nothing but what is lost there
CODES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
ACCURACY = {"int8": 0.01, "fp8": 0.04}      # relative error of cells: a step is 1/127 of the largest, or 1/16 of each


def check(table: Table) -> None:
    bench = table.bench
    for dtype in (*HALVES, torch.float32):
        for width in bench.sizes.widths:
            table.case(f"rms_norm {width} {name(dtype)}", lambda g, w=width, d=dtype: norms(bench, g, w, d))
        for is_gelu in (False, True):
            table.case(f"gated {'gelu' if is_gelu else 'silu'} {name(dtype)}",
                       lambda g, e=is_gelu, d=dtype: gates(bench, g, e, d))
    for head_dim in bench.sizes.head_dims:
        table.case(f"rotary_write {head_dim}", lambda g, d=head_dim: rotary(bench, g, d, bench.dtype))
    for codes, dtype in CODES.items():
        table.case(f"rotary_write {codes}", lambda g, d=dtype, c=codes: quantised(bench, g, d, c))
    table.case("greedy", lambda g: tokens(bench, g))
    table.case("blocks", lambda g: moves(bench, g))
    for columns, depth in bench.sizes.products:
        table.case(f"matmul {columns} x {depth}", lambda g, c=columns, d=depth: products(bench, g, c, d))


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def allowed(dtype: torch.dtype) -> float:
    return OFTEN if dtype == torch.float32 else ONCE


def norms(bench: Bench, guards: Guards, width: int, dtype: torch.dtype) -> dict[str, Any]:
    """Alone and of a sum; a row alone has the bits that it has in company."""
    rows = bench.whole(1, 300 if width < 5000 else 40)
    x, residual = (guards.copy(bench.normal(rows, width, dtype=dtype)) for _ in range(2))
    weight = guards.copy(bench.normal(width, dtype=torch.float32))
    out, before = guards.empty(rows, width, dtype=dtype), residual.clone()
    bench.kernels.rms_norm(x, weight, 1e-5, out)
    first = near(out, reference.rms_norm(x.double(), weight, 1e-5), allowed(dtype))
    alone = bench.kernels.rms_norm(x[rows // 2:rows // 2 + 1], weight, 1e-5)
    company = same((alone, out[rows // 2:rows // 2 + 1]))
    out = guards.empty(rows, width, dtype=dtype)
    bench.kernels.add_rms_norm(x, residual, weight, 1e-5, out)
    total = (x.float() + before.float()).to(dtype)
    return both(first, company, near(out, reference.rms_norm(total.double(), weight, 1e-5), allowed(dtype)),
                same((residual, total)))


def gates(bench: Bench, guards: Guards, is_gelu: bool, dtype: torch.dtype) -> dict[str, Any]:
    rows, width = bench.whole(1, 300), bench.sizes.widths[0]
    x = guards.copy(bench.normal(rows, 2 * width, dtype=dtype) * 3)
    out = guards.empty(rows, width, dtype=dtype)
    bench.kernels.gated(x, is_gelu, out)
    return near(out, reference.gated(x.double(), is_gelu), allowed(dtype))


def rotary_input(bench: Bench, guards: Guards, head_dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of rotary_write but the pool."""
    rows, (heads, kv_heads), block_size = bench.whole(2, 60), bench.sizes.heads, bench.sizes.block_size
    angles = bench.normal(100, head_dim // 2, dtype=torch.float32)
    cells = torch.randperm(5 * block_size, device=bench.device, generator=bench.random, dtype=torch.int32)[:rows]
    cells[::7] = -1
    positions = torch.randint(100, (rows,), dtype=torch.int32, device=bench.device, generator=bench.random)
    norms_ = [guards.copy(bench.normal(head_dim, dtype=torch.float32)) for _ in range(2)]
    return {"qkv": guards.copy(bench.normal(rows, (heads + 2 * kv_heads) * head_dim, dtype=dtype)),
            "cells": guards.copy(cells), "positions": guards.copy(positions), "cosines": guards.copy(angles.cos()),
            "sines": guards.copy(angles.sin()), "layer": 1, "num_heads": heads, "query_norm": norms_[0],
            "key_norm": norms_[1], "eps": 1e-6}  # fmt: skip


def pool(bench: Bench, guards: Guards, head_dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Five blocks and the null block of two layers."""
    shape = (6, 2, 2, bench.sizes.heads[1], bench.sizes.block_size)
    kv = guards.empty(*shape, head_dim, dtype=dtype).zero_()
    return kv, guards.empty(*shape, dtype=torch.float32).zero_() if dtype.itemsize == 1 else None


def rotary(bench: Bench, guards: Guards, head_dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Queries; and every cell of the pool, those that nobody names being zero."""
    given = rotary_input(bench, guards, head_dim, dtype)
    kv, _ = pool(bench, guards, head_dim, dtype)
    out = guards.empty(len(given["cells"]), given["num_heads"], head_dim, dtype=dtype)
    bench.kernels.rotary_write(**given, kv=kv, scales=None, out=out)
    exact_kv = torch.zeros_like(kv, dtype=torch.float64)
    exact = reference.rotary_write(**{**given, "qkv": given["qkv"].double()}, kv=exact_kv, scales=None)
    unwritten = bool((kv[exact_kv.abs().amax(-1) == 0] == 0).all())
    return both(near(out, exact, allowed(dtype)), near(kv, exact_kv, allowed(dtype)), {"ok": unwritten})


def quantised(bench: Bench, guards: Guards, dtype: torch.dtype, codes: str) -> dict[str, Any]:
    """Cells as they read, against the numbers that were to be written."""
    given = rotary_input(bench, guards, bench.sizes.head_dims[0], bench.dtype)
    kv, scales = pool(bench, guards, bench.sizes.head_dims[0], dtype)
    assert scales is not None
    bench.kernels.rotary_write(**given, kv=kv, scales=scales)
    exact = torch.zeros(kv.shape, dtype=torch.float64, device=kv.device)
    reference.rotary_write(**{**given, "qkv": given["qkv"].double()}, kv=exact, scales=None)
    away = (kv.double() * scales.double()[..., None] - exact).norm() / exact.norm()
    return {"note": f"relative error of cells {float(away):.2g}", "ok": float(away) <= ACCURACY[codes]}


def tokens(bench: Bench, guards: Guards) -> dict[str, Any]:
    """With and without masks; ties, a row of which nothing is allowed."""
    rows, vocab = bench.whole(2, 60), bench.sizes.vocab
    logits = guards.copy(bench.normal(rows, vocab))
    logits[0, vocab // 3] = logits[0, vocab // 2] = 99
    words = -(-vocab // 32)
    mask = torch.randint(-2**31, 2**31 - 1, (3, words), dtype=torch.int32, device=bench.device, generator=bench.random)
    mask[1] = 0
    masked = torch.arange(rows, dtype=torch.int32, device=bench.device) % 4 - 1
    masks = guards.copy(mask), guards.copy(masked)
    pairs = [pair for given in ((), masks) for pair in zip(bench.kernels.greedy(logits, *given),
                                                           reference.greedy(logits, *given), strict=True)]
    return same(*pairs)


def moves(bench: Bench, guards: Guards) -> dict[str, Any]:
    """Out of the pool, back elsewhere, and about; nothing else changes."""
    count, size = bench.whole(3, 20), 16 * bench.whole(1, 5000)
    blocks = torch.randint(256, (3 * count, size), device=bench.device, generator=bench.random).to(torch.uint8)
    source, target = guards.copy(blocks), guards.copy(blocks)
    order = torch.randperm(3 * count, device=bench.device, generator=bench.random).int()
    taken, put, more = order.split(count)
    out = guards.empty(count, size, dtype=torch.uint8)
    bench.kernels.gather_blocks(source, taken, out)
    bench.kernels.scatter_blocks(target, put, out)
    bench.kernels.copy_blocks(target, taken, more)
    exact = blocks.clone()
    exact[put.long()] = exact[more.long()] = blocks[taken.long()]
    return same((out, blocks[taken.long()]), (target, exact), (source, blocks))


def products(bench: Bench, guards: Guards, columns: int, depth: int) -> dict[str, Any]:
    """And the bits of rows over numbers of rows, at other places."""
    most, dtype = bench.sizes.max_rows, bench.dtype
    x, weight = guards.copy(bench.normal(most, depth)), guards.copy(bench.normal(columns, depth) * depth ** -0.5)
    bias = guards.copy(bench.normal(columns))
    whole = bench.kernels.matmul(x, weight, bias, guards.empty(most, columns, dtype=dtype))
    found = near(whole, x.double() @ weight.double().T + bias.double(),
                 64.0 if dtype == torch.float32 else 1.5)
    step = 1 if bench.device.type == "cuda" else 23
    equal = torch.tensor(True, device=bench.device)
    for count in range(1, most + 1, step):
        first = count * 7919 % (most - count + 1)
        part = bench.kernels.matmul(x[first:first + count], weight, bias,
                                    guards.empty(count, columns, dtype=dtype) if count < 20 else None)
        equal &= (part == whole[first:first + count]).all()     # no NaN: `found` would tell
    return both(found, {"bits": "equal" if equal else "differ", "ok": bool(equal)})
