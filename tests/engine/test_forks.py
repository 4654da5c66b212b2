"""Forks of one session in one plan: their attention is computed together, their bits are those of each alone."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch

from streamproc.engine.choice import cpu_forward
from streamproc.engine.cpu import library as libraries
from streamproc.engine.cpu.library import KINDS, processor_flags
from streamproc.engine.forward import Forward, run_step
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.loaded import LoadedModel
from streamproc.schedule.plan import Chunk, Plan

SIZE = 16
NAMES = ("llama", "mistral", "gemma2", "gemma3", "smollm3")
DTYPES = (torch.float32, torch.bfloat16)
BASES = (656, 640, 640, 600, 333, 600, 320, 20)      # where the forks leave their session, whose 600 grow to 656
Load = Callable[[str, torch.dtype], LoadedModel]
RUNS_HERE = [kind for kind, needed in KINDS.items()
             if needed <= processor_flags() and libraries.kind_path(kind).is_file()]  # fmt: skip


@pytest.fixture(params=RUNS_HERE)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every machine code that runs here."""
    monkeypatch.setattr(libraries, "processor_flags", lambda: KINDS[request.param])
    caches = (libraries.best, libraries.library_fingerprint)
    for cached in caches:
        cached.cache_clear()
    assert libraries.library_kind() == request.param
    yield request.param
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()


@dataclass
class Fork:
    """A sequence that shares the blocks of another up to its base."""

    seq_id: int
    ids: tuple[int, ...]
    start: int
    table: tuple[int, ...]

    def chunk(self, start: int, end: int, after: int | None = None) -> Chunk:
        return Chunk(self.seq_id, start, self.ids[start:end], self.table, 1, after)


class Family:
    """A session of 656 tokens, its forks with tails of their own, and a stranger, over blocks in random order."""

    def __init__(self, forward: Forward, seed: int) -> None:
        self.forward, self.random = forward, random.Random(seed)
        self.kv = KVCache(forward.loaded.layout(SIZE), 200, forward.loaded.device)
        self.free = self.random.sample(range(200), 200)
        self.session = Fork(0, self.tail(656), 600, self.blocks(41))
        self.stranger = Fork(1, self.tail(700), 650, self.blocks(44))
        self.copies: list[tuple[int, int]] = []
        self.forks = [self.fork(i + 2, base) for i, base in enumerate(BASES)]

    def blocks(self, count: int) -> tuple[int, ...]:
        return tuple(self.free.pop() for _ in range(count))

    def tail(self, num_tokens: int) -> tuple[int, ...]:
        return tuple(self.random.choices(range(3, 90), k=num_tokens))

    def fork(self, seq_id: int, base: int) -> Fork:
        ids = self.session.ids[:base] + self.tail(self.random.choice((2, 3, 24, 50)))
        kept, full = self.session.table, base // SIZE
        table = kept[:full] + self.blocks(-(-len(ids) // SIZE) - full)
        if base % SIZE:
            self.copies.append((kept[full], table[full]))
        return Fork(seq_id, ids, base, table)

    def run(self) -> dict[int, tuple[int, ...]]:
        """The session grows in the very step in which its forks read what it writes; then all decode together."""
        for one in (self.session, self.stranger):
            run_step(self.forward, self.kv, Plan((), (one.chunk(0, one.start),)))
        grown = self.session.chunk(600, 656)
        company = [self.stranger.chunk(650, 699), *(
            fork.chunk(fork.start, len(fork.ids) - 1, 0 if fork.start > 600 else None) for fork in self.forks)]
        self.random.shuffle(company)
        run_step(self.forward, self.kv, Plan(tuple(self.copies), (grown, *company)))
        last = [one.chunk(len(one.ids) - 1, len(one.ids)) for one in (self.stranger, *self.forks)]
        self.random.shuffle(last)
        return run_step(self.forward, self.kv, Plan((), tuple(last)))


def alone(forward: Forward, ids: tuple[int, ...]) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Cells and next token of one sequence in one chunk, from nothing."""
    table = tuple(range(-(-len(ids) // SIZE)))
    kv = KVCache(forward.loaded.layout(SIZE), len(table), forward.loaded.device)
    found = run_step(forward, kv, Plan((), (Chunk(0, 0, ids, table, 1),)))
    return forward.cells(kv, table, len(ids)), found[0]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_forks_beside_each_other_have_the_bits_of_each_alone(name: str, dtype: torch.dtype, threads: int, kind: str,
                                                             load: Load) -> None:
    with torch.inference_mode():
        forward = cpu_forward(load(name, dtype), SIZE, threads)
    assert forward
    for seed in range(3):
        family = Family(forward, seed)
        found = family.run()
        for one in (family.session, family.stranger, *family.forks):
            cells, tokens = alone(forward, one.ids)
            assert torch.equal(forward.cells(family.kv, one.table, len(one.ids)), cells)
            assert found.get(one.seq_id, tokens) == tokens
        assert len(found) == len(family.forks) + 1
    forward.close()
