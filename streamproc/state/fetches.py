"""What was asked of a shelf (state/tier.py) and has not come yet, and how long it takes to come.

    seconds = latency + blocks * per_block        latency: where nothing else was on its way when they were asked for

Learned from the blocks that came, the newest count most. Until some have, nothing is known, and nothing is expected to
take time but what is out already: what is stored is fetched until that is seen to be slow.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

log = logging.getLogger(__name__)

FORGET = 0.5  # weight of the past at each fetch
RIDGE = 1e-4  # where all fetches are of one size, their time is that of their blocks and not latency
FRESH_S = 5.0  # for which a measurement is taken for what a shelf does now
SURPRISE = 2.0  # times as quick as was expected: measured again at once
PAUSE_S = (2.0, 5.0, 10.0, 30.0, 60.0)  # in which nothing is asked of a shelf that has not answered so often

Found = Mapping[bytes, Any]  # blocks by name, as a shelf sends them


class Rate:
    """Least squares over the time per block, so that a fetch of few blocks counts as much as one of many."""

    def __init__(self) -> None:
        self._weight = self._u = self._uu = self._z = self._uz = 0.0
        self.latency_s = self.block_s = 0.0

    @property
    def is_known(self) -> bool:
        return self._weight > 0

    def observe(self, num_blocks: int, seconds: float, is_first: bool = True) -> None:
        """So many blocks took so long; is_first: nothing was on its way before them, so latency is in it."""
        u, z = is_first / num_blocks, seconds / num_blocks
        self._weight, self._u, self._uu = (
            FORGET * self._weight + 1, FORGET * self._u + u, FORGET * self._uu + u * u,
        )  # fmt: skip
        self._z, self._uz = FORGET * self._z + z, FORGET * self._uz + u * z
        self._fit()

    def _fit(self) -> None:
        """Neither is below zero."""
        uu = self._uu * (1 + RIDGE)
        determinant = uu * self._weight - self._u * self._u
        self.latency_s, self.block_s = 0.0, self._z / self._weight
        if determinant <= 0 or self._uz * self._weight <= self._u * self._z:
            return
        self.latency_s = (self._uz * self._weight - self._u * self._z) / determinant
        self.block_s = (uu * self._z - self._u * self._uz) / determinant
        if self.block_s < 0:
            self.latency_s, self.block_s = self._uz / self._uu, 0.0

    def seconds(self, num_blocks: int, is_first: bool = True) -> float:
        return self.latency_s * is_first + self.block_s * num_blocks


@dataclass(slots=True, eq=False)
class Fetch:
    """Blocks that are on their way, or were until `done_s`."""

    names: frozenset[bytes]
    future: "Future[Found]"
    asked_s: float
    is_first: bool
    done_s: float = math.inf


class Fetches:
    """Of one shelf. All methods are for one thread; `now`: seconds, called from any."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.rate = Rate()
        self.names: set[bytes] = set()  # on their way
        self.now = now
        self._out: list[Fetch] = []  # in the order in which they were asked for
        self._newest_s = -math.inf  # when the newest of those that came has
        self._fresh_until_s = -math.inf
        self._num_silent = 0  # times in a row that the shelf did not answer
        self._silent_until_s = -math.inf
        self.is_silent = False  # nothing is to be asked of it now

    def begin(self, names: frozenset[bytes], future: "Future[Found]") -> None:
        """These are asked for."""
        fetch = Fetch(names, future, self.now(), is_first=not self._out)
        self.names |= names
        self._out.append(fetch)

        def done(_: "Future[Found]") -> None:
            fetch.done_s = self.now()

        future.add_done_callback(done)

    def collect(self) -> list[Found]:
        """What has come since the last time; blocks that cannot be read are None."""
        landed = sorted((fetch for fetch in self._out if fetch.done_s < math.inf), key=attrgetter("done_s"))
        came: list[Found] = []
        for fetch in landed:
            self._out.remove(fetch)
            self.names -= fetch.names
            came.append(found := fetched(fetch.names, fetch.future))
            self._hear(fetch, found)
        self.is_silent = self.now() < self._silent_until_s
        return came

    def _hear(self, fetch: Fetch, found: Found) -> None:
        if not fetch.names <= found.keys():
            self._silent_until_s = self.now() + PAUSE_S[min(self._num_silent, len(PAUSE_S) - 1)]
            self._num_silent += 1
            return
        self._num_silent = 0
        if any(data is not None for data in found.values()):
            self._measure(fetch)

    def _measure(self, fetch: Fetch) -> None:
        """A shelf is a line: it sends these once it has sent what was asked for before."""
        seconds = max(fetch.done_s - max(fetch.asked_s, self._newest_s), 0.0)
        expected = self.rate.seconds(len(fetch.names), fetch.is_first)
        self.rate.observe(len(fetch.names), seconds, fetch.is_first)
        self._newest_s = max(self._newest_s, fetch.done_s)
        self._fresh_until_s = self.now() + (0.0 if seconds * SURPRISE < expected else FRESH_S)

    @property
    def is_stale(self) -> bool:
        """Whether it is time to measure again."""
        return not self._out and self.now() >= self._fresh_until_s

    def seconds_until(self, num_blocks: int) -> float:
        """Until so many blocks are here, those that are on their way among them."""
        if not self._out:
            return self.rate.seconds(num_blocks)
        first = self._out[0]
        out_s = self.now() - max(first.asked_s, self._newest_s)
        if not self.rate.is_known:
            return out_s
        all_s, first_s = (self.rate.seconds(count, first.is_first) for count in (num_blocks, len(first.names)))
        return all_s - out_s if out_s <= first_s else all_s * out_s / first_s if first_s else all_s + out_s


def fetched(names: frozenset[bytes], future: "Future[Found]") -> Found:
    """What the shelf has sent of these blocks; where it has a fault they cannot be read, and are computed."""
    if problem := future.exception():
        log.error("blocks cannot be fetched: %s: %s", type(problem).__name__, problem, exc_info=problem)
        return dict.fromkeys(names)
    return future.result()
