"""Reads blocks back for the tier (state/tier.py), from wherever they are: on their way to the store in the writer's
memory, in the segments of the newest manifests, in segments that no manifest names yet.

The last may be deleted at any time (collector.py): such a block is computed like one that was never stored.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from streamproc.snapshots.contract import Buffer
from streamproc.snapshots.manifest import Identity, Manifest, SessionPart
from streamproc.snapshots.restore import Blocks, SnapshotReader
from streamproc.snapshots.shelf import Shelved
from streamproc.snapshots.threads import Threads
from streamproc.snapshots.writer import SnapshotWriter

FETCHES = 2  # at once
MOST_KNOWN = 2**16  # blocks of segments that are open: where they lie takes about half a kilobyte each

Found = dict[bytes, Any]  # the bytes of blocks; None: they cannot be read


class Fetcher:
    """Of one worker. `fetch` is for the loop's thread; `doubt` is told, in any thread, of blocks that are lost."""

    def __init__(
        self, writer: SnapshotWriter, reader: SnapshotReader, doubt: Callable[[Identity, Sequence[bytes]], None]
    ) -> None:
        self._writer, self._reader, self._doubt = writer, reader, doubt
        self._threads = Threads(FETCHES, "snapshot-fetch")
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Blocks] = OrderedDict()  # segments by digest, the longest unused first

    def fetch(
        self, identity: Identity, named: Iterable[Blocks], names: Sequence[bytes]
    ) -> "Future[Mapping[bytes, Any]]":
        """These blocks, None for those that cannot be read; where the store did not answer they are left out.

        identity: of any partition of ours; named: blocks of its manifests and of the others'.
        """
        written = {name: place for name in names if (place := self._writer.look_up(identity, name)) is not None}
        return self._threads.submit(self._fetch, identity, tuple(named), names, written)

    def _fetch(
        self,
        identity: Identity,
        named: Collection[Blocks],
        names: Sequence[bytes],
        written: Mapping[bytes, Buffer | Shelved],
    ) -> Mapping[bytes, Any]:
        found: Found = {name: at for name, at in written.items() if not isinstance(at, Shelved)}
        is_silent = False
        segments = {at.ref.sha256: at for at in written.values() if isinstance(at, Shelved)}
        for blocks in named:
            is_silent |= self._read(blocks, names, found)
        for shelved in segments.values():
            if any(name not in found and written.get(name) is shelved for name in names):
                is_silent |= self._read(self._opened(identity, shelved), names, found)
        lost = [] if is_silent else [name for name in names if name not in found]
        if doubtful := [name for name in lost if name in written or any(name in blocks.names for blocks in named)]:
            self._doubt(identity, doubtful)
        return found | dict.fromkeys(lost)

    @staticmethod
    def _read(blocks: Blocks, names: Sequence[bytes], found: Found) -> bool:
        """Those of these blocks that are not found yet and lie here -> whether the store did not answer."""
        wanted = [name for name in names if name not in found and name in blocks.names]
        failed = blocks.failed
        if wanted:
            found |= {name: bytes(data) for name, data in blocks.fetch(wanted).items()}  # views of larger pieces
        return blocks.failed is not failed

    def _opened(self, identity: Identity, shelved: Shelved) -> Blocks:
        digest = shelved.ref.sha256
        with self._lock:
            if digest in self._open:
                self._open.move_to_end(digest)
                return self._open[digest]
        blocks = self._reader.open(Manifest(identity, 0, 0, (SessionPart("", 0, 0, 0, shelved.names),), (shelved.ref,)))
        if blocks.failed is None:
            with self._lock:
                self._open[digest] = blocks
                while len(self._open) > 1 and sum(len(each.names) for each in self._open.values()) > MOST_KNOWN:
                    self._open.popitem(last=False)
        return blocks

    def close(self) -> None:
        self._threads.close()
