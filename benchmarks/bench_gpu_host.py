"""What does the CPU do for a step on a GPU? The runner's steps with a device that computes nothing.

All from the runner's call to its return, but for what goes to the device and comes back: checking the plan, its lists
of work, the row of numbers that the device gets, the graph that is looked up, and the greedy tokens. Attention is cut
as for sm_90, in blocks of 16 tokens; a model of 32 layers.

    decode n x c    one token of each of n sequences of c tokens, or up to a split fewer, whose blocks are the same as
                    in the step before
    draft 8 x c     drafts of 8 tokens: 9 rows of each sequence
    forks s x f     f forks of each of s sessions of c tokens: all but the last tokens are the session's
    new 64 x c      as decode, and one of the sequences is in a step for the first time
    grown 64 x c    as decode, and every sequence's blocks are told anew, as those of sessions are that grow
    prefill         2,048 tokens of one sequence

`step_us`: the median of a step, in microseconds of this thread's processor time, so that other work hardly matters.
`p90_us`: steps in which a sequence comes to its next split cost more.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

import torch
from telling import last_line, show

from streamproc.engine.gpu.forward import GpuForward
from streamproc.engine.gpu.parallel import ALONE
from streamproc.engine.gpu.staging import Staging
from streamproc.engine.kv_cache import KVCache, Layout
from streamproc.engine.runner import ModelRunner
from streamproc.kernels.attention_configs import attention_of
from streamproc.schedule.plan import Chunk, Plan

BLOCK_SIZE, HEADS, KV_HEADS, HEAD_DIM, LAYERS, GROWTH, FORK_TOKENS = 16, 32, 8, 128, 32, 256, 512
CPU = torch.device("cpu")
Ids = tuple[int, ...]


class Idle(GpuForward):
    """Whose every step gives token 0."""

    def _step(self, *_: Any) -> Any:
        return None, (torch.zeros(4096, dtype=torch.int32), torch.zeros(4096))


class Begun(Staging):
    """Whose copies to the device are only begun."""

    def upload(self, size: int) -> None:
        assert len(self.on_device[:size]) == len(self.numbers[:size])


class Replayed:
    """In place of graphs: each has been captured long ago."""

    are_used = True

    def run(self, key: Any, work: Callable[[], Any]) -> Any:
        hash(key)
        return RESULTS

    def forget(self) -> None:
        pass


RESULTS = Idle._step(None)  # type: ignore[arg-type]


def runner(num_blocks: int) -> ModelRunner:
    """With a pool whose cells are small: nobody reads them."""
    layout = Layout(1, 1, 1, BLOCK_SIZE, torch.bfloat16)
    loaded = SimpleNamespace(device=CPU, ranks=ALONE, layout=lambda _: layout, max_positions=None, vocab_size=1000,
                             ways=SimpleNamespace(deterministic=True), require_finite=lambda _: None)
    program = SimpleNamespace(layers=[SimpleNamespace(window=None)] * LAYERS, softcap=None, head_dim=HEAD_DIM,
                              num_heads=HEADS, num_kv_heads=KV_HEADS, rotary=SimpleNamespace(reserve=lambda _: False))
    ops = SimpleNamespace(NAME="nothing", attention_sizes=lambda *_: attention_of("sm_90", HEAD_DIM))
    idle: ModelRunner = object.__new__(ModelRunner)
    idle.loaded, idle.kv, idle._helpers, idle.constrainer = loaded, KVCache(layout, num_blocks, CPU), [], None
    idle.forward = Idle(loaded, program, ops)
    idle.forward._staging = Begun(CPU)
    idle.forward._graphs = Replayed()
    return idle


def tables(num_sequences: int, num_tokens: int, num_forks: int = 0) -> Iterator[Ids]:
    """Blocks of sequences, scattered over the pool; of forks, the first ones are their session's."""
    order = iter(torch.randperm(pool_size(num_sequences, num_tokens, num_forks)).tolist())
    for _ in range(num_sequences):
        session = [next(order) for _ in range(num_tokens // BLOCK_SIZE)]
        for _ in range(max(num_forks, 1)):
            yield (*session, *(next(order) for _ in range(FORK_TOKENS // BLOCK_SIZE)))


def pool_size(num_sequences: int, num_tokens: int, num_forks: int) -> int:
    return num_sequences * (num_tokens + max(num_forks, 1) * FORK_TOKENS) // BLOCK_SIZE


class Bench:
    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self.rows: list[dict[str, Any]] = []

    def decode(self, what: str, context: int, num_sequences: int, *, num_rows: int = 1,     # noqa: PLR0913
               num_forks: int = 0, news: int = 0) -> None:  # fmt: skip
        """news: so many sequences' blocks are told anew in every step, under numbers of their own where it is one."""
        idle = runner(pool_size(num_sequences, context, num_forks))
        given = list(tables(num_sequences, context, num_forks))

        def chunk(step: int, i: int) -> Chunk:
            table = (*given[i][:-1], given[i][-1]) if i < news else given[i]
            seq_id = i + 1000 * (step + 1) if news == 1 > i else i
            ids = tuple(range(num_rows))
            return Chunk(seq_id, context - BLOCK_SIZE // 2 * (i % 64) + step % GROWTH, ids, table, num_rows)

        steps = ([chunk(step, i) for i in range(len(given))] for step in range(self.repeats))
        name = f"{what} {num_sequences} x {num_forks or num_rows}" if num_forks else f"{what} {num_sequences}"
        self.measure(name, context, idle, steps)

    def prefill(self, start: int, num_rows: int = 2048) -> None:
        idle = runner(pool_size(1, start + num_rows, 0))
        table, = tables(1, start + num_rows)
        chunk = Chunk(0, start, tuple(range(num_rows)), table, 1)
        self.measure("prefill", start, idle, ([chunk] for _ in range(self.repeats)))

    def measure(self, what: str, context: int, idle: ModelRunner, steps: Iterator[Sequence[Chunk]]) -> None:
        taken: list[float] = []
        for chunks in steps:
            plan = Plan((), tuple(chunks))
            started = time.thread_time()
            idle._run(plan)
            taken.append(time.thread_time() - started)
        num_rows = sum(len(chunk.token_ids) for chunk in chunks)
        self.rows.append({"step": what, "context": context, "rows": num_rows,
                          "step_us": statistics.median(taken[3:]) * 1e6,
                          "p90_us": statistics.quantiles(taken[3:], n=10)[-1] * 1e6})  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=100)
    bench = Bench(parser.parse_args().repeats)
    torch.set_num_threads(1)
    gc.disable()
    for context in (2_048, 19_000 // BLOCK_SIZE * BLOCK_SIZE, 32_768):
        for num_sequences in (1, 4, 16, 64):
            bench.decode("decode", context, num_sequences)
    context = 19_000 // BLOCK_SIZE * BLOCK_SIZE
    bench.decode("draft", context, 8, num_rows=9)
    bench.decode("forks", context, 64, num_forks=8)
    bench.decode("new", context, 64, news=1)
    bench.decode("grown", context, 64, news=64)
    bench.prefill(0)
    bench.prefill(context)
    show(bench.rows)
    last_line({"decode_us": max(row["step_us"] for row in bench.rows if row["step"].startswith("decode")),
               "rows": bench.rows})  # fmt: skip


if __name__ == "__main__":
    main()
