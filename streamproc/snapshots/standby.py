"""Follows the snapshots of partitions that are somebody else's, so that they are at hand when they become ours.

A thread looks for their newest manifests, a few times in an interval between two snapshots, and reads blocks into
memory that nobody else needs (state/spare.py): those of the sessions that grew last come first. Nothing depends on it:
whoever gets a partition looks for a newer manifest all the same, blocks are known by their content, and what is not
here is read or computed as it would be without a standby.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import itemgetter

from streamproc.errors import Unavailable
from streamproc.snapshots.contract import Store
from streamproc.snapshots.manifest import (
    Damaged,
    Identity,
    ManifestName,
    SessionPart,
    Unknown,
    manifests_folder,
    parse_name,
)
from streamproc.snapshots.restore import Blocks, SnapshotReader, misfit, read_manifest
from streamproc.snapshots.search import Known
from streamproc.state.spare import Spare

log = logging.getLogger(__name__)

LOOKS = 4  # in an interval between two snapshots
REST = 4  # times as long as a look took, nothing is asked of the store
BATCH_BYTES = 32 * 2**20  # on their way into memory at a time, beyond what the spare holds
MOST_BLOCKS = 2**18  # followed: where they lie takes about half a kilobyte each
READERS = 4  # requests at once
MOST_SAID = 100
CLOSE_S = 2.0


@dataclass(frozen=True, slots=True)
class Followed:
    """A partition's newest manifest; `grown_ms`: of each session, the first manifest that has what it is now."""

    name: ManifestName
    known: Known
    grown_ms: dict[str, int]
    lost: set[bytes] = field(default_factory=set)  # blocks that cannot be read

    def by_heat(self) -> Iterator[tuple[tuple[int, int], "Followed", SessionPart]]:
        """Sessions with what they are sorted by: those that grew last first, then those that began last."""
        for session in self.known.manifest.sessions:
            age = self.known.manifest.offset - session.start_offset
            yield (-self.grown_ms[session.key], age), self, session


