"""Random walks of the whole worker on fakes, with snapshots on a real store: answers stay the oracle's, and what was
stored is not computed again.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from oracle import expected_answers
from world import BLOCK, CONTEXT, KEEP, QUERIES, World, in_log_order, make_config, random_record

from streamproc.keeper import Keeper
from streamproc.snapshots.manifest import Identity, Manifest
from streamproc.snapshots.restore import SnapshotReader
from streamproc.snapshots.standby import Standby
from streamproc.snapshots.store import Store, open_store
from streamproc.snapshots.writer import SnapshotWriter


def make_keeper(store: Store, interval_s: float, warn: Callable[[str], None], stands_by: bool = False) -> Keeper:
    def identity(number: int, topic_id: str) -> Identity:
        return Identity("fake", "group", "records", topic_id, number)

    keeper = Keeper(identity, SnapshotWriter(store, warn), SnapshotReader(store, warn), interval_s, warn)
    if stands_by:
        keeper.stand_by(Standby(store, identity(-1, ""), 0.01, warn))
    return keeper


def noted(notes: list[str]) -> Callable[[str], None]:
    return notes.append


@pytest.mark.parametrize("seed", range(24))
def test_answers_equal_the_oracle_whatever_is_restored(seed: int, tmp_path) -> None:
    rng = random.Random(seed)
    config = make_config(step_tokens=rng.choice((16, 48, 400)), backlog_tokens=rng.choice((40, 1_000)))
    store, notes = open_store(f"file://{tmp_path}"), list[str]()
    keepers: list[Keeper] = []

    def keeper() -> Keeper:
        keepers.append(make_keeper(store, rng.choice((0.0, 0.001, 0.02)), noted(notes), seed % 3 > 0))
        return keepers[-1]

    host_bytes = rng.choice((0, 40 * 8 * BLOCK))
    world = World(rng, config, 2, num_blocks=rng.choice((72, 90, 400)), looks_back=seed % 2 == 1, keeper=keeper,
                  host_bytes=host_bytes)  # fmt: skip
    for query in QUERIES:
        world.register(query)
    symbols = [f"S{i}" for i in range(rng.choice((1, 3, 12)))]
    num_loaded = 0
    for _ in range(rng.randrange(50, 300)):
        sym = rng.choice(symbols)
        for _ in range(rng.choice((0, 1, 1, 5))):
            world.log.produce(symbols.index(sym) % 2, random_record(rng, sym))
        world.fate = rng.choices(("ok", "abort", "lost reply"), (90, 5, 5))[0]
        world.step()
        if rng.random() < 0.03:
            num_loaded += world.processor.tier.num_loaded
            world.crash()
    world.drain()
    num_loaded += world.processor.tier.num_loaded
    expected = []
    for number in range(2):
        messages = world.log.read(config.topics.records, number)
        expected += expected_answers(world.renderer, messages, QUERIES, CONTEXT, KEEP)
    expected.sort(key=lambda e: (e.offset, e.query_id, e.session))
    found = sorted(in_log_order(world.answers()), key=lambda e: (e.offset, e.query_id, e.session))
    assert found == expected
    ids = [answer.id for answer in world.answers()]
    assert len(ids) == len(set(ids))
    for each in keepers:
        each.close()
    assert not [note for note in notes if "passed over" not in note]
    assert num_loaded or seed not in (0, 1, 4)      # whose workers die often


def test_a_store_that_does_not_answer_for_one_partition_holds_up_that_one_only(tmp_path) -> None:
    rng, told = random.Random(5), threading.Event()
    store, notes = open_store(f"file://{tmp_path}"), list[str]()
    world = World(rng, make_config(), 2, 400, keeper=lambda: make_keeper(store, 1_000.0, noted(notes)))
    world.rebalance_share = 0.0
    world.register(QUERIES[0])
    for number in range(40):    # too few for a hop
        world.log.produce(number % 2, random_record(rng, f"S{number % 8}"))
    world.drain()
    world.processor.close()

    def slow_keeper() -> Keeper:
        keeper = make_keeper(store, 1_000.0, noted(notes))
        find = keeper._reader.find

        def slow(identity: Identity, offset: int) -> Manifest | None:
            assert identity.partition != 1 or told.wait(30)
            return find(identity, offset)

        keeper._reader.find = slow  # type: ignore[method-assign]
        return keeper

    world.keeper = slow_keeper
    num_answers = len(world.answers())
    world.crash()
    for number in range(16):
        world.log.produce(number % 2, random_record(rng, f"S{number % 8}"))
    deadline_s = time.monotonic() + 5
    while len(world.answers()) < num_answers + 4:   # half of them come without the other partition
        assert time.monotonic() < deadline_s
        world.step()
    computed = {n: [s.current.num_computed for s in p.sessions.values()] for n, p in world.processor.partitions.items()}
    assert all(computed[0])
    assert max(computed[1]) < len(world.renderer.prefix_ids) + BLOCK    # blocks that all sessions share
    assert all(partition.is_live for partition in world.processor.partitions.values())
    told.set()
    world.drain()
    assert len(world.answers()) == num_answers + 8
    assert world.processor.tier.num_loaded > 100
    world.processor.keeper.close()
    assert not notes


def test_a_worker_that_takes_over_computes_nothing_but_partly_filled_blocks(tmp_path) -> None:
    rng = random.Random(3)
    store, notes = open_store(f"file://{tmp_path}"), list[str]()
    world = World(rng, make_config(), 2, 400, keeper=lambda: make_keeper(store, 1_000.0, noted(notes)))
    world.rebalance_share = 0.0
    for _ in range(60):
        for number in range(8):
            world.log.produce(number % 2, random_record(rng, f"S{number}"))
        world.step()
    world.drain()
    before = world.sessions()
    world.processor.close()
    world.crash()
    world.drain()
    assert world.sessions() == before
    ahead = [s.next for p in world.processor.partitions.values() for s in p.sessions.values() if s.next]
    num_ahead = sum(generation.num_tokens for generation in ahead)      # is made again, while there is time
    assert world.processor.runner.num_tokens <= len(before) * (BLOCK - 1) + num_ahead
    assert world.processor.tier.num_loaded >= sum(num_tokens // BLOCK for num_tokens in before.values()) - 8 * 3
    assert not notes


def test_the_work_of_partitions_that_stay_goes_on_while_others_are_handed_over(tmp_path, monkeypatch) -> None:
    rng = random.Random(5)
    store, notes = open_store(f"file://{tmp_path}"), list[str]()
    config = make_config(step_tokens=16, backlog_tokens=10_000)
    world = World(rng, config, 2, 400, keeper=lambda: make_keeper(store, 1_000.0, noted(notes)))
    world.rebalance_share = 0.0
    for _ in range(40):
        world.log.produce(0, random_record(rng, "S0"))
    world.drain()
    for _ in range(40):
        world.log.produce(1, random_record(rng, "S1"))
    world.step()
    processor, meanwhile = world.processor, list[int]()
    hand_over = Keeper.hand_over

    def noting(keeper: Keeper, partitions: Any, copy_out: Any, deadline_s: float) -> None:
        before = processor.runner.num_tokens
        hand_over(keeper, partitions, copy_out, deadline_s)
        meanwhile.append(processor.runner.num_tokens - before)

    monkeypatch.setattr(Keeper, "hand_over", noting)
    processor.revoked([0])
    assert sum(meanwhile) > 0
    assert SnapshotReader(store, print).find(Identity("fake", "group", "records", "first", 0), 10**9)
    processor.close()
    assert not notes


def test_snapshots_are_made_while_memory_outside_the_pool_is_filled_all_the_time(tmp_path) -> None:
    """Every step copies out what has to leave the pool, and the next one is decided while it does."""
    rng, store, notes, picks = random.Random(3), open_store(f"file://{tmp_path}"), list[str](), 0
    world = World(rng, make_config(400, 100_000), 1, num_blocks=3_000, host_bytes=2_000 * 8 * BLOCK,
                  keeper=lambda: make_keeper(store, 0.0, noted(notes)))  # fmt: skip
    world.rebalance_share, world.source.batch = 0.0, 60
    processor = world.processor
    processor.device.runner.looks = lambda: 3   # type: ignore[attr-defined]
    keeper = processor.keeper
    assert isinstance(keeper, Keeper)
    pick = keeper.pick

    def watched() -> Any:
        nonlocal picks
        picks += 1
        return pick()

    keeper.pick = watched  # type: ignore[method-assign]
    for turn in range(700):
        if turn == 400:
            picks = 0
        for _ in range(6):
            world.log.produce(0, random_record(rng, f"S{rng.randrange(300)}"))
        world.step()
    assert picks > 120      # of 300 steps
    assert processor.scheduler.tier._here
    keeper.close()
