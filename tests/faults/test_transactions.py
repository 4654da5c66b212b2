"""What the harness has found in the product's transactions, reduced: on librdkafka's mock cluster, so in seconds."""

import threading
from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError
from harness.mock_cluster import MockCluster
from harness.transactions import ABORTS, COMMITS, Bench

from streamproc.kafka import epoch

QUICK_S = 2.0


@pytest.fixture
def bench() -> Iterator[Bench]:
    with MockCluster() as cluster:
        yield Bench(cluster)


def test_a_connection_that_breaks_in_an_epoch_does_not_hang_the_next_one(bench: Bench) -> None:
    """Once no broker was left, the library asked a coordinator that it had thrown away, for ever."""
    bench.cluster.push_errors("Produce", KafkaError._TRANSPORT)
    assert bench.commit() == COMMITS
    assert bench.commit() == COMMITS


def test_a_step_that_never_returns_is_given_up_and_the_next_epoch_commits(bench: Bench) -> None:
    """The library's default strategy brings it about that the timeout of send_offsets_to_transaction is not kept."""
    bench.new_sink({"metadata.recovery.strategy": "rebootstrap"}, QUICK_S)
    bench.cluster.push_errors("Produce", KafkaError._TRANSPORT)
    assert bench.commit() == COMMITS
    assert bench.commit() == ABORTS
    assert "send_offsets_to_transaction has not returned within 5 s" in bench.warnings[-1]
    assert bench.longest_s < 8
    assert bench.commit() == COMMITS


def test_a_coordinator_that_is_away_for_long_does_not_end_the_worker(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that starts gives up after a while; one that runs tries until the coordinator is back."""
    monkeypatch.setattr(epoch, "START_TIMEOUT_S", 0.5)
    bench.new_sink(step_timeout_s=QUICK_S)
    bench.cluster.set_down()
    threading.Timer(9.0, bench.cluster.set_up).start()
    assert bench.commit() == ABORTS
    assert [line for line in bench.warnings if line.endswith("trying until there are")] == bench.warnings[:1]
    assert bench.longest_s > 8
    assert bench.commit() == COMMITS
