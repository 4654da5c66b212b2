"""Which blocks a step overwrites: what is on its way out of them has to have left before."""

from collections.abc import Iterator
from random import Random

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
