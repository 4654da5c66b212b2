"""What a question's steps cost at least on this machine: bytes that must be read and operations that must be done.

    floor_ms    for each of the 8 steps (24 rows, then 7 times one) the longer of reading weights and KV once at the
                measured memory rate and of computing at the measured rate of torch's bfloat16 product of 512 rows
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from peers.subject import ANSWER, QUESTION

TWO_BYTES = 2
TRIES = 7


def best_seconds(work: Callable[[], Any]) -> float:
    found = []
    for _ in range(TRIES):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def ceilings() -> dict[str, float]:
    """GB/s of reading memory and GFLOP/s of a bfloat16 product, as torch reaches them now; the best of some tries."""
    source = torch.ones(2**28, dtype=torch.uint8)
    target = torch.empty_like(source)
    read = source.numel() / best_seconds(lambda: source.view(torch.int64).max())
    moved = 2 * source.numel() / best_seconds(lambda: target.copy_(source))
    left = torch.randn(512, 2048).to(torch.bfloat16)
    right = torch.randn(2048, 2048).to(torch.bfloat16)
    rate = 2 * left.shape[0] * right.numel() / best_seconds(lambda: torch.nn.functional.linear(left, right))
    return {"read_gb_per_s": max(read, moved) / 1e9, "bf16_gflop_per_s": rate / 1e9}


def weights_of_a_step(shape: dict[str, Any]) -> int:
    """Parameters that every step reads: all but the embedding."""
    width, kv_width = shape["hidden_size"], shape["hidden_size"] * shape["num_key_value_heads"] // shape[
        "num_attention_heads"]  # fmt: skip
    layer = 2 * width * (width + kv_width) + 3 * width * shape["intermediate_size"]
    return int(shape["num_hidden_layers"] * layer + shape["vocab_size"] * width)


def floor(shape: dict[str, Any], context: int, measured: dict[str, float]) -> dict[str, float]:
    """Of a question of 24 + 8 tokens at this context."""
    weights, layers, width = weights_of_a_step(shape), shape["num_hidden_layers"], shape["hidden_size"]
    head_weights = shape["vocab_size"] * width
    kv_bytes = TWO_BYTES * 2 * layers * width * shape["num_key_value_heads"] // shape["num_attention_heads"]
    total_bytes = total_flops = total_s = 0.0
    for rows, at in [(QUESTION, context), *((1, context + QUESTION + i) for i in range(ANSWER - 1))]:
        read = TWO_BYTES * weights + kv_bytes * (at + rows)
        flops = 2 * rows * (weights - head_weights) + 2 * head_weights + 4 * rows * at * width * layers
        total_bytes, total_flops = total_bytes + read, total_flops + flops
        total_s += max(read / measured["read_gb_per_s"], flops / measured["bf16_gflop_per_s"]) / 1e9
    return {"gbytes": total_bytes / 1e9, "gflops": total_flops / 1e9, "floor_ms": total_s * 1e3}
