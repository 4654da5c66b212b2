"""transformers' answers to the same questions: S1, S2 and drafts at every context, and S4."""

from collections.abc import Callable
from typing import Any

from gpu.bench import Bench, Row, free
from gpu.hf import Batching, Dynamic, KeptCache, Static
from gpu.questions import medians
from gpu.timing import Clock
from streamproc.engine import attention

REPEATS, WARM = 3, 1
PATIENCE_S = 25.0       # with continuous batching at one context


class Peers:
    """`rows` by contender and context; `failed`: why one did not run."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.sizes, self.model = bench, bench.sizes, bench.subject.model
        self.rows: list[Row] = []
        self.failed: dict[str, str] = {}
        self.how: dict[str, str] = {}

    def kept(self, context: int) -> None:
        """On kept caches."""
        room = context + self.sizes.arriving + self.sizes.question + self.sizes.answer
        device = self.bench.device
        self._try(Static.name, context, lambda: self._kept(Static(self.model, device, room), context))
        self._try(Dynamic.name, context, lambda: self._kept(Dynamic(self.model, device), context))

    def batching(self, context: int) -> None:
        """By continuous batching, which has to compute its context first."""
        self._try(Batching.name, context, lambda: self._batching(context))

    def _try(self, name: str, context: int, work: Callable[[], Row]) -> None:
        """One that has failed once is not asked again."""
        if name in self.failed:
            return
        if self.bench.clock.left <= 0:
            self.failed[name] = f"no time left at {context}"
            return
        try:
            self.rows.append({"contender": name, "context": context, **work()})
        except Exception as problem:        # whatever does not work here of theirs, ours is measured
            self.failed[name] = f"{type(problem).__name__}: {problem}".split("\n", 1)[0][:120]
            self.bench.timer.finish()       # raises where the device is lost
        finally:
            self.model.set_attn_implementation(attention.NAME)
            free(self.bench)

    def _kept(self, peer: KeptCache, context: int) -> Row:
        try:
            peer.fill(context)
            row = medians(lambda number: self._round(peer, context, number), REPEATS, WARM)
        finally:
            peer.close()
        if isinstance(peer, Static):
            self.how[peer.name] = peer.how
        return row

    def _round(self, peer: KeptCache, context: int, number: int) -> dict[str, float]:
        """As Ours does it, but that what has arrived is computed now."""
        ids, count, waited = self.bench.subject.ids, self.sizes.answer, self.bench.timer.waited
        arriving = ids(context, self.sizes.arriving, salt=1000 + number)
        asked, again = (ids(0, self.sizes.question, salt=1_000_003 + 2 * number + i) for i in range(2))
        answer: list[Any] = []
        found = {"s1_ms": waited(lambda: peer.ask((*arriving, *asked), count)),
                 "s2_ms": waited(lambda: answer.append(peer.ask(again, count)))}
        found["draft_ms"] = waited(lambda: peer.verify(again, answer[0][:-1]))
        peer.cut(context)
        return found

    def _batching(self, context: int) -> Row:
        ids, count, waited = self.bench.subject.ids, self.sizes.answer, self.bench.timer.waited
        room = context + self.sizes.arriving + self.sizes.question + self.sizes.answer
        clock = Clock(min(self.bench.clock.left, PATIENCE_S))
        peer = Batching(self.model, 2 * room + self.sizes.portion, self.sizes.portion, clock)

        def one_round(number: int) -> dict[str, float]:
            arriving = ids(context, self.sizes.arriving, salt=1000 + number)
            asked, again = (ids(0, self.sizes.question, salt=1_000_003 + 2 * number + i) for i in range(2))
            return {"s1_ms": waited(lambda: peer.answers([(*known, *arriving, *asked)], count)),
                    "s2_ms": waited(lambda: peer.answers([(*known, *again)], count))}

        known = ids(0, context)
        try:
            peer.answers([known], 1)
            return medians(one_round, REPEATS, WARM)
        finally:
            peer.close()
