"""Looks for what is stored of partitions that were just assigned, while the loop goes on.

Whoever owns a partition waits for the outcome before it computes anything that may be stored, but not for ever: a
partition is *sought* until its search is done or its time is over. A search that ends later still counts.
"""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from streamproc.errors import Unavailable
from streamproc.snapshots.manifest import Identity, Manifest
from streamproc.snapshots.restore import Blocks, SnapshotReader
from streamproc.snapshots.threads import Threads
from streamproc.values import printable

log = logging.getLogger(__name__)

FIND_S = 10.0  # then a partition is computed
NEWER_S = 1.0  # likewise, where a snapshot is known already: a newer one saves no more than an interval
SEARCHES = 4  # at once
MOST_CHARS = 200  # of what went wrong


@dataclass(frozen=True, slots=True)
class Known:
    """A manifest and its blocks."""

    manifest: Manifest
    blocks: Blocks


@dataclass(slots=True)
class Sought:
    """A search that is under way; `deadline_s`: by time.monotonic; `is_late`: nobody waits for it any more."""

    identity: Identity
    future: "Future[Blocks | None]"
    deadline_s: float
    known: Known | None
    is_late: bool = False


class Search:
    """Of one worker; all methods are for one thread."""

    def __init__(self, reader: SnapshotReader, warn: Callable[[str], None]) -> None:
        self._reader, self._warn = reader, warn
        self._threads = Threads(SEARCHES, "snapshot-search")
        self._under_way: dict[int, Sought] = {}
        self._is_closed = False

    @property
    def sought(self) -> frozenset[int]:
        """Partitions for which it may be too early to compute anything."""
        if not self._under_way:
            return frozenset()
        return frozenset(number for number, sought in self._under_way.items() if not sought.is_late)

    def begin(self, identity: Identity, offset: int, known: Known | None) -> None:
        """Look for the newest snapshot at or before the offset; `known`: one that is."""
        future = self._threads.submit(self._find_safely, identity, offset, known)
        deadline_s = time.monotonic() + (NEWER_S if known else FIND_S)
        self._under_way[identity.partition] = Sought(identity, future, deadline_s, known)

    def stop(self, number: int) -> None:
        """The outcome does not matter any more."""
        if sought := self._under_way.pop(number, None):
            sought.future.cancel()

    def found(self) -> Iterator[tuple[int, Blocks]]:
        """What searches have brought that are done now; says which take too long."""
        for number, sought in list(self._under_way.items()):
            if sought.future.done():
                del self._under_way[number]
                if blocks := sought.future.result():
                    yield number, blocks
            elif not sought.is_late and time.monotonic() > sought.deadline_s:
                sought.is_late = True
                if not sought.known:
                    self._warn(
                        f"snapshots: no answer within {FIND_S:.0f} s; partition {number} is computed from the topic"
                    )

    def _find_safely(self, identity: Identity, offset: int, known: Known | None) -> Blocks | None:
        """Whatever a store holds, it does not stop the loop that asks for the outcome."""
        try:
            return self._find(identity, offset, known)
        except Exception as problem:
            if self._is_closed:
                return None     # whom it asks is closed too, and nobody waits for it
            reason = f"{type(problem).__name__}: {printable(str(problem), MOST_CHARS)}"
            self._warn(f"snapshots: {reason}; partition {identity.partition} is computed from the topic")
            log.error("the search for snapshots has a fault", exc_info=problem)
            return None

    def _find(self, identity: Identity, offset: int, known: Known | None) -> Blocks | None:
        try:
            manifest = self._reader.find(identity, offset)
        except Unavailable as problem:
            if known is None:
                self._warn(f"{problem}; partition {identity.partition} is computed from the topic")
            return None
        if manifest is None or (known and age(manifest) <= age(known.manifest)):
            return None
        return self._reader.open(manifest, known.blocks.headers if known else {})

    def close(self) -> None:
        self._is_closed = True
        self._threads.close()


def age(manifest: Manifest) -> tuple[int, int]:
    """The larger, the newer, among those of one partition."""
    return manifest.offset, manifest.created_ms
