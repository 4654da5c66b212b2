"""Questions that wait, by session. Sessions take turns, so that one with a thousand questions holds none of them up.

Deficit round robin (Shreedhar and Varghese 1995): at each of its turns a session may start questions worth `QUANTUM`
tokens, and what it does not use of that it keeps while it has questions.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from enum import Enum

from streamproc.state.fork import Fork

QUANTUM = 64


class Verdict(Enum):
    """What came of offering a question."""

    STARTED = "started"
    NOT_YET = "not yet"  # nor the session's others: it is the oldest of them
    FULL = "full"  # no other question can start now


class Turns:
    """First in, first out within a session."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[Fork]] = OrderedDict()  # the next one to have its turn first
        self._credit: dict[str, int] = {}
        self._num_forks = 0
        self.num_tokens = 0  # of the questions, and of their longest answers

    def __len__(self) -> int:
        return self._num_forks

    def __iter__(self) -> Iterator[Fork]:
        for queue in self._queues.values():
            yield from queue

    def add(self, fork: Fork) -> None:
        self._queues.setdefault(fork.question.session, deque()).append(fork)
        self._count(fork, 1)

    def put_back(self, fork: Fork) -> None:
        """One that had started: it is the first of its session again."""
        self._queues.setdefault(fork.question.session, deque()).appendleft(fork)
        self._count(fork, 1)

    def remove(self, fork: Fork) -> None:
        key = fork.question.session
        self._queues[key].remove(fork)
        self._count(fork, -1)
        if not self._queues[key]:
            self._leave(key)

    def _count(self, fork: Fork, num: int) -> None:
        self._num_forks += num
        self.num_tokens += num * fork.num_own_tokens

    def _leave(self, key: str) -> None:
        del self._queues[key]
        self._credit.pop(key, None)

    def offer(self, start: Callable[[Fork], Verdict]) -> None:
        """Let sessions take turns until nothing more can start. What starts has left."""
        waiting = list(self._queues)
        while waiting:
            again = []
            for key in waiting:
                num_before = self._num_forks
                verdict = self._turn(key, start)
                if key in self._queues and (verdict is not Verdict.FULL or self._num_forks < num_before):
                    self._queues.move_to_end(key)
                if verdict is Verdict.FULL:
                    return
                if verdict is Verdict.STARTED and key in self._queues:
                    again.append(key)
            waiting = again

    def _turn(self, key: str, start: Callable[[Fork], Verdict]) -> Verdict:
        queue, before = self._queues[key], self._credit.get(key, 0)
        credit, verdict = before + QUANTUM, Verdict.STARTED
        while queue and credit >= queue[0].num_own_tokens and verdict is Verdict.STARTED:
            fork, verdict = queue[0], start(queue[0])
            if verdict is Verdict.STARTED:
                queue.popleft()
                self._count(fork, -1)
                credit -= fork.num_own_tokens
        if not queue:
            self._leave(key)
        else:
            self._credit[key] = credit if verdict is Verdict.STARTED else min(before, credit)
        return verdict
