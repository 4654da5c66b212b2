"""T0: the product's transactions against every error that Kafka may answer, on librdkafka's mock cluster.

What must hold: an epoch commits or aborts as the matrix says, within its time; and the next one commits. The mock says
nothing about exactly-once: that is what the other scenarios are for.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError

from harness.anomalies import Anomaly
from harness.checker import Verdict
from harness.mock_cluster import MockCluster
from streamproc.config import Config
from streamproc.errors import EpochAborted
from streamproc.kafka.epoch import STEP_TIMEOUT_S, EpochSink
from streamproc.kafka.properties import client_properties
from streamproc.state.epoch import Epoch, Outgoing, Position

LIMIT_S = 60.0  # no commit may take longer, whatever happens
COMMITS, ABORTS = "commits", "aborts"
TRANSACTION_ABORTABLE = 120
K = KafkaError


class Case(NamedTuple):
    """One error that the broker answers once, and what must become of the epoch."""

    api: str
    code: int
    fate: str


def cases(api: str, fate: str, *codes: int) -> list[Case]:
    return [Case(api, code, fate) for code in codes]


BUSY = (K.NOT_COORDINATOR, K.COORDINATOR_LOAD_IN_PROGRESS, K._TRANSPORT)  # try again, says the library
FENCED = (K.PRODUCER_FENCED, K.INVALID_PRODUCER_EPOCH, K.INVALID_TXN_STATE)
MATRIX = [
    *cases("TxnOffsetCommit", ABORTS, K.ILLEGAL_GENERATION, K.STALE_MEMBER_EPOCH, K.UNKNOWN_MEMBER_ID),
    *cases("TxnOffsetCommit", ABORTS, K.REBALANCE_IN_PROGRESS, K.FENCED_INSTANCE_ID),
    *cases("TxnOffsetCommit", COMMITS, *BUSY, K.COORDINATOR_NOT_AVAILABLE),
    *cases("AddOffsetsToTxn", COMMITS, *BUSY, K.CONCURRENT_TRANSACTIONS),
    *cases("AddOffsetsToTxn", ABORTS, *FENCED),
    *cases("AddPartitionsToTxn", COMMITS, *BUSY, K.CONCURRENT_TRANSACTIONS),
    *cases("AddPartitionsToTxn", ABORTS, *FENCED, K.TOPIC_AUTHORIZATION_FAILED),
    *cases("EndTxn", COMMITS, *BUSY, K.CONCURRENT_TRANSACTIONS, K.COORDINATOR_NOT_AVAILABLE),
    *cases("EndTxn", ABORTS, *FENCED, TRANSACTION_ABORTABLE),
    *cases("Produce", COMMITS, K.NOT_ENOUGH_REPLICAS, K.NOT_LEADER_FOR_PARTITION, K.REQUEST_TIMED_OUT, K._TRANSPORT),
    *cases("Produce", ABORTS, K.OUT_OF_ORDER_SEQUENCE_NUMBER, K.INVALID_PRODUCER_EPOCH, K.PRODUCER_FENCED),
    *cases("Produce", ABORTS, K.UNKNOWN_PRODUCER_ID, K.TOPIC_AUTHORIZATION_FAILED, K.MSG_SIZE_TOO_LARGE),
    *cases("Produce", ABORTS, TRANSACTION_ABORTABLE),
]


@dataclass
class Bench:
    """A sink on a mock cluster."""

    cluster: MockCluster

    def __post_init__(self) -> None:
        self.cluster.create_topic("answers", 1)
        self.cluster.create_topic("records", 1)
        kafka = {"bootstrap.servers": self.cluster.address, "socket.timeout.ms": "10000"}
        self._properties = client_properties(Config(kafka=kafka))
        self._consumer = Consumer({**self._properties, "group.id": "group"})
        self._epoch = Epoch((Outgoing("answers", b"key", b"{}"),), (Position("records", 0, 5, ""),))
        self.warnings: list[str] = []
        self.longest_s = 0.0
        self.num_faults = 0
        self.new_sink()

    def new_sink(self, properties: dict[str, str] | None = None, step_timeout_s: float = STEP_TIMEOUT_S) -> None:
        """Another sink in the place of the one that there was."""
        given = {**self._properties, **(properties or {})}
        self._sink = EpochSink(given, "group-a", self.warnings.append, step_timeout_s)

    def commit(self) -> str:
        """What became of one epoch: commits, aborts, hangs, or the error's name."""
        found: list[str] = []

        def once() -> None:
            try:
                self._sink.commit(self._epoch, self._consumer.consumer_group_metadata())
                found.append(COMMITS)
            except EpochAborted:
                found.append(ABORTS)
            except Exception as problem:
                found.append(f"{type(problem).__name__}: {problem}")

        started = time.monotonic()
        thread = threading.Thread(target=once, daemon=True)
        thread.start()
        thread.join(LIMIT_S)
        self.longest_s = max(self.longest_s, time.monotonic() - started)
        return found[0] if found else "hangs"

    def expect(self, what: str, fates: set[str]) -> Iterator[Anomaly]:
        """One epoch under a fault that is there now, and one after it."""
        self.num_faults += 1
        if (fate := self.commit()) not in fates:
            yield Anomaly("wrong-fate", f"{what}: the epoch {fate}, not {' or '.join(sorted(fates))}")

    def expect_health(self, what: str) -> Iterator[Anomaly]:
        if (fate := self.commit()) != COMMITS:
            yield Anomaly("stuck", f"after {what}: the next epoch {fate}")


