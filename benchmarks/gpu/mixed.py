"""S4: many sessions, in each of which records come and all standing questions are due again. A round gives every
session its records, grouped over sessions, and then answers all questions; the next round begins when all have answers.

    decodes     no previous answer holds, and none is tried
    drafts      all hold: questions and answers are one step's rows
"""

from typing import Any

from gpu.bench import Bench, free
from gpu.hf import Batching
from gpu.models import Ids, Kept, run
from gpu.questions import answer_all, portions
from gpu.timing import Clock
from streamproc.engine import attention
from streamproc.engine.kv_cache import KVCache
from streamproc.schedule.plan import Chunk

QUESTION_SALT = 500
PATIENCE_S = 40.0


class Mixed:
    def __init__(self, bench: Bench) -> None:
        self.bench, self.sizes, subject = bench, bench.sizes, bench.subject
        self.sessions, self.context = self.sizes.mixed
        self.due = self.sizes.record * self.sizes.records
        size, room = self.sizes.block_size, self.sizes.question + self.sizes.answer
        self.size = self.context
        per_session = -(-(self.context + (self.sizes.mixed_rounds + 2) * self.due) // size)
        self.per_fork = -(-room // size) + 1
        of_forks = self.sessions * per_session
        num_blocks = of_forks + self.sessions * self.sizes.standing * self.per_fork
        self.tables = [tuple(range(i * per_session, (i + 1) * per_session)) for i in range(self.sessions)]
        self.own = [tuple(range(first, first + self.per_fork)) for first in range(of_forks, num_blocks, self.per_fork)]
        self.kv = KVCache(subject.layout(size), num_blocks, bench.device)
        self.kept = Kept(subject.exact, self.kv, self.tables[0])

    def run(self) -> dict[str, Any]:
        for at in range(0, self.context, self.sizes.portion // self.sessions or 1):
            self._grow(at, min(self.sizes.portion // self.sessions or 1, self.context - at))
        found: dict[str, list[float]] = {"decodes": [], "drafts": []}
        for number in range(self.sizes.mixed_rounds + 1):
            grown = self.bench.timer.waited(lambda: self._grow(self.size, self.due))
            self.size += self.due
            answers: list[list[Ids]] = []
            asked = self.bench.timer.waited(lambda a=answers: a.append(self._ask()))
            verified = self.bench.timer.waited(lambda a=answers: self._verify(a[0]))
            if number:      # the first one compiles and captures
                found["decodes"].append(grown + asked)
                found["drafts"].append(grown + verified)
        records = self.sessions * self.sizes.records
        return {f"{way}_records_per_s": records / min(taken) for way, taken in found.items()}

    def _grow(self, at: int, count: int) -> None:
        chunks = [Chunk(i, at, self.bench.subject.ids(at, count, salt=100 + i), table)
                  for i, table in enumerate(self.tables)]
        for part in portions(chunks, self.sizes.portion):
            run(self.kept.forward, self.kv, part)

    def _forks(self) -> list[tuple[int, Ids, tuple[int, ...]]]:
        """All questions of all sessions, session by session, with tables of their own."""
        size, standing = self.sizes.block_size, self.sizes.standing
        full = self.size // size
        owners = [self.tables[i // standing] for i in range(len(self.own))]
        if self.size % size:
            self.kv.copy([(table[full], own[0]) for table, own in zip(owners, self.own, strict=True)])
        return [(self.size, self.bench.subject.ids(0, self.sizes.question, salt=QUESTION_SALT + i % standing),
                 (*table[:full], *own)) for i, (table, own) in enumerate(zip(owners, self.own, strict=True))]

    def _ask(self) -> list[Ids]:
        return answer_all(self.kept, self._forks(), self.sizes.answer, self.sizes.portion)

    def _verify(self, answers: list[Ids]) -> None:
        chunks = [Chunk(i, start, (*ids, *answers[i][:-1]), table, len(answers[i]))
                  for i, (start, ids, table) in enumerate(self._forks())]
        for part in portions(chunks, self.sizes.portion):
            for i, found in run(self.kept.forward, self.kv, part).items():
                assert found == answers[i], "our own draft did not hold"


def batching(bench: Bench) -> float:
    """The same through transformers' continuous batching -> records/s of one round."""
    sizes, ids = bench.sizes, bench.subject.ids
    sessions, context = sizes.mixed
    due = sizes.record * sizes.records
    length = context + 2 * due + sizes.question + sizes.answer
    room = sessions * length * 2 + sessions * sizes.standing * (due + sizes.question + sizes.answer + 64) * 2
    peer = Batching(bench.subject.model, room, sizes.portion, Clock(min(bench.clock.left, PATIENCE_S)))

    def one_round(size: int) -> None:
        """Every session's records first, so that its questions find them."""
        known = [ids(0, size, salt=100 + i) for i in range(sessions)]
        peer.answers(known, 1)
        peer.answers([(*each, *ids(0, sizes.question, salt=QUESTION_SALT + i)) for each in known
                      for i in range(sizes.standing)], sizes.answer)

    try:
        one_round(context)
        return sessions * sizes.records / bench.timer.waited(lambda: one_round(context + due))
    finally:
        peer.close()
        bench.subject.model.set_attn_implementation(attention.NAME)
        free(bench)
