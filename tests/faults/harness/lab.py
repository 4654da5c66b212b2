"""One run: topics of its own on the cluster under test, load on them, faults from a scenario, and the verdict."""

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from confluent_kafka.admin import AdminClient
from workers import Site, make_config

from harness.checker import Verdict, check_file
from harness.cluster import Cluster
from harness.driver import Driver, Load
from harness.history import History, text_of
from harness.processes import Workers
from harness.reader import Reader, Sampler
from harness.settling import Place, Settling
from harness.store import Store
from harness.topics import admin_properties, delete_topics, make_topics, offsets_at_end
from streamproc.config import Config, Snapshots
from streamproc.errors import StreamprocError
from streamproc.kafka.process import wait_until
from streamproc.messages import Query

TICK_S = 0.1
STILL_S = 90.0  # that a partition may stand still while it is behind
SETTLE_S = 900.0
GRACE_S = 1.5  # after which every running worker has read a change of the control topic
QUERIES = (
    Query("every-3", "Is {last} {count}?", every=3, max_tokens=5),
    Query("change-4", "up?", every=4, emit="change", max_tokens=1),
    Query("some-5", "{session} vwap {vwap} hi {high}", "S[135]*", every=5, max_tokens=8),
)


@dataclass(frozen=True)
class Shape:
    """What a run works on."""

    num_partitions: int = 2
    num_answers: int = 3  # partitions of the answers topic
    num_sessions: int = 8
    context_tokens: int = 160  # 160: sessions hop often; 4096: they do not within a short run
    records_per_s: float = 400.0
    asks_per_s: float = 2.0
    poison_share: float = 0.0
    queries: Sequence[Query] = QUERIES
    settings: dict[str, Any] = field(default_factory=dict)  # of the worker
    kept: int = 2  # snapshots of a partition
    store_bytes: int = 0  # of the file system of its own that they lie on; 0: they lie beside the history

    @property
    def sessions(self) -> list[str]:
        return [f"S{number}" for number in range(self.num_sessions)]


