"""Memory for blocks of sessions that are somebody else's: what the tier leaves of its own, the most wanted ones first.

A standby (snapshots/standby.py) fills it from a thread of its own; the tier says how much room there is, and takes out
what has become ours. At any moment: blocks here <= names wanted <= room.
"""

import threading
from collections.abc import Iterable, Mapping
from typing import Any

Bytes = Any  # of one block, as the tier has them


class Spare:
    """Thread-safe. Whoever gives room is served first: no method waits for more than a pass over the names."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._room = 0
        self._wanted: dict[bytes, None] = {}  # the most wanted first
        self._blocks: dict[bytes, Bytes] = {}

    def __contains__(self, name: bytes) -> bool:
        return name in self._blocks

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def room(self) -> int:
        """Blocks that there may be here."""
        return self._room

    def give(self, room: int) -> None:
        """So many blocks may be here from now on; the least wanted ones beyond are dropped."""
        with self._lock:
            self._room = max(room, 0)
            self._trim()

    def _trim(self) -> None:
        while len(self._wanted) > self._room:
            name, _ = self._wanted.popitem()
            self._blocks.pop(name, None)

    def want(self, names: Iterable[bytes]) -> list[bytes]:
        """These are wanted from now on, the first ones most; what there is no room for or nobody wants is dropped ->
        those that are missing, in the same order.
        """
        wanted: dict[bytes, None] = {}
        for name in names:
            if len(wanted) >= self._room:
                break
            wanted[name] = None
        with self._lock:
            self._wanted = wanted
            self._trim()
            self._blocks = {name: data for name, data in self._blocks.items() if name in wanted}
            return [name for name in wanted if name not in self._blocks]

    def put(self, found: Mapping[bytes, Bytes]) -> None:
        """Those of these blocks that are wanted still."""
        with self._lock:
            self._blocks.update((name, data) for name, data in found.items() if name in self._wanted)

    def lend(self, found: Mapping[bytes, Bytes]) -> None:
        """Blocks that were ours; less wanted than all that are here, until somebody says otherwise."""
        with self._lock:
            for name, data in found.items():
                self._wanted.setdefault(name)
                self._blocks[name] = data
            self._trim()

    def get(self, name: bytes) -> Bytes | None:
        return self._blocks.get(name)

    def take(self, name: bytes) -> Bytes | None:
        """The bytes of a block, which is somebody else's to keep now."""
        with self._lock:
            self._wanted.pop(name, None)
            return self._blocks.pop(name, None)
