"""A real model's cells that had to leave the pool and came back from a snapshot store: the same bits."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_world import SIZES, World, check_cells, make_config

from streamproc.config import Config
from streamproc.engine import build
from streamproc.keeper import Keeper

NEVER_S = 1e6
HOST_BLOCKS = (0, 6)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def built(request: pytest.FixtureRequest, config: Config) -> Iterator[build.Engine]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    largest = make_config(max(SIZES))
    settings = replace(largest.engine, model="random-tiny", dtype=request.param)
    engine = build.build_engine(replace(largest, engine=settings))
    yield engine
    engine.close()
    torch.set_num_threads(before)


class Tiered(World):
    """A pool for one session, and no rounds: nothing is stored but what had to leave."""

    host_blocks = 0

    def start(self) -> None:
        self.config = make_config(self.size, self.host_blocks * self.engine.runner.block_bytes)
        super().start()
        self.processor.scheduler.cells.recompute = None     # so small a model may be quicker than a disk

    def _make_keeper(self) -> Keeper | None:
        keeper = super()._make_keeper()
        if keeper:
            keeper._interval_s = NEVER_S
        return keeper


@pytest.mark.parametrize("host_blocks", HOST_BLOCKS)
def test_cells_that_come_back_from_the_store_are_the_same(
    host_blocks: int, built: build.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tiered, "host_blocks", host_blocks)
    world = Tiered(built, 0, tmp_path)
    num_cells = 0
    for turn in range(90):
        number = turn // 3 % world.size.num_sessions
        world.log.produce(number % 2, world.record(f"S{number}"))
        world.clock.now_s += 0.02
        world.processor.step()
        world.processor.check()
        if turn % 9 == 0:
            num_cells += check_cells(world)
    world.drain()
    num_cells += check_cells(world)
    assert num_cells > 500
    assert world.processor.tier.num_loaded > 30
    assert not [path for path in tmp_path.rglob("*") if "manifest" in str(path)]
    world.die()
    assert world.notes == []
