"""Threads that ask a store: the process may end while one of them waits for an answer that does not come."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

Given = TypeVar("Given")
Result = TypeVar("Result")


class Job(NamedTuple):
    """Something to be called, and who waits for what it returns."""

    future: "Future[Any]"
    call: Callable[..., Any]
    arguments: tuple[Any, ...]


class Threads:
    """So many at most, begun as they are needed. Thread-safe."""

    def __init__(self, num_threads: int, name: str) -> None:
        self._num_threads, self._name = num_threads, name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._num_begun = 0
        self._is_closed = False

    def submit(self, call: Callable[..., Result], *arguments: Any) -> "Future[Result]":
        """Returns at once; what comes after `close` is cancelled."""
        future: Future[Result] = Future()
        with self._lock:
            if self._is_closed:
                future.cancel()
                return future
            self._jobs.put(Job(future, call, arguments))
            if self._num_begun < self._num_threads:
                threading.Thread(target=self._run, name=f"{self._name}-{self._num_begun}", daemon=True).start()
                self._num_begun += 1
        return future

    def map(self, call: Callable[[Given], Result], given: Iterable[Given]) -> Iterator[Result]:
        """What it returns for each, in their order."""
        futures = [self.submit(call, each) for each in given]
        return (future.result() for future in futures)

    def close(self) -> None:
        """Returns at once: what is under way goes on, what waits is cancelled."""
        with self._lock:
            self._is_closed = True
            try:
                while job := self._jobs.get_nowait():
                    job.future.cancel()
            except Empty:
                pass
            for _ in range(self._num_begun):
                self._jobs.put(None)

    def _run(self) -> None:
        while job := self._jobs.get():
            if job.future.set_running_or_notify_cancel():
                try:
                    job.future.set_result(job.call(*job.arguments))
                except BaseException as problem:
                    job.future.set_exception(problem)
            del job  # nothing of it is held while there is nothing to do
