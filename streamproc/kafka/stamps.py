"""Commits offsets again with another stamp beside them (state/stamp.py), and waits for it no longer than is good.

The client library waits as long as a group's coordinator is away, minutes if need be. Meanwhile the loop goes on; but
no epoch may be committed before it is known what has become of such a commit: landing late, it would take the group
back to where it was.
"""

import threading
from concurrent.futures import Future

from confluent_kafka import Consumer, KafkaException, TopicPartition

STAMP_S = 10.0


class Stamps:
    """One commit at a time, on a thread that may outlive its welcome."""

    def __init__(self, timeout_s: float = STAMP_S) -> None:
        self._timeout_s = timeout_s
        self._pending: Future[str | None] | None = None

    def write(self, consumer: Consumer, offsets: list[TopicPartition]) -> str | None:
        """Commit these -> why it is not known to have worked, or None."""
        self.settle()
        pending: Future[str | None] = Future()
        self._pending = pending
        threading.Thread(target=_commit, args=(consumer, offsets, pending), name="stamp", daemon=True).start()
        try:
            return pending.result(self._timeout_s)
        except TimeoutError:
            return f"no answer within {self._timeout_s:g} s"

    def settle(self) -> None:
        """Wait for the end of a commit that is still on its way; the library sees to it that there is one."""
        if self._pending is not None:
            self._pending.exception()
            self._pending = None


def _commit(consumer: Consumer, offsets: list[TopicPartition], pending: "Future[str | None]") -> None:
    try:
        done = consumer.commit(offsets=offsets, asynchronous=False) or []
        pending.set_result(next((found.error.str() for found in done if found.error), None))
    except KafkaException as problem:
        pending.set_result(problem.args[0].str())
    except BaseException as problem:
        pending.set_exception(problem)
