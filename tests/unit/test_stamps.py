"""Commits of offsets that Kafka does not answer in time: the loop goes on, an epoch waits."""

import threading
import time
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streamproc.kafka.stamps import Stamps

WHERE = [TopicPartition("records", 0, 5, "metadata")]


class Coordinator:
    """Answers once it is back."""

    def __init__(self, *, is_away: bool = False, error: int | None = None) -> None:
        self.is_back, self.error, self.committed = threading.Event(), error, []
        if not is_away:
            self.is_back.set()

    def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition]:
        assert not asynchronous
        self.is_back.wait(30)
        if self.error is not None:
            raise KafkaException(KafkaError(self.error))
        self.committed += [where.offset for where in offsets]
        return offsets


def test_a_commit_that_worked_or_failed_is_told_at_once() -> None:
    stamps, there = Stamps(), Coordinator()
    assert stamps.write(there, WHERE) is None  # type: ignore[arg-type]
    assert there.committed == [5]
    problem = stamps.write(Coordinator(error=KafkaError.ILLEGAL_GENERATION), WHERE)  # type: ignore[arg-type]
    assert "generation" in (problem or "")
    stamps.settle()


def test_the_loop_goes_on_without_an_answer_and_an_epoch_waits_for_it() -> None:
    stamps, away = Stamps(timeout_s=0.1), Coordinator(is_away=True)
    started = time.monotonic()
    assert stamps.write(away, WHERE) == "no answer within 0.1 s"  # type: ignore[arg-type]
    assert time.monotonic() - started < 5
    threading.Timer(0.3, away.is_back.set).start()
    stamps.settle()
    assert away.committed == [5]  # and none will land after the epoch


def test_two_are_never_on_their_way() -> None:
    stamps, away = Stamps(timeout_s=0.1), Coordinator(is_away=True)
    stamps.write(away, WHERE)  # type: ignore[arg-type]
    threading.Timer(0.3, away.is_back.set).start()
    assert stamps.write(away, [TopicPartition("records", 0, 6)]) is None  # type: ignore[arg-type]
    assert away.committed == [5, 6]


def test_what_is_no_error_of_kafka_is_raised() -> None:
    class Broken:
        def commit(self, **how: Any) -> None:
            raise RuntimeError("consumer closed")

    with pytest.raises(RuntimeError, match="closed"):
        Stamps().write(Broken(), WHERE)  # type: ignore[arg-type]