def matrix(bench: Bench, rng: random.Random) -> Iterator[Anomaly]:
    """Every error once, in any order."""
    for case in rng.sample(MATRIX, len(MATRIX)):
        yield from one_error(bench, case)


def one_error(bench: Bench, case: Case) -> Iterator[Anomaly]:
    what = f"{case.api} answers {case.code} {K(case.code).name()}"
    bench.cluster.push_errors(case.api, case.code)
    yield from bench.expect(what, {case.fate})
    bench.cluster.clear_errors(case.api)
    yield from bench.expect_health(what)


def slowness(bench: Bench, rtt_s: float) -> Iterator[Anomaly]:
    """Every reply comes late: the epoch commits late, or aborts in time."""
    bench.cluster.set_rtt(int(rtt_s * 1e3))
    yield from bench.expect(f"replies after {rtt_s} s", {COMMITS, ABORTS})
    bench.cluster.set_rtt(0)
    yield from bench.expect_health("slowness")


def outage(bench: Bench, rng: random.Random, seconds: float) -> Iterator[Anomaly]:
    """The broker goes in the middle of an epoch, and comes back."""
    timers = [
        threading.Timer(rng.uniform(0, 0.02), bench.cluster.set_down),
        threading.Timer(seconds, bench.cluster.set_up),
    ]
    for timer in timers:
        timer.start()
    yield from bench.expect(f"a broker that is away for {seconds} s", {COMMITS, ABORTS})
    for timer in timers:
        timer.join()
    yield from bench.expect_health("an outage")


def transactions(seed: int, length_s: float) -> Verdict:
    """The matrix, slow replies and outages; over and over until the time is over."""
    rng, anomalies = random.Random(seed), []
    deadline = time.monotonic() + length_s
    with MockCluster() as cluster:
        bench = Bench(cluster)
        rounds: list[Callable[[], Iterator[Anomaly]]] = [
            lambda: matrix(bench, rng),
            lambda: slowness(bench, rng.choice((0.5, 1.0, 3.0)) if length_s > 30 else 0.5),
            lambda: outage(bench, rng, 2.0),
            lambda: outage(bench, rng, 1.0),
        ]
        while True:
            for look in rounds:
                anomalies += look()
            if time.monotonic() > deadline:
                return Verdict(anomalies, bench.longest_s, 0, bench.num_faults)
