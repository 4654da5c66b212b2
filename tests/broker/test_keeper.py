"""Snapshots on a real Kafka: whoever gets a partition takes its sessions from what the owner before it has left."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine, FakeRenderer, FakeRunner
from snapshot_world import Far, S3Server
from workers import BLOCK, Site, ThreadWorker, make_config, until, with_slot

from streamproc import keeper
from streamproc.config import Snapshots, Topics
from streamproc.messages import Query
from streamproc.records import Trade
from streamproc.snapshots.store import open_store

pytestmark = pytest.mark.broker

NUM_PARTITIONS = 2
SYMBOLS = [f"SYM{i}" for i in range(8)]
QUERIES = [Query("q", "Is {last} {count}?", every=2, max_tokens=5)]


@pytest.fixture
def site(bootstrap_servers: str, make_topics: Callable[..., Topics], tmp_path: Path) -> Site:
    config = make_config(make_topics(NUM_PARTITIONS), bootstrap_servers)
    return Site(replace(config, snapshots=Snapshots(url=str(tmp_path / "kept"), interval_s=1)), NUM_PARTITIONS)


def trades(start: int, count: int) -> list[Trade]:
    return [Trade(SYMBOLS[i % 8], i, f"{90 + i * 7 % 23}.5", str(1 + i % 9)) for i in range(start, start + count)]


def num_computed(worker: ThreadWorker) -> int:
    return int(worker.processor.runner.num_tokens)


def num_full_blocks(worker: ThreadWorker) -> int:
    partitions = worker.processor.partitions.values()
    return sum(s.current.num_tokens // BLOCK for partition in partitions for s in partition.sessions.values())


def held_by(standby: ThreadWorker, owner: ThreadWorker) -> set[bytes]:
    """Names of the full blocks of the owner's sessions, if the other one has all of them in memory."""
    generations = [s.current for p in owner.processor.partitions.values() for s in p.sessions.values()]
    names = {g.name(index, BLOCK) for g in generations for index in range(g.num_tokens // BLOCK)}
    tier = standby.processor.tier
    return names if all(tier.get(name) is not None for name in names) else set()


def is_quiet(store: Far) -> bool:
    """Whether nothing was read while a standby looked several times."""
    num_read = store.num_read
    time.sleep(1.5)
    return store.num_read == num_read


def is_back(worker: ThreadWorker, owned: list[int]) -> bool:
    processor = worker.processor
    live = all(partition.is_live for partition in list(processor.partitions.values()))
    return worker.owned == owned and live and processor.workload.is_idle


def test_a_planned_move_leaves_nothing_to_compute(site: Site) -> None:
    site.register(QUERIES)
    with ThreadWorker(with_slot(site.config, "a")) as first:
        site.send_records(trades(0, 200))
        site.settle()
        with ThreadWorker(with_slot(site.config, "b")) as second:
            until(lambda: len(second.owned) == 1 and is_back(second, second.owned), "the second worker's partition")
            num_blocks = num_full_blocks(second)
            assert num_blocks > 20
            assert second.processor.tier.num_loaded >= num_blocks - 8       # the first one is the same for all sessions
            assert num_computed(second) < 8 * (BLOCK + 80)      # the newest tokens, and what is made ahead
            site.send_records(trades(200, 100))
            site.settle()
        until(lambda: first.owned == [0, 1], "both partitions")
        site.send_records(trades(300, 60))
        site.settle()
        assert not [line for line in first.warnings if "snapshot" in line]
    assert site.triggered(QUERIES) == site.expected(QUERIES)


def test_a_restart_takes_from_the_store_what_it_had(site: Site) -> None:
    site.register(QUERIES)
    with ThreadWorker(with_slot(site.config, "a")):
        site.send_records(trades(0, 200))
        site.settle()
    site.send_records(trades(200, 16))
    with ThreadWorker(with_slot(site.config, "a")) as again:
        until(lambda: is_back(again, [0, 1]), "the partitions")
        assert again.processor.tier.num_loaded > 50
        site.settle()
    assert site.triggered(QUERIES) == site.expected(QUERIES)


def test_a_damaged_store_costs_time_only(site: Site, tmp_path: Path) -> None:
    site.register(QUERIES)
    with ThreadWorker(with_slot(site.config, "a")):
        site.send_records(trades(0, 200))
        site.settle()
    for path in (tmp_path / "kept").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with ThreadWorker(with_slot(site.config, "a")) as again:
        site.send_records(trades(200, 50))
        site.settle()
        assert [line for line in again.warnings if "snapshots" in line and "computed again" in line]
    assert site.triggered(QUERIES) == site.expected(QUERIES)


def test_another_model_passes_over_what_is_not_its_own(site: Site) -> None:
    site.register(QUERIES)
    with ThreadWorker(with_slot(site.config, "a")):
        site.send_records(trades(0, 100))
        site.settle()
    engine = FakeEngine(FakeRunner(2_000, BLOCK), FakeRenderer(), fingerprint="another")
    with ThreadWorker(with_slot(site.config, "a"), engine) as again:
        site.send_records(trades(100, 50))
        site.settle()
        assert [line for line in again.warnings if "another model" in line]
        assert again.processor.tier.num_loaded == 0
    assert site.triggered(QUERIES) == site.expected(QUERIES)


@pytest.fixture
def far_site(
    bootstrap_servers: str, make_topics: Callable[..., Topics], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Site, list[Far]]]:
    """Workers stand by; snapshots are on a real S3 server, 20 ms away. The store of each worker, in their order."""
    server, stores = S3Server().start(), list[Far]()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-test")

    def far_store(url: str) -> Any:
        stores.append(Far(open_store(url), 0.02))
        return stores[-1]

    monkeypatch.setattr(keeper, "open_store", far_store)
    config = make_config(make_topics(NUM_PARTITIONS), bootstrap_servers, host_bytes=2**20)
    kept = Snapshots(url=server.bucket("kept"), interval_s=1, standby=True)
    yield Site(replace(config, snapshots=kept), NUM_PARTITIONS), stores
    server.stop()


def test_a_partition_that_moves_to_a_worker_that_stands_by_is_back_with_nothing_read(
    far_site: tuple[Site, list[Far]],
) -> None:
    site, stores = far_site
    site.register(QUERIES)
    with ThreadWorker(with_slot(site.config, "a")) as first:
        until(lambda: first.owned == [0, 1], "both partitions")
        with ThreadWorker(with_slot(site.config, "b")) as second:
            until(lambda: len(second.owned) == 1 and is_back(second, second.owned), "the second worker's partition")
            site.send_records(trades(0, 208))
            site.settle()   # nothing grows any more: the next rounds store all full blocks
            names = until(lambda: held_by(second, first), "the blocks of the first worker's partition")
            num_before, num_loaded = num_computed(second), second.processor.tier.num_loaded
            until(lambda: is_quiet(stores[1]), "the end of what is read ahead")
            num_read = stores[1].num_read
            first.stop()
            until(lambda: is_back(second, [0, 1]), "both partitions")
            assert second.processor.tier.num_loaded - num_loaded >= len(names) - 8   # some are in the pool as well
            assert stores[1].read[num_read:] == []
            assert num_computed(second) - num_before < 4 * (BLOCK + 80)
            site.send_records(trades(208, 60))
            site.settle()
            assert not [line for line in second.warnings if "snapshot" in line]
    assert site.triggered(QUERIES) == site.expected(QUERIES)
