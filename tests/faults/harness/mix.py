"""T7: Jepsen's workload, without the processor: clients that send and poll unique numbers, up to four at once.

Each client has a lane through the proxy and commits through the product's EpochSink; it is thrown away and made anew
now and then, as after a crash. What is known of a transaction is what its client was told: ok, or nothing (info).

Events: txn (client, type ok|info, sends, polls: [key, offset, number]), and at the end log and ends as in `history.py`.
"""

import itertools
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from workers import create_topics

from harness.anomalies import Anomaly
from harness.checker import Verdict
from harness.cluster import Cluster
from harness.history import Event, History, Past, read_history
from harness.nemeses import NEMESES
from harness.offsets import hanging
from harness.processes import KAFKA
from harness.reader import CONSUMER
from harness.topics import admin_properties, offsets_at_end
from streamproc.errors import EpochAborted, Fenced, Unavailable
from streamproc.kafka.epoch import EpochSink
from streamproc.kafka.properties import LOGGER
from streamproc.kafka.tailing import Tail
from streamproc.kafka.topics import BROKER_DEFAULT
from streamproc.state.epoch import Epoch, Outgoing

NUM_KEYS, NUM_CLIENTS = 4, 3
MAX_OPS = 4
CRASH_SHARE = 1 / 60  # of transactions: the client is gone in the middle
MOVE_SHARE = 1 / 64  # a poller starts again where it has not read yet, or at the beginning

Sinks = Callable[[dict[str, Any], str, Callable[[str], None]], Any]


class Client:
    """One thread with a producer and a poller of its own."""

    def __init__(self, number: int, address: str, topic: str, history: History, seed: int, sinks: Sinks) -> None:
        self._number, self._topic, self._history, self._sinks = number, topic, history, sinks
        self._rng = random.Random(seed * 100 + number)
        self._properties = {**KAFKA, "bootstrap.servers": address, "logger": LOGGER}
        self._next = itertools.count(number * 10_000_000)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"client-{number}", daemon=True)
        self._consumer = Consumer({**CONSUMER, "bootstrap.servers": address, "group.id": f"{topic}-{number}"})
        self._assign(OFFSET_BEGINNING)
        self.problem: BaseException | None = None
        self._thread.start()

    def _assign(self, offset: int) -> None:
        self._consumer.assign([TopicPartition(self._topic, key, offset) for key in range(NUM_KEYS)])
        self._history.add("assign", client=self._number)

    def stop(self) -> bool:
        """Whether it has ended in time."""
        self._stopped.set()
        self._thread.join(90)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._live()
            self._consumer.close()
        except BaseException as problem:
            self.problem = problem

    def _live(self) -> None:
        """From a start to a crash; a start that finds no broker is tried again."""
        try:
            sink = self._sinks(self._properties, f"{self._topic}-{self._number}", lambda text: None)
            while not self._stopped.is_set():
                if self._rng.random() < CRASH_SHARE:
                    return
                self._transact(sink)
        except (Unavailable, Fenced) as problem:
            self._history.add("note", text=f"client {self._number}: {problem}")
            time.sleep(0.2)

    def _transact(self, sink: Any) -> None:
        if self._rng.random() < MOVE_SHARE:
            self._assign(OFFSET_BEGINNING)
        sends: list[list[int]] = []
        polls: list[list[int]] = []
        for _ in range(self._rng.randint(1, MAX_OPS)):
            if self._rng.random() < 0.6:
                sends.append([self._rng.randrange(NUM_KEYS), next(self._next)])
            else:
                polls += self._poll()
        messages = tuple(Outgoing(self._topic, b"", str(number).encode(), (), key) for key, number in sends)
        kind = "ok"
        try:
            sink.commit(Epoch(messages, ()), None)
        except (EpochAborted, Fenced, Unavailable):
            kind = "info"
        self._history.add("txn", client=self._number, type=kind, sends=sends, polls=polls)
        time.sleep(self._rng.uniform(0, 0.02))

    def _poll(self) -> list[list[int]]:
        found = self._consumer.consume(100, 0.05)
        return [[int(m.partition()), int(m.offset()), int(m.value())] for m in found if m.error() is None]


