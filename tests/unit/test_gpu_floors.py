"""Floors of Llama-3.1-8B against numbers worked out by hand."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from gpu.floors import Ceilings, Cost, Rows, Shape, attention, product, question_steps, step, total_seconds

LLAMA = Shape(layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, intermediate=14336, vocab=128256)
NORMS = 65 * 4096 * 4
LAYERS = 32 * (6144 * 4096 + 4096 * 4096 + 28672 * 4096 + 4096 * 14336)
HEAD = 128256 * 4096


def test_weights_and_kv_of_llama_3_1_8b() -> None:
    assert LLAMA.layer_weights == LAYERS == 6_979_321_856
    assert LLAMA.head_weights == HEAD == 525_336_576
    assert LLAMA.weight_bytes == 15_009_316_864 + NORMS     # 15.0 GB: the embedding is not read
    assert LLAMA.kv_bytes == 128 * 1024
    fp8 = Shape(32, 4096, 32, 8, 128, 14336, 128256, kv_itemsize=1, scale_bytes=4)
    assert fp8.kv_bytes == 66 * 1024


def test_a_decode_step() -> None:
    cost = step(LLAMA, [Rows(8192, 1, 1)] * 4)
    assert cost.bytes == LLAMA.weight_bytes + 4 * 8192 + 4 * 8193 * 131_072
    assert cost.flops == 4 * (2 * (LAYERS + HEAD) + 4 * 32 * 32 * 128 * 8193)


def test_a_step_without_samples_does_not_read_the_head() -> None:
    cost = step(LLAMA, [Rows(0, 2048)])
    assert cost.bytes == LAYERS * 2 + NORMS + 2048 * 8192 + 2048 * 131_072
    assert cost.flops == 2 * 2048 * LAYERS + 4 * 32 * 4096 * (2048 * 2049 // 2)


def test_forks_read_their_session_once() -> None:
    alone, forks = step(LLAMA, [Rows(1000, 24, 1)]), step(LLAMA, [Rows(1000, 24, 1), Rows(1000, 24, 1, shared=1000)])
    assert forks.bytes - alone.bytes == 24 * (8192 + 131_072)
    assert forks.flops == 2 * alone.flops


def test_the_steps_of_a_question() -> None:
    steps = question_steps(1000, 24, 8)
    assert [[(rows.start, rows.count, rows.samples) for rows in each] for each in steps] == [
        [(1000, 24, 1)], *([(1024 + i, 1, 1)] for i in range(7))]  # fmt: skip
    slow = Ceilings(1e9, 1e30, 1, 1)        # nothing but bytes counts
    cells = (1000 + 24) + sum(1025 + i for i in range(7))
    expected = 8 * LLAMA.weight_bytes + 31 * 8192 + cells * 131_072
    assert total_seconds(LLAMA, steps, slow) == pytest.approx(expected / 1e9, rel=1e-12)


def test_a_floor_is_the_longer_of_bytes_and_operations() -> None:
    assert Cost(10, 10).seconds(Ceilings(1, 5, 1, 1)) == 10
    assert Cost(10, 10).seconds(Ceilings(5, 1, 1, 1)) == 10
    assert Cost(1, 2) + Cost(3, 4) == Cost(4, 6)


def test_a_product_and_a_layers_attention() -> None:
    assert product(2, 3, 5, 2) == Cost(2 * (10 + 15 + 6), 60)
    cost = attention(LLAMA, [Rows(99, 1), Rows(99, 1, shared=99)])
    assert cost.bytes == 2 * 2 * 4096 * 2 + 101 * 4096
    assert cost.flops == 4 * 4096 * 200
