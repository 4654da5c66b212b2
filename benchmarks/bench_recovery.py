"""What snapshots save after a crash, and what they cost until then.

The model is that of bench_forward.py, its records are token ids; sessions of so many tokens each.

    restore_over_prefill    time until every session is back, computed from the log, over that with a snapshot: from the
                            assignment of the partition on, records read again and tokenised in both; the snapshot's
                            files are in the page cache (`cold`: dropped from it before, where that is allowed)
    first_answer_ms         from the assignment to the first answer to an ask, with a snapshot and without
    far                     the same, and until every session is back, with the store 20 ms away: a folder, and 20 ms
                            for each request; `standby`: by a worker that stood by, and had read all there is. Medians
    snapshot_cost           share of the tokens per second that snapshots every two seconds take, of taking in records:
                            the median of pairs, one after the other
    commit_ms_p50           what a commit takes beyond the time that the client spends in Kafka's own calls: an epoch of
                            answers of a worker on a real broker with the built-in model
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

import torch
from common import fresh_topics, kafka, last_line, show
from memory_kafka import until_idle
from peers import ours
from peers.standing import BLOCK_SIZE, Control, IdRenderer, Kafka, OurEngine, Stream
from peers.subject import ANSWER, SHAPE, SMALL, make_weights

from streamproc import keeper
from streamproc.config import Config, Engine, Snapshots, Topics, Worker
from streamproc.engine.build import build_engine
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.loaded import LoadedModel
from streamproc.engine.runner import ModelRunner
from streamproc.kafka.control import ControlTopic
from streamproc.kafka.epoch import EpochSink
from streamproc.kafka.producing import AckedProducer
from streamproc.kafka.properties import client_properties
from streamproc.kafka.source import Source
from streamproc.keeper import make_keeper
from streamproc.market.files import read_records
from streamproc.market.sample import SAMPLE, sample_path
from streamproc.messages import Ask, Head, Query
from streamproc.ports import Clock
from streamproc.processor import StreamProcessor, collect_rarely
from streamproc.records import Trade, encode_record
from streamproc.snapshots.files import FileStore
from streamproc.state.epoch import Message
from streamproc.state.partition import Recovery

NEVER_S = 86_400
OFTEN_S, SELDOM_S = 2, 5
PAIRS = 3
COMMITS = 300
LATENCY_S = 0.02
PATIENT_S = 120


@dataclass
class World:
    """A model, a log in memory, a place for snapshots."""

    loaded: LoadedModel
    threads: int
    num_sessions: int
    context: int
    folder: Path

    def __post_init__(self) -> None:
        self.stream = Stream(self.num_sessions, 0, 1, self.context)
        self.log: list[Message] = []

    def config(self, interval_s: int, url: str, host_bytes: int = 0) -> Config:
        engine = Engine(device="cpu", context_tokens=2 * self.context, host_bytes=host_bytes)
        return Config(engine=engine, worker=Worker(slot="bench", commit_interval_ms=20),
                      snapshots=Snapshots(url=url, interval_s=interval_s, standby=host_bytes > 0))  # fmt: skip

    def worker(
        self, interval_s: int = NEVER_S, url: str = "", host_bytes: int = 0
    ) -> tuple[StreamProcessor, Kafka]:
        """A new process's: empty cells, nothing assigned yet; with host_bytes it stands by."""
        config = self.config(interval_s, url, host_bytes)
        num_blocks = self.num_sessions * (-(-(self.context + 512) // BLOCK_SIZE)) + 8
        kv = KVCache(self.loaded.layout(BLOCK_SIZE), num_blocks, self.loaded.device)
        engine: Any = OurEngine(ModelRunner(self.loaded, kv, self.threads), IdRenderer(self.stream))
        source = Kafka(config.topics)
        processor = StreamProcessor(config, engine, source, Control(config.topics), Clock())
        processor.connect(source, make_keeper(config, engine, print) if url else None)
        return processor, source

    def fill_log(self, topics: Topics) -> None:
        for number in range(self.stream.first_records):
            for session in range(self.num_sessions):
                value = encode_record(Trade(f"s{session}", number, "1", "1"))
                self.log.append(Message(topics.records, 0, len(self.log), f"s{session}".encode(), value, 0))

    @property
    def num_tokens(self) -> int:
        return len(self.log) * 16 + self.num_sessions * 16


def restore(world: World, url: str) -> dict[str, float]:
    return bring_back(world, *world.worker(url=url))


def bring_back(world: World, processor: StreamProcessor, source: Kafka) -> dict[str, float]:
    """A worker gets the partition, all of it committed before -> seconds until all is there, and to a first answer."""
    heads = {f"s{i}": Head(f"s{i}", i, 0, {}) for i in range(world.num_sessions)}
    source.waiting, source.num_sent = list(world.log), len(world.log)
    source.add_ask(Ask("first", "s0", "q0", len(world.log) - 1, max_tokens=ANSWER))
    started = time.perf_counter()
    processor.assigned({0: Recovery(0, len(world.log), heads, asks_from=0)})
    first = None
    while source.waiting or not processor.is_at_rest or first is None:
        processor.step()
        if source.answers and first is None:
            first = source.answers[0][0] - started
    taken = time.perf_counter() - started
    found = {"seconds": taken, "tokens_per_s": world.num_tokens / taken, "first_answer_ms": first * 1e3,
             "blocks_loaded": processor.tier.num_loaded}  # fmt: skip
    processor.close()
    processor.runner.close()
    return found


class FarStore(FileStore):
    """A folder that is 20 ms away."""

    def _saying(self, deed: str, path: str) -> Any:
        time.sleep(LATENCY_S)
        return super()._saying(deed, path)


def far(world: World, url: str, pairs: int) -> dict[str, Any]:
    """From a store that is 20 ms away, without a standby and with one; medians, milliseconds."""
    opened, folder = keeper.open_store, Path(url.removeprefix("file://"))
    keeper.open_store = lambda url: FarStore(folder)  # type: ignore[assignment]
    rows: dict[str, list[dict[str, float]]] = {"far": [], "far, standby": []}
    for _ in range(pairs):
        rows["far"].append(restore(world, url))
        processor, source = world.worker(url=url, host_bytes=2**36)
        wait_for_standby(processor, world.num_tokens // BLOCK_SIZE - 2 * world.num_sessions)
        rows["far, standby"].append(bring_back(world, processor, source))
    keeper.open_store = opened
    show([{"how": how, **row} for how, several in rows.items() for row in several])
    found = {}
    for how, name in (("far", "without"), ("far, standby", "standby")):
        found[f"first_answer_ms_{name}"] = statistics.median(row["first_answer_ms"] for row in rows[how])
        found[f"back_ms_{name}"] = statistics.median(row["seconds"] for row in rows[how]) * 1e3
    return {"far": {**found, "latency_ms": LATENCY_S * 1e3, "tokens": world.num_tokens}}


def wait_for_standby(processor: StreamProcessor, num_blocks: int) -> None:
    """Until it has read so many blocks."""
    kept: Any = processor.keeper
    deadline_s = time.monotonic() + PATIENT_S
    while len(kept._standby.spare) < num_blocks:
        assert time.monotonic() < deadline_s, f"{len(kept._standby.spare)} of {num_blocks} blocks"
        time.sleep(0.05)
    time.sleep(0.2)


def ingest(world: World, interval_s: int, url: str) -> float:
    """Tokens/s of records that come as fast as they are computed; with a url, with snapshots."""
    processor, source = world.worker(interval_s, url)
    processor.assigned({0: Recovery(0, 0, {}, asks_from=0)})
    source.waiting, source.num_sent = list(world.log), len(world.log)
    started = time.perf_counter()
    until_idle(processor, source)
    found = world.num_tokens / (time.perf_counter() - started)
    processor.revoked([0])  # commits and leaves a snapshot, which is not counted
    processor.close()
    processor.runner.close()
    return found


def drop_from_cache(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def recovery(given: argparse.Namespace) -> dict[str, Any]:
    shape = SMALL if given.small else SHAPE
    with tempfile.TemporaryDirectory(prefix="streamproc-bench-") as name:
        folder = Path(name)
        loaded = ours.load(shape, make_weights(shape), folder)
        world = World(loaded, given.threads, given.sessions, given.context, folder)
        world.fill_log(world.config(1, "").topics)
        kept = f"file://{folder}/kept"
        ingest(world, SELDOM_S, kept)
        if given.only == "standby":
            return far(world, kept, given.pairs)
        rows = {"computed": restore(world, ""), "restored": restore(world, kept)}
        drop_from_cache(folder / "kept")
        rows["restored, cold"] = restore(world, kept)
        show([{"how": how, **row} for how, row in rows.items()])
        assert rows["restored"]["blocks_loaded"] >= world.num_tokens // BLOCK_SIZE - 2 * world.num_sessions
        found = far(world, kept, given.pairs)
        small = replace(world, context=min(given.context, 4_000))
        small.fill_log(world.config(1, "").topics)
        pairs = [(ingest(small, NEVER_S, ""), ingest(small, OFTEN_S, f"file://{folder}/pair{i}"))
                 for i in range(given.pairs)]  # fmt: skip
        costs = [1 - on / off for off, on in pairs]
    return {"restore_over_prefill": rows["computed"]["seconds"] / rows["restored"]["seconds"],
            "restore_over_prefill_cold": rows["computed"]["seconds"] / rows["restored, cold"]["seconds"],
            "restored_tokens_per_s": rows["restored"]["tokens_per_s"],
            "first_answer_ms": {how: row["first_answer_ms"] for how, row in rows.items()},
            "snapshot_cost": statistics.median(costs), "snapshot_costs": costs, "tokens": world.num_tokens,
            **found}  # fmt: skip


class Timed:
    """A producer that counts the time spent in its calls that wait for the broker."""

    def __init__(self, producer: Any) -> None:
        self.producer, self.seconds = producer, 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.producer, name)
        return self._timed(found) if name in {"send_offsets_to_transaction", "commit_transaction"} else found

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*given)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


def commits(given: argparse.Namespace) -> dict[str, Any]:
    """Commits of a worker that answers a question for every record, on a real Kafka."""
    with kafka() as (address, broker), fresh_topics(address, 1) as topics, tempfile.TemporaryDirectory() as folder:
        engine = Engine(model="market-tiny", device="cpu")
        config = Config(topics, engine, worker=Worker(group=topics.records, slot="bench", commit_interval_ms=20),
                        kafka={"bootstrap.servers": address},
                        snapshots=Snapshots(url=folder, interval_s=1))  # fmt: skip
        properties = client_properties(config)
        producer, query = AckedProducer(properties), Query("q", "Is {last} high?", "*", every=1, max_tokens=4)
        producer.send(topics.control, b"q", query.encode(), 0)
        assert producer.flush(30) == 0
        built, control = build_engine(config), ControlTopic(config)
        sink = EpochSink(properties, f"{topics.records}-bench", print)
        timed = sink._producer = Timed(sink._producer)
        processor = StreamProcessor(config, built, sink, control, Clock())
        processor.connect(Source(config, processor, print), make_keeper(config, built, print))
        ours_s: list[float] = []
        whole_s: list[float] = []
        commit = processor.commit

        def counted(*args: Any, **more: Any) -> None:
            before, epochs, started = timed.seconds, processor.counters.epochs, time.perf_counter()
            commit(*args, **more)
            if processor.counters.epochs > epochs:
                whole_s.append(time.perf_counter() - started)
                ours_s.append(whole_s[-1] - (timed.seconds - before))

        processor.commit = counted  # type: ignore[method-assign]
        trades = itertools.cycle(read_records(sample_path(SAMPLE[0])))
        while len(ours_s) < given.commits:
            if processor.is_at_rest:
                for record in itertools.islice(trades, 4):
                    producer.send(topics.records, record.sym.encode(), encode_record(record), 0)
                producer.flush(10)
            processor.step()
        processor.close()
        control.close()
        built.close()
    return {"commit_ms_p50": statistics.median(ours_s) * 1e3,
            "commit_ms_p99": sorted(ours_s)[-len(ours_s) // 100] * 1e3,
            "commit_whole_ms_p50": statistics.median(whole_s) * 1e3, "broker": broker}  # fmt: skip


def main() -> None:
    collect_rarely()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=2)
    parser.add_argument("--context", type=int, default=16_000, help="tokens of a session")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="with snapshots and without")
    parser.add_argument("--commits", type=int, default=COMMITS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--small", action="store_true", help="a model of 8M parameters: to try the program itself")
    parser.add_argument("--only", choices=("recovery", "standby", "commits"))
    given = parser.parse_args()
    found: dict[str, Any] = {}
    if given.only != "commits":
        found |= recovery(given)
    if given.only in (None, "commits"):
        found |= commits(given)
    last_line(found)


if __name__ == "__main__":
    main()
