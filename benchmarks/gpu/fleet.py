"""Many sessions, all of whose standing questions are due at once: 64 with 8 questions each, at 19k tokens.

    bf16        as many sessions as the device's memory holds
    fp8         cells of 8 bits with their scales: more of them, and fewer bytes to read

`seconds` until all have their answers: questions in steps of a few thousand tokens, answers in steps of all forks; the
cells are random numbers, the same in all sessions, each in memory of its own. `share`: of the steps' floors.
"""

from collections.abc import Sequence
from typing import Any

from gpu.bench import Bench, Row, free
from gpu.decoding import blocks_that_fit, host_s
from gpu.floors import Rows, Shape, step
from gpu.models import Ids, Kept, noisy_pool
from gpu.questions import answer_all
from streamproc.schedule.plan import Chunk

QUESTION_SALT = 900


def run(bench: Bench) -> dict[str, Any]:
    rows, not_run = [], []
    bench.subject.release()     # memory for sessions
    free(bench)
    for codes in (None, "fp8"):
        if bench.clock.left <= 0:
            not_run.append(codes or "model's dtype")
            continue
        rows.append(Fleet(bench, codes).row())
        free(bench)
    return {"rows": rows, "not_run": not_run}


class Fleet:
    def __init__(self, bench: Bench, codes: str | None) -> None:
        self.bench, self.sizes, self.codes = bench, bench.sizes, codes
        subject, size = bench.subject, bench.sizes.block_size
        layout = subject.layout(size, codes)
        self.full = self.sizes.middle // size
        self.context = self.full * size         # forks share whole blocks only: nothing is copied
        self.own = -(-(self.sizes.question + self.sizes.answer) // size)
        of_session = self.full + self.sizes.standing * self.own
        self.sessions = min(self.sizes.fleet, blocks_that_fit(bench, layout) // of_session)
        assert self.sessions, "not even one session fits"
        kv = noisy_pool(layout, self.sessions * of_session, bench.device)
        self.kept = Kept(subject.with_codes(codes), kv, range(self.full))
        self.tables = [self._table(i * of_session, fork)
                       for i in range(self.sessions) for fork in range(self.sizes.standing)]

    def _table(self, first: int, fork: int) -> tuple[int, ...]:
        own = first + self.full + fork * self.own
        return (*range(first, first + self.full), *range(own, own + self.own))

    def row(self) -> Row:
        ids = self.bench.subject.ids
        asked = [(self.context, ids(0, self.sizes.question, salt=QUESTION_SALT + i), table)
                 for i, table in enumerate(self.tables)]
        taken = self.bench.timer.wall(
            lambda: answer_all(self.kept, asked, self.sizes.answer, self.sizes.portion), repeats=2, warm=1)
        return {"cells": self.codes or "as the model", "sessions": self.sessions, "wanted": self.sizes.fleet,
                "questions": len(asked), "context": self.context, "seconds": taken, "answers_per_s": len(asked) / taken,
                "floor_s": self.floor_s(), "share": self.floor_s() / taken,
                "answer_step_host_ms": self.host_s(asked) * 1e3}  # fmt: skip

    def host_s(self, asked: Sequence[tuple[int, Ids, tuple[int, ...]]]) -> float:
        """What the CPU does for a step of all forks."""
        chunks = [Chunk(i, start + len(ids), (1,), table, 1) for i, (start, ids, table) in enumerate(asked)]
        return host_s(self.bench, self.kept.forward, self.kept.kv, chunks)

    def shape(self) -> Shape:
        return self.bench.subject.shape_of(self.kept.kv.layout)

    def floor_s(self) -> float:
        """A session's cells are read once in a step of its forks."""
        sizes, ceilings = self.sizes, self.bench.ceilings
        at_once = max(sizes.portion // sizes.question // sizes.standing, 1)     # sessions in a step of questions

        def rows(sessions: int, start: int, count: int) -> list[Rows]:
            return [Rows(start, count, 1, shared=self.context if fork else 0)
                    for _ in range(sessions) for fork in range(sizes.standing)]

        groups = [min(at_once, self.sessions - i) for i in range(0, self.sessions, at_once)]
        steps = [rows(sessions, self.context, sizes.question) for sessions in groups]
        steps += [rows(self.sessions, self.context + sizes.question + i, 1) for i in range(sizes.answer - 1)]
        return sum(step(self.shape(), each).seconds(ceilings) for each in steps)