class Standby:
    """Of one worker. `spare`: the blocks, for the worker's tier. All methods are for the loop's thread."""

    def __init__(self, store: Store, ours: Identity, interval_s: float, warn: Callable[[str], None]) -> None:
        """ours: that of any partition of the group, whatever its number and topic id; interval_s: between snapshots."""
        self.spare = Spare()
        self._store, self._ours, self._interval_s, self._warn = store, ours, interval_s, warn
        self._heard: list[str] = []  # what reading has to say; from any thread
        self._reader = SnapshotReader(store, self._heard.append, READERS)
        self._owned: frozenset[int] = frozenset()
        self._followed: dict[int, Followed] = {}
        self._lock = threading.Lock()  # what is ours is not followed
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshot-standby", daemon=True)
        self._is_here: Callable[[bytes], bool] = lambda name: False
        self._strange: set[str] = set()  # paths and tags of manifests that cannot be used
        self._done: tuple[object, ...] = ()  # what there was to be done when all of it was
        self._is_troubled = False
        self._said: set[str] = set()

    def start(self, is_here: Callable[[bytes], bool], block_bytes: int = 0) -> None:
        """is_here: whether a block is in memory anyway; from any thread. block_bytes: of a block of our engine."""
        self._is_here = is_here
        self._reader.block_bytes = block_bytes
        memory = f"memory for {self.spare.room} of their blocks" if self.spare.room else "no memory for their blocks"
        log.info("standing by: follows the snapshots of others' partitions, with %s (engine.host_bytes)", memory)
        self._thread.start()

    def own(self, numbers: Collection[int]) -> None:
        """These partitions are ours, and no others: they are not followed."""
        with self._lock:
            self._owned = frozenset(numbers)
            for number in self._owned & self._followed.keys():
                del self._followed[number]

    def known(self, identity: Identity, offset: int) -> Known | None:
        """The newest manifest of the partition that was seen, if it is of this identity at or before the offset."""
        followed = self._followed.get(identity.partition)
        if not followed or followed.known.manifest.identity != identity or followed.name.offset > offset:
            return None
        return followed.known

    def close(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)
        self._reader.close()

    # In the thread

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                started = time.monotonic()
                taken_s = self._turn(started)
                self._stopped.wait(max(self._interval_s / LOOKS, REST * taken_s))
        except Exception as problem:
            self._warn(f"snapshots: this worker stands by no longer: {type(problem).__name__}: {problem}")
            log.error("the standby has a fault", exc_info=problem)

    def _turn(self, started: float) -> float:
        """Bring what is followed up to date, and what is in memory -> seconds that the former took."""
        try:
            self._look()
            taken_s = time.monotonic() - started
            self._fill(started + self._interval_s)
        except Unavailable as problem:
            self._trouble(problem)
            return time.monotonic() - started
        self._recovered()
        return taken_s

    def _look(self) -> None:
        """Which manifests are the newest. Raises Unavailable."""
        newest = self._newest()
        for number in sorted(newest):
            followed = self._followed.get(number)
            if not self._stopped.is_set() and (followed is None or followed.name.path != newest[number].path):
                self._follow(number, newest[number], followed)

    def _newest(self) -> dict[int, ManifestName]:
        """Of each partition that is not ours, the manifest that was made last."""
        found: dict[int, ManifestName] = {}
        listed = [parse_name(each.path) for each in self._store.list(manifests_folder(self._ours.scope))]
        names = [name for name in listed if name and name.path not in self._strange and name.tag not in self._strange]
        for name in sorted(names, key=lambda name: (name.created_ms, name.offset)):
            folder = name.path.split("/")[-2]
            if folder.isdecimal() and int(folder) not in self._owned:
                found[int(folder)] = name
        self._strange &= {text for name in listed if name for text in (name.path, name.tag)}
        with self._lock:
            for number in self._followed.keys() - found.keys():
                del self._followed[number]
        return found

    def _follow(self, number: int, name: ManifestName, before: Followed | None) -> None:
        """This manifest from now on, if it can be used. Raises Unavailable."""
        try:
            manifest = read_manifest(self._store, name)
        except (Damaged, Unknown) as problem:
            self._strange.add(name.path)
            self._say(f"snapshots: {name.path} is passed over: {problem}")
            return
        if manifest is None:  # collected since
            return
        if misfit(manifest, name, replace(self._ours, topic_id=manifest.identity.topic_id, partition=number)):
            self._strange.add(name.tag if manifest.identity.fingerprint != self._ours.fingerprint else name.path)
            return
        others = sum(len(f.known.manifest.names) for each, f in self._followed.items() if each != number)
        if others + len(manifest.names) > MOST_BLOCKS:
            self._strange.add(name.path)  # not to be read again; the partition's next one may find room
            self._say("snapshots: not all partitions of others are followed: they are too many for one worker")
            return
        headers = {digest: header for f in self._followed.values() for digest, header in f.known.blocks.headers.items()}
        blocks = self._reader.open(manifest, headers)
        self._judge(blocks)
        grown_ms = grown(before, manifest.sessions, name.created_ms)
        with self._lock:
            if number not in self._owned:
                self._followed[number] = Followed(name, Known(manifest, blocks), grown_ms)

    def _fill(self, end_s: float) -> None:
        """Read what is wanted and missing, until all is here, something has changed, or the time is over."""
        followed = list(self._followed.values())
        if self._done == self._state(followed):
            return
        order = sorted((item for each in followed for item in each.by_heat()), key=itemgetter(0))
        missing = iter(self.spare.want(name for _, each, session in order for name in self._readable(each, session)))
        owned, size = self._owned, batch_size(followed)
        while batch := list(islice(missing, size)):
            for each in followed:
                if self._stopped.is_set() or owned is not self._owned or time.monotonic() > end_s:
                    return
                self._read(each, batch)
        self._done = self._state(followed)

    def _state(self, followed: Collection[Followed]) -> tuple[object, ...]:
        """What there is to do depends on nothing else."""
        return (*(each.name.path for each in followed), self.spare.room, len(self.spare))

    def _readable(self, followed: Followed, session: SessionPart) -> Iterator[bytes]:
        names, lost = followed.known.blocks.names, followed.lost
        return (name for name in session.names if name in names and name not in lost and not self._is_here(name))

    def _read(self, followed: Followed, batch: Collection[bytes]) -> None:
        """Those blocks of a batch that are this partition's into memory. Raises Unavailable."""
        blocks, lost = followed.known.blocks, followed.lost
        wanted = [name for name in batch if name in blocks.names and name not in lost and name not in self.spare]
        found = {name: bytes(data) for name, data in blocks.fetch(wanted).items()}  # views of larger pieces
        self.spare.put(found)
        self._judge(blocks)
        lost.update(name for name in wanted if name not in found)

    # What is said

    def _judge(self, blocks: Blocks) -> None:
        """Say what reading them has brought up, each line once. Raises Unavailable where the store did not answer."""
        heard = [*self._heard]
        self._heard.clear()
        problem, blocks.failed = blocks.failed, None
        if problem:
            raise problem
        for line in heard:
            self._say(line)

    def _trouble(self, problem: Unavailable) -> None:
        if not self._is_troubled:
            self._is_troubled = True
            self._warn(f"{problem}; less of the partitions of others is at hand until it works again")

    def _recovered(self) -> None:
        if self._is_troubled:
            self._is_troubled = False
            self._warn(f"snapshots: {self._store.url} works again")

    def _say(self, line: str) -> None:
        """Once."""
        if line not in self._said and len(self._said) < MOST_SAID:
            self._said.add(line)
            self._warn(line)


def grown(before: Followed | None, sessions: Collection[SessionPart], now_ms: int) -> dict[str, int]:
    """When each session became what it is; 0 where that is not known."""
    if before is None:
        return dict.fromkeys((session.key for session in sessions), 0)
    old = {session.key: session for session in before.known.manifest.sessions}
    return {s.key: before.grown_ms[s.key] if old.get(s.key) == s else now_ms for s in sessions}


def batch_size(followed: Collection[Followed]) -> int:
    """Blocks that are read at a time."""
    sizes = [header.block_bytes for each in followed for header in each.known.blocks.headers.values()]
    return max(BATCH_BYTES // max(sizes, default=BATCH_BYTES), 1)
