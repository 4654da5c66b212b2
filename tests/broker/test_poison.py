"""A record that kills the worker, on a real Kafka: found across restarts, set aside, and everything else answered."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from poison_worker import DIED, POISON
from workers import Site, ThreadWorker, as_toml, make_config, until

from streamproc.config import Topics
from streamproc.messages import Query
from streamproc.records import Trade, encode_record

pytestmark = pytest.mark.broker

SCRIPT = Path(__file__).parents[1] / "support" / "poison_worker.py"
TRIGGERED = [Query("always-2", "Is {last} {count}?", every=2, max_tokens=5)]
IDLE = [Query("idle", "now {last}?", max_tokens=4)]
MOST_RUNS = 12


def trades(start: int, count: int) -> list[Trade]:
    return [Trade("AB"[i % 2] * 3, 1_000 + i, f"{90 + i * 7 % 23}.{i % 10}", "1") for i in range(start, start + count)]


@pytest.fixture
def site(bootstrap_servers: str, make_topics: Callable[..., Topics]) -> Site:
    return Site(make_config(make_topics(2), bootstrap_servers), 2)


class Runs:
    """Runs of one worker, each to its death or until the site is settled."""

    def __init__(self, site: Site, folder: Path, where: str) -> None:
        self.site, self.log, self.file = site, folder / "worker.log", folder / "streamproc.toml"
        self.command = [sys.executable, str(SCRIPT), where, str(self.file)]
        self.num_deaths = 0

    def _is_done(self, process: "subprocess.Popen[bytes]", also: Callable[[], bool]) -> bool:
        return process.poll() is not None or (self.site.is_settled() and also())

    def until_settled(self, also: Callable[[], bool] = lambda: True) -> None:
        self.file.write_text(as_toml(self.site.config))
        for _ in range(MOST_RUNS):
            with self.log.open("a") as log:
                process = subprocess.Popen(self.command, stderr=log)
            try:
                until(partial(self._is_done, process, also), self.log.read_text())
            finally:
                died = process.poll()
                process.kill()
                process.wait()
            if died is None:
                return
            assert died == DIED, self.log.read_text()
            self.num_deaths += 1
        raise AssertionError(f"it dies again and again: {self.log.read_text()}")


@pytest.mark.parametrize("where", ["renderer", "runner"])
def test_a_record_that_kills_the_worker_goes_to_the_dead_topic_and_all_others_are_answered(
    where: str, site: Site, tmp_path: Path
) -> None:
    site.register(TRIGGERED)
    site.send_records(trades(0, 40))
    with ThreadWorker(site.config):
        site.settle()
    site.send_records(trades(40, 30))
    value = encode_record(Trade("AAA", 7, POISON, "1"))
    poison = site.send(site.config.topics.records, b"AAA", value)
    site.send_records(trades(70, 30))
    runs = Runs(site, tmp_path, where)
    runs.until_settled(lambda: bool(site.read(site.config.topics.dead)))
    assert runs.num_deaths <= site.config.worker.poison_after + 1, runs.log.read_text()
    (letter,) = site.read(site.config.topics.dead)
    assert (letter.key, letter.value) == (b"AAA", value)
    assert letter.headers["code"] == b"POISON_RECORD"
    assert int(letter.headers["deaths"]) >= site.config.worker.poison_after
    assert b"died at this record" in letter.headers["reason"]
    assert (int(letter.headers["partition"]), int(letter.headers["offset"])) == poison
    runs.until_settled()  # its session is restored without it
    assert runs.num_deaths <= site.config.worker.poison_after + 1
    assert len(site.read(site.config.topics.dead)) == 1
    assert site.triggered(TRIGGERED) == site.expected(TRIGGERED, lambda m: (m.partition, m.offset) != poison)
    ids = [answer.id for answer in site.answers()]
    assert len(ids) == len(set(ids))


def test_a_record_that_kills_only_after_its_offset_was_committed_is_found_while_it_is_restored(
    site: Site, tmp_path: Path
) -> None:
    site.register(IDLE)
    site.config = replace(site.config, worker=replace(site.config.worker, commit_interval_ms=1))
    site.send_records(trades(0, 20))
    poison = site.send(site.config.topics.records, b"AAA", encode_record(Trade("AAA", 7, POISON, "1")))
    site.send_records(trades(20, 2))
    with ThreadWorker(site.config):
        site.settle()
    runs = Runs(site, tmp_path, "runner")
    runs.until_settled(lambda: bool(site.read(site.config.topics.dead)))
    (letter,) = site.read(site.config.topics.dead)
    assert (int(letter.headers["partition"]), int(letter.headers["offset"])) == poison
    runs.until_settled()
    assert runs.num_deaths == site.config.worker.poison_after
    assert len(site.read(site.config.topics.dead)) == 1


def test_workers_killed_at_rest_make_no_record_suspect(site: Site, tmp_path: Path) -> None:
    site.register(TRIGGERED)
    site.send_records(trades(0, 40))
    runs = Runs(site, tmp_path, "runner")
    for _ in range(site.config.worker.poison_after + 2):
        runs.until_settled()
    assert "has died" not in runs.log.read_text()
    assert site.read(site.config.topics.dead) == []
