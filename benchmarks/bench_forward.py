"""How fast is a step on the CPU: our own code beside torch with the same weights, in one run?

A llama-shaped model of 109M random parameters (12 layers, width 768, 12 heads in 4 KV groups, MLP 2,048, vocabulary
32,000). For every context, taken from the chosen code's own cells:

    question_ms     24 tokens of a question in one step, then 8 of an answer, one step each; median of the repeats
    forks_ms        the same for 8 questions over that context at once: they are computed together
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

from streamproc.engine.choice import cpu_forward, torch_forward
from streamproc.engine.forward import Forward, run_step
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.loaded import describe
from streamproc.schedule.plan import Chunk, Plan

BLOCK_SIZE = 16
QUESTION, ANSWER, PORTION, FORKS = 24, 8, 512, 8
SHAPE: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
                         "num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 32_000,
                         "max_position_embeddings": 32_768}  # fmt: skip


class Session:
    """One context, and forks of it whose last blocks are their own."""

    def __init__(self, forward: Forward, longest: int) -> None:
        self.forward = forward
        num_blocks, self.of_fork = -(-longest // BLOCK_SIZE), -(-(QUESTION + ANSWER) // BLOCK_SIZE) + 1
        self.table = tuple(range(num_blocks))
        self.kv = KVCache(forward.loaded.layout(BLOCK_SIZE), num_blocks + FORKS * self.of_fork, forward.loaded.device)

    def fork(self, index: int, context: int) -> tuple[int, ...]:
        """Its block table."""
        first, full = len(self.table) + index * self.of_fork, context // BLOCK_SIZE
        own = range(first, first + self.of_fork)
        if context % BLOCK_SIZE:
            self.kv.copy([(self.table[full], own[0])])
        return (*self.table[:full], *own)

    def step(self, start: int, count: int, tables: list[tuple[int, ...]] | None = None) -> float:
        """Seconds of one step of `count` tokens, of the session or of each fork."""
        ids = [tuple((start + i + 31 * j) * 7919 % 32_000 for i in range(count)) for j in range(len(tables or "1"))]
        plan = Plan((), tuple(Chunk(j, start, ids[j], table, 1) for j, table in enumerate(tables or [self.table])))
        started = time.perf_counter()
        run_step(self.forward, self.kv, plan)
        return time.perf_counter() - started

    def ask(self, context: int, tables: list[tuple[int, ...]] | None = None) -> float:
        """Seconds of a question and its answer, or of one of each fork."""
        first = self.step(context, QUESTION, tables)
        answer = sum(self.step(context + QUESTION + i, 1, tables) for i in range(ANSWER))
        return answer + first


def measure(forward: Forward, contexts: list[int], repeats: int) -> list[dict[str, Any]]:
    """One pass from empty to the longest context, with questions asked at each."""
    session = Session(forward, max(contexts) + QUESTION + ANSWER)
    rows, at, prefill_s = [], 0, 0.0
    for context in contexts:
        while at < context:
            count = min(PORTION, context - at)
            prefill_s += session.step(at, count)
            at += count
        forks = [session.fork(i, context) for i in range(FORKS)]
        one, all_ = (statistics.median(session.ask(at, tables) for _ in range(repeats)) for tables in (None, forks))
        rows.append({"code": forward.name, "context": context, "question_ms": one * 1e3, "forks_ms": all_ * 1e3,
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
