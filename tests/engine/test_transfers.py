"""Which blocks a step overwrites: what is on its way out of them has to have left before."""

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from streamproc.engine.kv_cache import KVCache, Layout
from streamproc.engine.transfers import Transfers, written
from streamproc.schedule.plan import Chunk, Plan

LAYOUT = Layout(2, 1, 8, 4, torch.float32)


def chunks(rng: Random) -> Iterator[Chunk]:
    for seq_id in range(rng.randrange(4)):
        start, count = rng.randrange(30), rng.randrange(1, 20)
        yield Chunk(seq_id, start, (7,) * count, tuple(rng.sample(range(100), 14)))


@pytest.mark.parametrize("seed", range(20))
def test_blocks_that_a_step_overwrites(seed: int) -> None:
    rng = Random(seed)
    plan = Plan(((1, 2), (3, 4)), tuple(chunks(rng)), ((5, b"a"),), ((6, b""),))
    cells = {chunk.block_table[(chunk.start + i) // 4] for chunk in plan.chunks for i in range(len(chunk.token_ids))}
    assert written(plan, 4) == {2, 4, 6} | cells


def test_saves_come_before_loads() -> None:
    kv = KVCache(LAYOUT, 4, torch.device("cpu"))
    kv.blocks[:2] = torch.randn(2, *LAYOUT.block_shape)
    first, second = kv.read(0), kv.read(1)
    saved = Transfers(kv).begin(Plan((), (), ((0, b"first"),), ((0, second),)))
    assert bytes(saved()[b"first"]) == bytes(first)
    assert bytes(kv.read(0)) == bytes(second)


class NotedStream:
    """Of a device that does nothing: it knows what comes before what."""

    def __init__(self) -> None:
        self.before: set[str] = set()

    def do(self, what: str) -> set[str]:
        """-> all that is done before it."""
        before = set(self.before)
        self.before.add(what)
        return before

    def wait_stream(self, other: "NotedStream") -> None:
        self.before |= other.before

    def wait_event(self, event: Any) -> None:
        self.before |= event.before

    def record_event(self) -> Any:
        return SimpleNamespace(before=set(self.before), synchronize=lambda: None, query=lambda: False)


def test_a_step_does_not_overwrite_what_the_one_before_it_is_still_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    compute, side = NotedStream(), NotedStream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: compute)
    monkeypatch.setattr(torch.cuda, "stream", contextmanager(lambda _: (yield)))
    transfers = Transfers(KVCache(LAYOUT, 9, torch.device("cpu")))
    transfers._stream = side     # type: ignore[assignment]
    monkeypatch.setattr(transfers, "_saved", lambda block: side.do(f"save {block}"))

    def launch(name: str, block: int, saves: tuple[tuple[int, bytes], ...] = ()) -> set[str]:
        transfers.begin(Plan((), (Chunk(1, 0, (1, 2, 3, 4), (block,)),), saves))
        return compute.do(name)

    assert "save 7" not in launch("first", 0, ((7, b"x"),))
    assert "save 7" not in launch("second", 1)      # it has nothing to do with it
    assert "save 7" in launch("third", 7)
