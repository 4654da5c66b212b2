"""torchrun starts a worker in two processes: its answers are those of one, and it stops as one."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from workers import Site, make_config, start_process

from streamproc.answertypes import AnswerType
from streamproc.config import Config, Snapshots, Topics
from streamproc.messages import Query
from streamproc.records import Trade

pytestmark = pytest.mark.broker

RUN = ("-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
       "-m", "streamproc", "run", "--json", "--config")  # fmt: skip
Running = Callable[[Config], subprocess.Popen[str]]
QUERIES = [
    Query("text", "now {last}?", every=4, max_tokens=8),
    Query("number", "how many?", every=5, answer=AnswerType("number"), max_tokens=4),
]


@pytest.fixture
def site(bootstrap_servers: str, make_topics: Callable[..., Topics], tmp_path: Path) -> Site:
    config = make_config(make_topics(1), bootstrap_servers, device="cpu", dtype="float32", block_size=16,
                         context_tokens=512)  # fmt: skip
    config = replace(config, snapshots=Snapshots(url=str(tmp_path / "snapshots"), interval_s=1))
    return Site(replace(config, worker=replace(config.worker, slot="")), 1)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """`running(config)` -> torchrun, its worker started; it ends with the test at the latest."""
    processes: list[subprocess.Popen[str]] = []

    def start(config: Config) -> subprocess.Popen[str]:
        processes.append(start_process(config, tmp_path, RUN))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.terminate()     # killed, it would leave its processes behind
            process.communicate(timeout=90)


def trades(start: int, count: int) -> list[Trade]:
    return [Trade("BTC", 1_000 + i, f"{90 + i * 7 % 23}.{i % 10}", str(1 + i % 9)) for i in range(start, start + count)]


def oracle(config: Config) -> tuple[Any, Callable[..., str]]:
    """One process's engine, and its answer to some ids from nothing."""
    from streamproc.engine.build import build_engine, stateless_answer
    from streamproc.state.ending import finished_text

    engine = build_engine(config)

    def answer(renderer: Any, ids: list[int], max_tokens: int, stop: tuple[str, ...], kind: AnswerType) -> str:
        found = stateless_answer(engine, ids, max_tokens, stop, kind)
        text = finished_text(engine.renderer, found, stop, max_tokens)
        assert text is not None
        return text

    return engine, answer


def process_id(folder: Path) -> int:
    """Of the first process of the newest worker, whose slot is made of it."""
    found = re.findall(r"^worker \S+-(\d+)-[0-9a-f]+ in group", log_of(folder), re.MULTILINE)
    return int(found[0])


def log_of(folder: Path) -> str:
    return max(folder.glob("worker-*.log"), key=lambda path: path.stat().st_mtime).read_text()


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_two_processes_answer_as_one_and_stop_together(site: Site, running: Running, tmp_path: Path) -> None:
    site.register(QUERIES)
    for turn in range(2):       # the second time from what the first has saved
        worker = running(site.config)
        site.send_records(trades(turn * 60, 60))
        site.settle()
        os.kill(worker.pid if turn == 0 else process_id(tmp_path), signal.SIGTERM)
        out, _ = worker.communicate(timeout=90)
        assert worker.returncode == (turn == 0)     # torchrun's own word on a signal
        assert json.loads(out)["records"] >= 60
        said = log_of(tmp_path)
        assert said.count("tensor parallel: 2 processes") == 1
        assert "random-tiny on cpu (reference kernels, deterministic)" in said
        assert "exact: true" in said
        assert "streamproc: " not in said
    assert int(re.findall(r"partition 0 is back .* (\d+) tokens were taken from snapshots", said)[0]) > 0
    engine, answer = oracle(replace(site.config, snapshots=Snapshots()))
    assert site.triggered(QUERIES) == site.expected(QUERIES, renderer=engine.renderer, answer=answer)
    engine.close()


def test_the_death_of_a_process_ends_the_worker_with_a_line(site: Site, running: Running, tmp_path: Path) -> None:
    worker = running(site.config)
    first = process_id(tmp_path)
    other, = set(children(worker.pid)) - {first}
    os.kill(other, signal.SIGKILL)
    worker.communicate(timeout=90)
    assert worker.returncode == 1
    lines = [line for line in log_of(tmp_path).splitlines() if line.startswith("streamproc: ")]
    assert lines == ["streamproc: process 1 of 2 has ended; the model needs all of them, start torchrun again"]
