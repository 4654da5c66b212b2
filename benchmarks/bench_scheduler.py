"""What does deciding cost? Plans and their records of progress, with a runner that computes nothing.

For every number of sequences: as many sessions, each with a context of 2,000 tokens and a question.

    decode_us     one step in which every question gets its next token: plan and progress, by sequence
    mixed_us      one step with a record of 16 tokens and a new question in every session, and all the answers under way
    share         of a step of `engine.step_ms` milliseconds, at the largest number of sequences, decoding
    growth        microseconds a sequence at the largest number over those at the smallest: 1 is linear
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

from common import last_line, show

from streamproc.config import Engine
from streamproc.messages import AsOf, Query
from streamproc.processor import collect_rarely
from streamproc.records import Trade
from streamproc.schedule.plan import Plan
from streamproc.schedule.progress import Progress
from streamproc.schedule.scheduler import Scheduler
from streamproc.state.blocks import BlockPool
from streamproc.state.fork import Fork, Question
from streamproc.state.session import Session, Shape
from streamproc.state.workload import Workload

CONTEXT, RECORD, TAIL, ANSWER, BLOCK_SIZE = 2_000, 16, 24, 64, 16
QUERY = Query("q", "how?", max_tokens=ANSWER, stop=())


class Words:
    """A decoder whose answers end at their longest."""

    eos_ids: frozenset[int] = frozenset()

    def decode(self, ids: Sequence[int]) -> str:
        return "word " * len(ids)


class World:
    """Sessions, and a step that answers every question with the same token."""

    def __init__(self, num_sessions: int) -> None:
        num_blocks = num_sessions * (2 * CONTEXT // BLOCK_SIZE)
        self.workload = Workload(BlockPool(num_blocks, BLOCK_SIZE))
        self.scheduler = Scheduler(self.workload, 10**6, 1e3)
        self.progress = Progress(self.workload, self.scheduler.speculation, Words())
        self.offset = 0
        shape = Shape(tuple(range(40)), 2 * CONTEXT, CONTEXT)
        self.sessions = [Session(f"S{i}", shape, 0, 0, self.workload.new_seq_id()) for i in range(num_sessions)]
        for i, session in enumerate(self.sessions):
            self.record(session, tuple((i * 7919 + n) % 30_000 for n in range(CONTEXT - 100)))
        while not self.workload.is_idle:
            self.step()

    def record(self, session: Session, ids: tuple[int, ...]) -> None:
        self.offset += 1
        session.append(self.offset, Trade(session.key, 1, "1", "1"), ids, self.workload.new_seq_id)
        self.workload.grow(session.current)

    def ask(self, session: Session) -> None:
        tail = tuple((self.offset + n) % 30_000 for n in range(TAIL))
        question = Question(QUERY, session.key, QUERY.question, tail, ANSWER, (), AsOf("t", 0, 0, self.offset, 0))
        generation = session.current
        fork = Fork(self.workload.new_seq_id(), question, session, generation, generation.num_tokens, 0.0)
        self.workload.wait(fork)

    def step(self) -> tuple[Plan, float]:
        """-> the plan, and the seconds that it and the record of its progress took."""
        started = time.perf_counter()
        step = self.scheduler.begin()
        plan = self.scheduler.finish(step)
        self.progress.launched(plan)
        sampled = {chunk.seq_id: (7,) for chunk in plan.chunks if chunk.num_samples}
        self.scheduler.landed(step, 0.05)
        self.progress.landed(plan, sampled, 0.0)
        return plan, time.perf_counter() - started


def median_us(work: Callable[[], float], repeats: int, num_sequences: int) -> float:
    return statistics.median(work() for _ in range(repeats)) / num_sequences * 1e6


def measure(num_sessions: int, repeats: int) -> dict[str, Any]:
    world = World(num_sessions)
    world.scheduler.speculation.is_on = False
    for session in world.sessions:
        world.ask(session)
    world.step()

    def decode() -> float:
        plan, seconds = world.step()
        assert len(plan.chunks) == num_sessions
        return seconds

    decode_us = median_us(decode, min(repeats, ANSWER - 8), num_sessions)
    while not world.workload.is_idle:
        world.step()

    def mixed() -> float:
        for session in world.sessions:
            world.record(session, tuple((world.offset + n) % 30_000 for n in range(RECORD)))
            world.ask(session)
        return world.step()[1] + world.step()[1]

    mixed_us = median_us(mixed, min(repeats, 5), num_sessions)
    return {"sequences": num_sessions, "decode_us": decode_us, "mixed_us": mixed_us}


def main() -> None:
    collect_rarely()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", default="16,64,256")
    parser.add_argument("--repeats", type=int, default=50)
    given = parser.parse_args()
    rows = [measure(int(number), given.repeats) for number in given.sequences.split(",")]
    show(rows)
    last = rows[-1]
    step_ms = Engine().step_ms
    last_line({"share": last["decode_us"] * last["sequences"] / 1e3 / step_ms, "step_ms": step_ms,
               "growth": last["decode_us"] / rows[0]["decode_us"], "rows": rows})  # fmt: skip


if __name__ == "__main__":
    main()
