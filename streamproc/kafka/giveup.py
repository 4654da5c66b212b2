"""Calls into the client library that are given up when they outlast the timeout that they were given.

librdkafka does not keep the timeouts of transactional calls always: a request whose coordinator goes away at the wrong
moment is never answered, and the call never returns. So such calls are made on a thread that can be left behind.
"""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

GRACE_S = 3.0  # beyond the call's own timeout

Result = TypeVar("Result")


class GivenUp(Exception):
    """A call that has not returned; what it was made on is not to be used any more."""


class Caller:
    """One thread that makes one call after another. Once a call was given up, the next one gets another thread."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], Any] | None] | None = None

    def call(self, what: str, function: Callable[[], Result], timeout_s: float) -> Result:
        """The function's result, or what it raises. Raises GivenUp `GRACE_S` after its own timeout is over."""
        calls = self._thread()
        found: list[Result] = []
        problems: list[BaseException] = []
        done = threading.Event()

        def once() -> None:
            try:
                found.append(function())
            except BaseException as problem:
                problems.append(problem)
            done.set()

        calls.put(once)
        if not done.wait(timeout_s + GRACE_S):
            self.close()  # it ends by itself, should the call return after all
            raise GivenUp(f"{what} has not returned within {timeout_s + GRACE_S:g} s")
        if problems:
            raise problems[0]
        return found[0]

    def _thread(self) -> "SimpleQueue[Callable[[], Any] | None]":
        if self._calls is None:
            self._calls = SimpleQueue()
            threading.Thread(target=_serve, args=(self._calls,), name="kafka-calls", daemon=True).start()
        return self._calls

    def close(self) -> None:
        """Let the thread end; may be called again, and a later call starts another."""
        if self._calls is not None:
            self._calls.put(None)
            self._calls = None


def _serve(calls: "SimpleQueue[Callable[[], Any] | None]") -> None:
    while (call := calls.get()) is not None:
        call()
        del call  # it holds a producer, whose destructor may block
