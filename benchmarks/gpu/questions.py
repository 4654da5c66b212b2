"""Questions over one kept context, ours: S1, S2, an accepted draft, and all standing questions of a session at once."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from gpu.bench import Bench, Row
from gpu.floors import Rows, question_steps, step, total_seconds
from gpu.models import Ids, Kept, run, run_queued
from streamproc.engine.kv_cache import KVCache
from streamproc.schedule.plan import UNTOLD, Chunk

WARM = 3


class Ours:
    """A session that grows from one context to the next."""

    name = "ours"

    def __init__(self, bench: Bench) -> None:
        self.bench, self.sizes, subject = bench, bench.sizes, bench.subject
        self.room = self.sizes.question + self.sizes.answer
        num_blocks = -(-(max(self.sizes.contexts) + self.sizes.arriving + self.room) // self.sizes.block_size)
        of_fork = -(-self.room // self.sizes.block_size) + 1
        firsts = range(num_blocks, num_blocks + self.sizes.standing * of_fork, of_fork)
        kv = KVCache(subject.layout(self.sizes.block_size), num_blocks + self.sizes.standing * of_fork, bench.device)
        self.kept = Kept(subject.exact, kv, range(num_blocks), [range(first, first + of_fork) for first in firsts])

    def question(self, number: int) -> Ids:
        return self.bench.subject.ids(0, self.sizes.question, salt=1_000_003 + number)

    def measure(self, context: int) -> Row:
        """All of it at this context, in milliseconds, beside the floor."""
        filling_s, computed = self._fill(context)
        row: Row = {"contender": self.name, "context": context,
                    **medians(lambda number: self._round(context, number), self.sizes.repeats, WARM)}
        floor_s = total_seconds(self.bench.subject.shape, question_steps(context, self.sizes.question,
                                                                         self.sizes.answer), self.bench.ceilings)
        return {**row, "floor_ms": floor_s * 1e3, "over_floor": row["s2_ms"] / floor_s / 1e3,
                "standing_floor_ms": self._standing_floor_s(context) * 1e3,
                "prefill_tokens_per_s": computed / filling_s if filling_s else 0.0}  # fmt: skip

    def _fill(self, context: int) -> tuple[float, int]:
        """-> seconds, tokens"""
        begun, seconds = self.kept.size, 0.0
        while self.kept.size < context:
            at = self.kept.size
            ids = self.bench.subject.ids(at, min(self.sizes.portion, context - at))
            seconds += self.bench.timer.waited(lambda ids=ids: self.kept.grow(ids))
        return seconds, context - begun

    def _round(self, context: int, number: int) -> dict[str, float]:
        """Seconds by case; the context is as before afterwards."""
        arriving = self.bench.subject.ids(context, self.sizes.arriving, salt=1000 + number)
        asked, again = self.question(2 * number), self.question(2 * number + 1)
        answer: list[Ids] = []
        waited, kept, count = self.bench.timer.waited, self.kept, self.sizes.answer
        found = {"arrive_ms": waited(lambda: kept.grow(arriving)), "s1_ms": waited(lambda: kept.ask(asked, count))}
        kept.cut(context)
        found["s2_ms"] = waited(lambda: answer.append(kept.ask(again, count)))
        found["draft_ms"] = waited(lambda: answer.append(kept.verify(again, answer[0][:-1])))
        assert answer[0] == answer[1], f"our own draft did not hold: {answer}"
        tables = kept.forks()
        found["standing_ms"] = waited(lambda: ask_all(kept, tables, [self.question(i) for i in range(len(tables))],
                                                      count))
        return found

    def _standing_floor_s(self, context: int) -> float:
        steps = question_steps(context, self.sizes.question, self.sizes.answer)
        return sum(step(self.bench.subject.shape, [rows, *[Rows(rows.start, rows.count, 1, shared=context)] * (
            self.sizes.standing - 1)]).seconds(self.bench.ceilings) for (rows,) in steps)


def ask_all(kept: Kept, tables: Sequence[tuple[int, ...]], questions: Sequence[Ids], num_answer: int) -> list[Ids]:
    """One question to each fork, all in the same steps."""
    return answer_all(kept, [(kept.size, ids, table) for ids, table in zip(questions, tables, strict=True)], num_answer)


def answer_all(kept: Kept, asked: Sequence[tuple[int, Ids, tuple[int, ...]]], num_answer: int, portion: int = 10**9
               ) -> list[Ids]:
    """asked: (cells before it, question, blocks). Questions go in steps of `portion` tokens at most, answers in one."""
    chunks = [Chunk(i, start, ids, table, 1) for i, (start, ids, table) in enumerate(asked)]
    *parts, last = portions(chunks, portion)
    firsts: dict[int, Ids] = {}
    for part in parts:
        firsts |= run(kept.forward, kept.kv, part)

    def goes_on(count: int) -> list[Chunk]:
        known = firsts if count == 1 else {}
        return [Chunk(i, start + len(ids) + count - 1, known.get(i, (UNTOLD,)), table, 1)
                for i, (start, ids, table) in enumerate(asked)]

    found = run_queued(kept.forward, kept.kv, [last, *map(goes_on, range(1, num_answer))])
    return [(*firsts.get(i, ()), *(token for step in found for token in step.get(i, ()))) for i in range(len(asked))]


def portions(chunks: Sequence[Chunk], tokens: int) -> list[list[Chunk]]:
    """In order, with at most so many tokens in each, but one chunk at least."""
    parts: list[list[Chunk]] = []
    size = tokens + 1
    for chunk in chunks:
        size += len(chunk.token_ids)
        if size > tokens:
            parts.append([])
            size = len(chunk.token_ids)
        parts[-1].append(chunk)
    return parts


def medians(work: Callable[[int], dict[str, float]], repeats: int, warm: int) -> dict[str, Any]:
    """Milliseconds by case."""
    found: dict[str, list[float]] = {}
    for repeat in range(warm + repeats):
        for name, taken in work(repeat).items():
            found.setdefault(name, []).append(taken * 1e3)
    return {name: statistics.median(values[warm:]) for name, values in found.items()}
