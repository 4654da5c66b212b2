"""What the processes of one model tell each other besides tensors: plans, and what came of them.

The first process leads: it has the loop and Kafka. It sends every plan to the others, which follow: each carries it out
on its part of the model and answers that it has, or with the error that it has met; what a plan saves comes on its own,
once it is there. The next plan is sent meanwhile. The messages are pickled and go over sockets of this machine in a
folder of this user's. A socket also tells who has died: then all of them end.
"""

import logging
import os
import pickle
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from socket import socket
from typing import Any, TypeVar

from streamproc.engine.gpu.shares import Bytes, cut, put_together
from streamproc.engine.kv_cache import Layout
from streamproc.errors import OutOfMemory, StreamprocError, Unavailable, one_line
from streamproc.schedule.plan import Plan

log = logging.getLogger(__name__)

T = TypeVar("T")
GRACE_S = 10.0      # to end in order once a process is lost; what waits for it in a collective would never end
NOTICE_S = 2.0      # from an error that a lost process may have caused to its being known to be lost


@dataclass(frozen=True, slots=True)
class Outcome:
    """A plan is carried out, or failed in a way that the process goes on from. One for every plan, in their order."""

    problem: StreamprocError | None = None


@dataclass(frozen=True, slots=True)
class SavedPart:
    """This process's part of the blocks that a plan saves: one for every plan that saves any, in their order; empty
    where the plan has failed.
    """

    blocks: Mapping[bytes, Bytes]


@dataclass(frozen=True, slots=True)
class Anew:
    """Before the next plan: forget which graphs there are. After a plan that failed in one process others may have some
    that it has not, and what they compute together has to be captured by all or by none.
    """


@dataclass(frozen=True, slots=True)
class Failure:
    """The last word of a process that cannot go on."""

    line: str


class Link:
    """Messages both ways; one thread reads."""

    def __init__(self, connection: socket) -> None:
        self._socket = connection
        self._reader = connection.makefile("rb")
        self._writing = threading.Lock()

    def send(self, message: Any) -> None:
        self.send_pickled(pickled(message))

    def send_pickled(self, message: bytes) -> None:
        with self._writing, suppress(OSError):      # nobody reads any more: whoever reads here gets to know
            self._socket.sendall(message)

    def messages(self) -> Iterator[Any]:
        """Until the other side is gone."""
        while True:
            try:
                yield pickle.load(self._reader)
            except (EOFError, OSError, pickle.UnpicklingError):
                return


def pickled(message: Any) -> bytes:
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


