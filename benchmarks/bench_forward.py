"""How fast is a step on the CPU: our own code beside torch with the same weights, in one run?

A llama-shaped model of 109M random parameters (12 layers, width 768, 12 heads in 4 KV groups, MLP 2,048, vocabulary
32,000). For every context, taken from the chosen code's own cells:

    question_ms     24 tokens of a question in one step, then 8 of an answer, one step each; median of the repeats
    prefill         tokens/s from empty to that context, in steps of 512
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

import torch
from common import last_line, show
from transformers import AutoModelForCausalLM, LlamaConfig

from streamproc.engine.forward import Forward, cpu_forward, run_step, torch_forward
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.model import describe
from streamproc.schedule.plan import Chunk, Plan

BLOCK_SIZE = 16
QUESTION, ANSWER, PORTION = 24, 8, 512
SHAPE: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
                         "num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 32_000,
                         "max_position_embeddings": 32_768}  # fmt: skip


def step(forward: Forward, kv: KVCache, start: int, count: int) -> float:
    """Seconds of one step of `count` tokens."""
    ids = tuple((start + i) * 7919 % 32_000 for i in range(count))
    plan = Plan((), (Chunk(0, start, ids, tuple(range(kv.num_blocks)), 1),))
    started = time.perf_counter()
    run_step(forward, kv, plan)
    return time.perf_counter() - started


def measure(forward: Forward, contexts: list[int], repeats: int) -> list[dict[str, Any]]:
    """One pass from empty to the longest context, with questions asked at each."""
    num_blocks = -(-(max(contexts) + QUESTION + ANSWER) // BLOCK_SIZE)
    kv = KVCache(forward.loaded.layout(BLOCK_SIZE), num_blocks, forward.loaded.device)
    rows, at, prefill_s = [], 0, 0.0
    for context in contexts:
        while at < context:
            count = min(PORTION, context - at)
            prefill_s += step(forward, kv, at, count)
            at += count
        seconds = [step(forward, kv, at, QUESTION) + sum(step(forward, kv, at + QUESTION + i, 1) for i in range(ANSWER))
                   for _ in range(repeats)]  # fmt: skip
        rows.append({"code": forward.name, "context": context, "question_ms": statistics.median(seconds) * 1e3,
                     "prefill_tokens_per_s": context / prefill_s})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", default="1000,4000,16000")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    contexts = [int(text) for text in given.contexts.split(",")]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), attn_implementation="streamproc")
    loaded = describe(model.to(getattr(torch, given.dtype)).eval(), Path(), "109M")
    with torch.inference_mode():
        ours, theirs = cpu_forward(loaded, BLOCK_SIZE, torch.get_num_threads()), torch_forward(loaded, BLOCK_SIZE)[0]
    if ours is None:
        sys.exit("bench_forward: our own code was not compiled here; install the package where a C++ compiler is")
    rows = [row for forward in (ours, theirs) for row in measure(forward, contexts, given.repeats)]
    show(rows)
    last_line({"dtype": given.dtype, "threads": torch.get_num_threads(), "rows": rows})


if __name__ == "__main__":
    main()
