"""A small model on the device, computed in every way that the engine may compute it: the same bits, the same tokens.

    one chunk   from nothing: what all others are compared with
    pieces      of random lengths, beside another sequence
    one by one  the last tokens, a step each: in CUDA graphs, and launched one by one
    unseen      an answer's tokens, each fed to the next step on the device while the host has not seen it
    draft       the answer verified in one step, a wrong draft too
    forks       two questions over one session in one step, beside each alone
    restored    blocks as bytes to the CPU and into other places of a new pool, then the rest

Cells are compared by sha256 of their bytes. Without `deterministic` only tokens are compared: how many agree. And
transformers' own model, with its eager attention: how far its logits are, and how often its greedy token is ours.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from gpu.bench import Bench, Row
from gpu.models import Ids, Subject, make_subject, run_queued
from gpu.models import run as step
from streamproc.engine import attention
from streamproc.engine.gpu.forward import GpuForward
from streamproc.engine.kv_cache import KVCache
from streamproc.schedule.plan import UNTOLD, Chunk

CUTS = (1, 7, 64, 3, 200, 33, 16, 2)
COMPANY = 2         # number of the sequence that is there for company
ANSWER = 6


def run(bench: Bench) -> dict[str, Any]:
    subject = make_subject(bench.sizes.oracle_model, bench.device, bench.dtype, bench.ops)
    oracle = Oracle(bench, subject)
    rows = [*oracle.bits(subject.exact), *oracle.graphs(), *oracle.agreement(), *oracle.transformers()]
    subject.exact.close()
    subject.fast.close()
    found: dict[str, Any] = {"rows": rows, "tokens": oracle.num_tokens}
    if wrong := [row["way"] for row in rows if row["equal"] is False]:
        found["error"] = f"other bits or tokens: {', '.join(wrong)}"
    return found


def row(way: str, equal: bool | None, note: str = "") -> Row:
    return {"way": way, "equal": equal, "note": note}


class Oracle:
    def __init__(self, bench: Bench, subject: Subject) -> None:
        self.bench, self.subject = bench, subject
        self.size = bench.sizes.block_size
        self.num_tokens = bench.sizes.oracle_tokens
        self.ids = subject.ids(0, self.num_tokens)
        self.per_table = -(-(self.num_tokens + 2 * ANSWER) // self.size)
        self.tables = [tuple(range(i * self.per_table, (i + 1) * self.per_table)) for i in range(4)]

    def pool(self) -> KVCache:
        return KVCache(self.subject.layout(self.size), 4 * self.per_table, self.bench.device)

    def digest(self, forward: GpuForward, kv: KVCache, table: Sequence[int], count: int) -> str:
        cells = forward.cells(kv, table[:-(-count // self.size)], count)
        return hashlib.sha256(cells.cpu().contiguous().view(torch.uint8).numpy()).hexdigest()

    def whole(self, forward: GpuForward, count: int) -> tuple[KVCache, Ids]:
        """One chunk -> its pool, in the first table, and the next token."""
        kv = self.pool()
        return kv, step(forward, kv, [Chunk(0, 0, self.ids[:count], self.tables[0], 1)])[0]

    def answer(self, forward: GpuForward, kv: KVCache, table: Ids, start: int, first: Ids) -> Ids:
        """`first` and what follows it, a step a token."""
        found = list(first)
        for i in range(ANSWER - 1):
            found += step(forward, kv, [Chunk(0, start + i, (found[-1],), table, 1)])[0]
        return tuple(found)

    def bits(self, forward: GpuForward) -> list[Row]:
        kv, first = self.whole(forward, self.num_tokens)
        expected = self.digest(forward, kv, self.tables[0], self.num_tokens), first
        answer = self.answer(forward, kv, self.tables[0], self.num_tokens, first)
        return [row("pieces beside another sequence", self._pieces(forward) == expected),
                row("one by one at the end", self._one_by_one(forward) == expected),
                row("tokens that the host has not seen", self._unseen(forward) == answer),
                row("a draft that holds", self._draft(forward, answer) == answer),
                row("a draft that does not", self._draft(forward, self._spoilt(answer)) == answer[:3]),
                row("forks", self._forks(forward)),
                row("restored blocks", self._restored(forward, kv) == expected)]  # fmt: skip

    def _pieces(self, forward: GpuForward) -> tuple[str, Ids]:
        kv, at, last, i = self.pool(), 0, (), 0
        while at < self.num_tokens:
            count = min(CUTS[i % len(CUTS)] + self.bench.whole(0, 2), self.num_tokens - at)
            company = self.subject.ids(0, CUTS[(i + 3) % len(CUTS)] % self.num_tokens or 1, salt=9)
            chunks = [Chunk(COMPANY, 0, company[:self.num_tokens], self.tables[COMPANY]),
                      Chunk(0, at, self.ids[at:at + count], self.tables[1], 1)]
            last, at, i = step(forward, kv, chunks)[0], at + count, i + 1
        return self.digest(forward, kv, self.tables[1], self.num_tokens), last

    def _one_by_one(self, forward: GpuForward, count: int = 20) -> tuple[str, Ids]:
        kv, last = self.whole(forward, self.num_tokens - count)
        for at in range(self.num_tokens - count, self.num_tokens):
            last = step(forward, kv, [Chunk(0, at, self.ids[at:at + 1], self.tables[0], 1)])[0]
        return self.digest(forward, kv, self.tables[0], self.num_tokens), last

    def _unseen(self, forward: GpuForward) -> Ids:
        """In graphs, once they are captured, beside another sequence that is elsewhere among the samples each time."""
        kv, other = self.pool(), self.tables[COMPANY]
        steps = [[Chunk(0, 0, self.ids, self.tables[0], 1), Chunk(COMPANY, 0, self.ids[:1], other, 1)]]
        for i in range(ANSWER - 1):
            both = [Chunk(0, self.num_tokens + i, (UNTOLD,), self.tables[0], 1),
                    Chunk(COMPANY, 1 + i, (UNTOLD,), other, 1)]
            steps.append(both[::-1] if i % 2 else both)
        return tuple(token for found in run_queued(forward, kv, steps) for token in found[0])

    def _draft(self, forward: GpuForward, draft: Ids) -> Ids:
        count = min(12, self.num_tokens - 1)
        kv, _ = self.whole(forward, self.num_tokens - count)
        ids = (*self.ids[-count:], *draft[:-1])
        return step(forward, kv, [Chunk(0, self.num_tokens - count, ids, self.tables[0], len(draft))])[0]

    def _spoilt(self, answer: Ids) -> Ids:
        """Another token in the third place: the two before it hold, and the right third one is found."""
        return (*answer[:2], (answer[2] + 1) % self.subject.loaded.vocab_size, *answer[3:])

    def _forks(self, forward: GpuForward) -> bool:
        kv, _ = self.whole(forward, self.num_tokens)
        full = self.num_tokens // self.size
        tables = [(*self.tables[0][:full], *self.tables[i][full:]) for i in (1, 2)]
        if self.num_tokens % self.size:
            kv.copy([(self.tables[0][full], table[full]) for table in tables])
        questions = [self.subject.ids(0, ANSWER + i, salt=20 + i) for i in range(2)]
        chunks = [Chunk(i, self.num_tokens, ids, tables[i], 1) for i, ids in enumerate(questions)]
        together = step(forward, kv, chunks)
        cells = [self.digest(forward, kv, tables[i], self.num_tokens + len(ids)) for i, ids in enumerate(questions)]
        alone = {i: step(forward, kv, [chunk])[i] for i, chunk in enumerate(chunks)}
        again = [self.digest(forward, kv, tables[i], self.num_tokens + len(ids)) for i, ids in enumerate(questions)]
        return together == alone and cells == again

    def _restored(self, forward: GpuForward, whole: KVCache) -> tuple[str, Ids]:
        """All full blocks but the last come back; what is behind them is computed."""
        kept = (self.num_tokens - 1) // self.size
        kv, table = self.pool(), self.tables[3][::-1]
        for source, target in zip(self.tables[0][:kept], table, strict=False):
            kv.write(target, whole.read(source))
        ids = self.ids[kept * self.size:]
        last = step(forward, kv, [Chunk(0, kept * self.size, ids, table, 1)])[0]
        return self.digest(forward, kv, table, self.num_tokens), last

    def graphs(self) -> list[Row]:
        """The same steps without CUDA graphs; on a CPU there are none."""
        if self.bench.device.type != "cuda":
            return [row("graphs beside launches", None, "no graphs on this device")]
        eager = GpuForward(self.subject.loaded, self.subject.program, self.subject.ops)
        eager._graphs.are_used = False
        return [row("graphs beside launches", self._one_by_one(eager) == self._one_by_one(self.subject.exact))]

    def agreement(self) -> list[Row]:
        """Greedy tokens after many prefixes: all in one chunk beside one step each, with torch's products."""
        forward = self.subject.fast
        count = min(self.bench.sizes.compared, self.num_tokens - 1)
        at = self.num_tokens - count
        kv, _ = self.whole(forward, at)
        ids = self.ids[at:]
        best, _ = self._best(forward, kv, [Chunk(0, at, ids, self.tables[0], count)])
        single = [self._best(forward, kv, [Chunk(0, at + i, (token,), self.tables[0], 1)])[0][0]
                  for i, token in enumerate(ids)]
        share = sum(a == b for a, b in zip(best, single, strict=True)) / count
        return [row("without deterministic", None, f"{share:.1%} of {count} tokens agree in one chunk and one by one")]

    def _best(self, forward: GpuForward, kv: KVCache, chunks: list[Chunk]) -> tuple[list[int], list[float]]:
        with torch.inference_mode():
            ids, logits = forward.best(kv, chunks)
        return ids.tolist(), logits.tolist()

    def transformers(self) -> list[Row]:
        """Its eager attention, in the model's dtype."""
        model, count = self.subject.model, min(self.bench.sizes.compared, self.num_tokens)
        model.set_attn_implementation("eager")
        with torch.inference_mode():
            theirs = model(torch.tensor([self.ids], device=self.bench.device), use_cache=False,
                           logits_to_keep=count).logits[0].float()
        model.set_attn_implementation(attention.NAME)
        kv = self.pool()
        chunk = Chunk(0, 0, self.ids, self.tables[0], count)
        ids, logits = self._best(self.subject.exact, kv, [chunk])
        same = sum(a == b for a, b in zip(ids, theirs.argmax(-1).tolist(), strict=True)) / count
        of_ours = theirs[torch.arange(count), torch.tensor(ids)].cpu()
        off = float((torch.tensor(logits) - of_ours).abs().max() / theirs.std())
        is_near = off < (0.01 if self.bench.dtype == torch.float32 else 0.3)
        return [row("transformers, eager", is_near, f"{same:.1%} of {count} tokens are the same; logits are off by "
                                                    f"{off:.2g} of their deviation at most")]  # fmt: skip