def mixed_clients(cluster: Cluster, folder: Path, seed: int, length_s: float, sinks: Sinks = EpochSink) -> Verdict:
    """Clients at work while the broker is killed and frozen and their lanes are spoilt."""
    folder.mkdir(parents=True, exist_ok=True)
    history, rng = History(folder / "history.jsonl"), random.Random(seed)
    topic = f"t7-{uuid.uuid4().hex[:8]}"
    admin = AdminClient(admin_properties(cluster.address))
    create_topics(admin, NewTopic(topic, NUM_KEYS, BROKER_DEFAULT))
    history.add("run", scenario="T7", seed=seed, topics={"ints": topic})
    clients = [Client(n, cluster.lane_address(n), topic, history, seed, sinks) for n in range(NUM_CLIENTS)]
    deadline = time.monotonic() + length_s
    while time.monotonic() < deadline:
        time.sleep(rng.uniform(1.0, 4.0))
        NEMESES[rng.choice(sorted(NEMESES))](cluster, history, rng, time.sleep)
    cluster.ensure_up()
    for client in clients:
        if not client.stop() or client.problem:
            history.add("settled", ok=False, why=f"client {client}: {client.problem or 'it does not end'}")
    write_end(cluster.address, topic, history)
    history.close()
    admin.delete_topics([topic])[topic].exception()
    return check_mix(Past(read_history(history.path)))


def write_end(address: str, topic: str, history: History) -> None:
    """Final polls: all that is committed, from the beginning."""
    tail = Tail(admin_properties(address), topic, NUM_KEYS)
    try:
        tail.start(tail.starts())
        for message in tail.read_to_end():
            place = {"partition": message.partition, "offset": message.offset}
            history.add("log", topic="ints", **place, value=int(message.value or b""))
    except Unavailable as problem:
        history.add("settled", ok=False, why=f"the log cannot be read to its end: {problem}")
    finally:
        tail.close()
    visible, whole = (offsets_at_end(address, topic, NUM_KEYS, committed) for committed in (True, False))
    history.add("ends", topic="ints", committed=visible, all=whole)


def check_mix(past: Past) -> Verdict:
    """Jepsen's checks over unique numbers."""
    log = {(e["partition"], e["offset"]): e["value"] for e in past.of("log", topic="ints")}
    anomalies = [*sent(past, log), *polled(past, log), *hanging(past)]
    anomalies += [Anomaly("stuck", event["why"]) for event in past.of("settled", ok=False)]
    times = [event["t"] for event in past.of("txn", type="ok")]
    stall = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
    return Verdict(anomalies, stall, len(log), len(past.of("fault")))


def sent(past: Past, log: dict[tuple[int, int], int]) -> Iterator[Anomaly]:
    """Transactions are in the log whole, once, or not at all."""
    there = Counter(log.values())
    for number, count in there.items():
        if count > 1:
            yield Anomaly("duplicate", f"{number} is in the log {count} times")
    known = set()
    for event in past.of("txn"):
        numbers = [number for _, number in event["sends"]]
        known.update(numbers)
        gone = [number for number in numbers if number not in there]
        if gone and event["type"] == "ok":
            yield Anomaly("lost-write", f"{gone} of client {event['client']} were acknowledged, and are not in the log")
        elif gone and len(gone) < len(numbers):
            yield Anomaly(
                "torn-transaction", f"of {numbers} of client {event['client']} only {gone} are not in the log"
            )
    for number in there.keys() - known:
        client = number // 10_000_000
        yield Anomaly("phantom", f"{number} is in the log, client {client} has finished no transaction with it")


def polled(past: Past, log: dict[tuple[int, int], int]) -> Iterator[Anomaly]:
    """What pollers saw, in the order in which they saw it."""
    committed = {key: sorted(offset for k, offset in log if k == key) for key in range(NUM_KEYS)}
    after = {key: dict(itertools.pairwise(offsets)) for key, offsets in committed.items()}
    at: dict[tuple[int, int], int] = {}
    for event in sorted([*past.of("txn"), *past.of("assign")], key=lambda event: float(event["t"])):
        if event["op"] == "assign":
            at = {where: offset for where, offset in at.items() if where[0] != event["client"]}
            continue
        yield from own_sends(event)
        for key, offset, number in event["polls"]:
            if (key, offset) not in log:
                yield Anomaly("G1a", f"{number} at {(key, offset)} was polled, but is not committed")
            elif log[key, offset] != number:
                yield Anomaly(
                    "inconsistent-offsets", f"{(key, offset)}: {number} was polled, {log[key, offset]} is there"
                )
            before = at.get((event["client"], key))
            if before is not None and offset <= before:
                yield Anomaly("nonmonotonic-poll", f"client {event['client']}: {(key, offset)} after {before}")
            elif before is not None and after[key].get(before, offset) < offset:
                yield Anomaly("poll-skip", f"client {event['client']}: {(key, offset)} after {before}")
            at[event["client"], key] = offset


def own_sends(event: Event) -> Iterator[Anomaly]:
    own = {number for _, number in event["sends"]} & {number for _, _, number in event["polls"]}
    if own:
        yield Anomaly(
            "precommitted-read", f"client {event['client']} has polled {sorted(own)} before it committed them"
        )