class Followers:
    """The other processes, in their order, as the first one sees them."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = links
        self._outcomes = [queue.SimpleQueue[Outcome | None]() for _ in links]
        self._saved = [queue.SimpleQueue[SavedPart | None]() for _ in links]
        self._lock = threading.Lock()
        self._loss: Unavailable | None = None
        self._is_lost = threading.Event()
        self._is_stopping = False
        self._awaited: set[Future[Any]] = set()
        for rank in range(1, len(links) + 1):
            threading.Thread(target=self._listen, args=(rank,), daemon=True, name=f"streamproc-process-{rank}").start()

    def start(self, plan: Plan, layout: Layout) -> Plan:
        """Have all of them carry it out -> the first process's part of it. `layout`: of each one's blocks."""
        if not plan.loads:
            self.tell(plan)
            return plan
        loads = [(block_id, cut(data, layout, len(self._links) + 1)) for block_id, data in plan.loads]
        parts = [replace(plan, loads=tuple((block_id, pieces[rank]) for block_id, pieces in loads))
                 for rank in range(len(self._links) + 1)]  # fmt: skip
        for link, part in zip(self._links, parts[1:], strict=True):
            link.send(part)
        return parts[0]

    def tell(self, value: Any) -> None:
        """What Leader.told gives them."""
        message = pickled(value)
        for link in self._links:
            link.send_pickled(message)

    @contextmanager
    def outcome(self) -> Iterator[None]:
        """Around what the first process does for the oldest plan whose outcome nobody has asked for: ends once all are
        done with it. Raises what it has failed by, or Unavailable where one is lost.
        """
        met: list[StreamprocError] = []
        try:
            yield
        except StreamprocError as problem:
            met.append(problem)
        except Exception as problem:    # the others may wait for this process in what they compute together
            threading.Thread(target=self._fail, args=(problem,), daemon=True, name="streamproc-end").start()
            raise
        for rank, outcome in enumerate(self._taken(self._outcomes), 1):
            if other := outcome.problem:
                met.append(type(other)(f"process {rank} of {len(self._links) + 1}: {other}"))
        if met:     # where memory lacks, others compute from zeros, which may end in any way
            raise next((problem for problem in met if isinstance(problem, OutOfMemory)), met[0])

    def saved(self) -> list[Mapping[bytes, Bytes]]:
        """The parts of the oldest plan that saves blocks and whose parts nobody has asked for: all or, where it has
        failed in one of the processes, not all. Raises Unavailable where one is lost.
        """
        return [part.blocks for part in self._taken(self._saved)]

    def _taken(self, boxes: "Sequence[queue.SimpleQueue[T | None]]") -> list[T]:
        found = [box.get() for box in boxes]
        if self._loss:
            for box in boxes:
                box.put(None)       # whoever asks next is not to wait either
            raise self._loss
        return [message for message in found if message]

    def stop(self) -> None:
        """There are no more plans."""
        self._is_stopping = True
        self.tell(None)

    def guarded(self, work: "Future[T]") -> "Future[T]":
        """What this work gives; or the loss of a process, as soon as it is known: work that waits for it may hang."""
        guarded: Future[T] = Future()
        with self._lock:
            self._awaited.add(guarded)
        if self._loss:
            self._tell(guarded)
        work.add_done_callback(lambda work: self._settle(work, guarded))
        return guarded

    def _settle(self, work: "Future[T]", guarded: "Future[T]") -> None:
        with self._lock:
            self._awaited.discard(guarded)
        problem = work.exception()
        if problem and not isinstance(problem, StreamprocError) and self._is_lost.wait(2 * NOTICE_S):
            self._tell(guarded)
        with suppress(InvalidStateError):       # it has been told of the loss
            if problem:
                guarded.set_exception(problem)
            else:
                guarded.set_result(work.result())

    def _listen(self, rank: int) -> None:
        line = f"process {rank} of {len(self._links) + 1} has ended; the model needs all of them, start torchrun again"
        try:
            for message in self._links[rank - 1].messages():
                if isinstance(message, Failure):
                    line = f"process {rank} of {len(self._links) + 1}: {message.line}"
                    break
                if isinstance(message, Outcome):
                    self._outcomes[rank - 1].put(message)
                else:
                    self._saved[rank - 1].put(message)
        except Exception as problem:        # a message that cannot be read: nothing after it can
            line = f"process {rank} of {len(self._links) + 1} is not understood: {one_line(problem)}"
        if not self._is_stopping:
            self._lose(line)

    def _fail(self, problem: Exception) -> None:
        """The first process cannot go on, unless it is for the loss of another."""
        if not self._is_lost.wait(NOTICE_S):
            log.error("process 0 of %s cannot go on", len(self._links) + 1, exc_info=problem)
            self._lose(f"process 0 of {len(self._links) + 1}: {one_line(problem)}")

    def _lose(self, line: str) -> None:
        """Tell whoever waits; end this process if that does not do it."""
        with self._lock:
            if self._loss:
                return
            self._loss = Unavailable(line)
            self._is_lost.set()
            awaited = list(self._awaited)
        for waiting in awaited:
            self._tell(waiting)
        for outcomes, saved in zip(self._outcomes, self._saved, strict=True):
            outcomes.put(None)
            saved.put(None)
        time.sleep(GRACE_S)
        print(f"streamproc: {line}", file=sys.stderr, flush=True)
        os._exit(Unavailable.exit_code)

    def _tell(self, waiting: "Future[Any]") -> None:
        assert self._loss, "nobody is lost"
        with suppress(InvalidStateError):
            waiting.set_exception(self._loss)


class Leader:
    """The first process, as another one sees it. Where it dies, so does this one: at once, wherever it is."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._told = queue.SimpleQueue[Any]()
        threading.Thread(target=self._listen, daemon=True, name="streamproc-leader").start()

    def orders(self) -> Iterator[Plan | Anew]:
        """Until there are no more."""
        while order := self._told.get():
            yield order

    def told(self) -> Any:
        """What the first process tells next, however long that takes."""
        return self._told.get()

    def report(self, message: Outcome | SavedPart) -> None:
        self._link.send(message)

    def fail(self, line: str) -> None:
        """The last word."""
        self._link.send(Failure(line))

    def _listen(self) -> None:
        is_over = False
        try:
            for message in self._link.messages():
                is_over = message is None
                self._told.put(message)
        finally:
            if not is_over:
                os._exit(Unavailable.exit_code)     # the first process has said why, or nobody can


def merged(mine: Mapping[bytes, Bytes], parts: Sequence[Mapping[bytes, Bytes]], layout: Layout) -> dict[bytes, Bytes]:
    """Blocks that all have saved, whole."""
    return {name: put_together([part, *(other[name] for other in parts)], layout) for name, part in mine.items()}
