"""Random walks of the whole worker on fakes, with snapshots on a real store: answers stay the oracle's, and what was
stored is not computed again.
"""

import random
from collections.abc import Callable

import pytest
from oracle import expected_answers
from world import BLOCK, CONTEXT, KEEP, QUERIES, World, in_log_order, make_config, random_record

from streamproc.keeper import Keeper
from streamproc.snapshots.manifest import Identity
from streamproc.snapshots.restore import SnapshotReader
from streamproc.snapshots.store import Store, open_store
from streamproc.snapshots.writer import SnapshotWriter


def make_keeper(store: Store, interval_s: float, warn: Callable[[str], None]) -> Keeper:
    def identity(number: int, topic_id: str) -> Identity:
        return Identity("fake", "group", "records", topic_id, number)

    return Keeper(identity, SnapshotWriter(store, warn), SnapshotReader(store, warn), interval_s, warn)


def noted(notes: list[str]) -> Callable[[str], None]:
    return notes.append


@pytest.mark.parametrize("seed", range(24))
def test_answers_equal_the_oracle_whatever_is_restored(seed: int, tmp_path) -> None:
    rng = random.Random(seed)
    config = make_config(step_tokens=rng.choice((16, 48, 400)), backlog_tokens=rng.choice((40, 1_000)))
    store, notes = open_store(f"file://{tmp_path}"), list[str]()
    keepers: list[Keeper] = []

    def keeper() -> Keeper:
        keepers.append(make_keeper(store, rng.choice((0.0, 0.001, 0.02)), noted(notes)))
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