class Lab:
    """Everything that a scenario works with. Use as a context manager; `finish` gives the verdict."""

    def __init__(self, cluster: Cluster, folder: Path, name: str, seed: int, shape: Shape = Shape()) -> None:
        self.cluster, self.shape, self.rng = cluster, shape, random.Random(seed)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.history = History(folder / "history.jsonl")
        self.store = Store(folder / "snapshots", self.history, shape.store_bytes)
        self.admin = AdminClient(admin_properties(cluster.address))
        self.topics = make_topics(self.admin, name, partitions_of(shape))
        self.config = self._config()
        self.site = Site(replace(self.config, kafka={"bootstrap.servers": cluster.address}), shape.num_partitions)
        self.workers = Workers(self.config, cluster.lane_address, folder, self.history)
        self.reader = Reader(cluster.address, self.topics.answers, shape.num_answers, self.history)
        group = self.config.worker.group
        self.sampler = Sampler(cluster.address, group, self.topics.records, self.reader, self.history)
        self.driver = self._new_driver(0)
        self._is_driving = False
        engine = self.config.engine
        self.history.add(
            "run",
            scenario=name,
            seed=seed,
            topics=asdict(self.topics),
            group=group,
            context_tokens=engine.context_tokens,
            keep_tokens=int(engine.context_tokens * engine.keep),
        )

    def _config(self) -> Config:
        config = make_config(self.topics, "", context_tokens=self.shape.context_tokens)
        worker = replace(config.worker, **self.shape.settings)
        snapshots = Snapshots(url=str(self.store.path), interval_s=1, keep=self.shape.kept)
        return replace(config, worker=worker, snapshots=snapshots)

    def _new_driver(self, first: int) -> Driver:
        shape = self.shape
        load = Load(shape.sessions, shape.records_per_s, shape.poison_share, shape.asks_per_s)
        return Driver(self.cluster.address, self.topics, load, self.history, self.rng, first)

    def __enter__(self) -> "Lab":
        self.register(self.shape.queries)
        self.reader.start()
        self.sampler.start()
        self.store.mount()  # the last deed: nothing after it fails, so it is undone
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as deeds:  # from the last to the first, each of them whatever becomes of the others
            deeds.callback(delete_topics, self.admin, self.topics)
            deeds.callback(self.history.close)
            deeds.callback(self.reader.stop)
            deeds.callback(self.sampler.stop)
            if self._is_driving:
                deeds.callback(self.drive_no_more)
            deeds.callback(self.cluster.ensure_up)
            deeds.callback(self.store.unmount)
            deeds.callback(self.workers.close)

    # What scenarios do

    def drive(self) -> None:
        """Send records from now on."""
        self.driver.start()
        self._is_driving = True

    def drive_no_more(self) -> None:
        self._is_driving = False
        self.driver.stop()

    def drive_again(self) -> None:
        """Go on, with a producer that asks for the topic's partitions afresh."""
        self.driver = self._new_driver(max(self.driver.num_records, self.driver.num_asks))
        self.drive()

    def grow(self, num_partitions: int) -> None:
        """The records and asks topics have so many partitions now."""
        self.shape = replace(self.shape, num_partitions=num_partitions)
        self.site = Site(self.site.config, num_partitions)

    def run(self, seconds: float, each: Callable[[], None] = lambda: None) -> None:
        """Let time pass; whoever dies meanwhile is started again."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.workers.supervise()
            each()
            time.sleep(min(TICK_S, left))

    def until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether it came true in time; whoever dies meanwhile is started again."""

        def is_true() -> bool:
            self.workers.supervise()
            return condition()

        return wait_until(is_true, timeout_s)

    def until_live(self, timeout_s: float = 30.0) -> bool:
        """Until all partitions are owned and live, each by one worker."""
        wanted = {str(number) for number in range(self.shape.num_partitions)}

        def is_live() -> bool:
            owned = [item for each in self.workers.owned().values() for item in each.items()]
            return len(owned) == len(wanted) and {number for number, phase in owned if phase == "live"} == wanted

        return self.until(is_live, timeout_s)

    def until_moving(self, timeout_s: float = 60.0) -> bool:
        """Until the reader has seen something new."""
        before = self.reader.num_seen
        return self.until(lambda: self.reader.num_seen > before, timeout_s)

    def register(self, queries: Sequence[Query]) -> None:
        """Before any worker runs: these count from the first record on."""
        for query in queries:
            self.site.send(self.topics.control, query.id.encode(), query.encode())
            self.history.add("query", id=query.id, value=query.encode().decode(), low={}, high={})

    def change(self, query_id: str, query: Query | None) -> None:
        """Change a query while records flow: between `low` and `high` either version may answer a record."""
        value = None if query is None else query.encode()
        low = self.committed(self.topics.records)
        self.site.send(self.topics.control, query_id.encode(), value)
        self.run(GRACE_S)
        high = self.site.ends(self.topics.records)
        self.history.add("query", id=query_id, value=text_of(value), low=low, high=high)

    def committed(self, topic: str) -> dict[int, int]:
        return {number: max(offset, 0) for number, (offset, _) in self.site.committed(topic).items()}

    # The end

    def finish(self) -> Verdict:
        """Heal everything, let it settle, write down what the logs hold -> the verdict."""
        self.write_end()
        return check_file(self.history.path)

    def write_end(self) -> None:
        """The end of the history."""
        self.cluster.ensure_up()
        for slot, started in self.workers.running.items():
            if started.is_frozen:
                self.workers.thaw(slot)
        if self._is_driving:
            self.drive_no_more()
        self.settle()
        self.sampler.stop()
        for slot in list(self.workers.running):
            self.workers.stop(slot)
        self._final_polls()
        self._write_logs()
        self.history.close()

    def settle(self) -> None:
        """Wait until everything sent is committed past, as long as every partition that is behind moves on."""
        if not self.workers.running:
            self.workers.start("a")
        settling = Settling(STILL_S)

        def is_over() -> bool:
            with suppress(StreamprocError):
                settling.look(time.monotonic(), self._places(self.committed), self._places(self.site.ends))
            return settling.is_over

        self.until(is_over, SETTLE_S)
        why = "" if settling.is_settled else f"not all processed after everything was healed: {self._lag(settling)}"
        self.history.add("settled", ok=settling.is_settled, why=why)

    def _places(self, offsets_of: Callable[[str], dict[int, int]]) -> dict[Place, int]:
        topics = (self.topics.records, self.topics.asks)
        return {(topic, number): offset for topic in topics for number, offset in offsets_of(topic).items()}

    def _lag(self, settling: Settling) -> str:
        stuck = "; ".join(settling.stuck) or f"{SETTLE_S:.0f} s were not enough"
        return (
            f"{stuck}; committed {self._places(self.committed)}, ends {self._places(self.site.ends)}, "
            f"{self.workers.owned()}"
        )

    def _final_polls(self) -> None:
        """Until the reader is at the end of what is committed, as the log says it."""
        newest = dict.fromkeys(range(self.shape.num_answers), 0)
        for message in self._read("answers"):
            newest[message.partition] = message.offset + 1
        wait_until(lambda: all(self.reader.positions[p] >= end for p, end in newest.items()), 20)
        self.reader.stop()

    def site_of(self, role: str) -> Site:
        """For a topic that has another number of partitions than the records."""
        return Site(self.site.config, partitions_of(self.shape)[role])

    def _read(self, role: str) -> list[Any]:
        return self.site_of(role).read(getattr(self.topics, role))

    def _write_logs(self) -> None:
        counts = partitions_of(self.shape)
        for role in asdict(self.topics):
            for message in self._read(role):
                headers = {name: text_of(value) for name, value in message.headers.items() if name != "timings"}
                self.history.add(
                    "log",
                    topic=role,
                    partition=message.partition,
                    offset=message.offset,
                    key=text_of(message.key),
                    value=text_of(message.value),
                    **({"headers": headers} if headers else {}),
                )
            topic = getattr(self.topics, role)
            visible, whole = (offsets_at_end(self.cluster.address, topic, counts[role], c) for c in (True, False))
            self.history.add("ends", topic=role, committed=visible, all=whole)
        for role in ("records", "asks"):
            self.history.add("group", topic=role, committed=self.committed(getattr(self.topics, role)))


def partitions_of(shape: Shape) -> dict[str, int]:
    """Partitions by role of the topic."""
    return {
        "records": shape.num_partitions,
        "asks": shape.num_partitions,
        "sessions": shape.num_partitions,
        "answers": shape.num_answers,
        "control": 1,
        "dead": 1,
    }
