"""Keeps snapshots of this worker's partitions while its loop goes on, and brings back what was kept.

A snapshot is taken in rounds. After a commit that is due for one, a partition's sessions are looked through, some in
every step: full blocks of their committed generations that are not stored yet are copied out by the next steps and
given to the writer, which stores them from a thread of its own. Then the manifest names what the sessions consist of,
as of the offset that is committed by then. Full blocks never change and are named by their tokens, so nothing has to
hold still meanwhile.

For the tier (state/tier.py) all that is stored of this worker's group and topic, as far as it is known, is a shelf: the
blocks of the newest manifests, restored or written, and those that had to leave memory before a round came to them.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from streamproc.config import Config
from streamproc.ports import Engine
from streamproc.snapshots.collector import Retention
from streamproc.snapshots.fetcher import Fetcher
from streamproc.snapshots.manifest import Identity, Manifest, SessionPart
from streamproc.snapshots.restore import Blocks, SnapshotReader
from streamproc.snapshots.search import Search
from streamproc.snapshots.standby import Standby
from streamproc.snapshots.store import open_store
from streamproc.snapshots.writer import SnapshotWriter
from streamproc.state.blocks import BlockPool
from streamproc.state.generation import Generation
from streamproc.state.partition import Partition
from streamproc.state.session import Session
from streamproc.state.tier import Tier

STEP_BYTES = 8 * 2**20      # copied out in one step: a millisecond or two
LOOKED_AT = 64              # sessions looked through in one step

Saves = list[tuple[int, bytes]]


@dataclass(slots=True)
class Round:
    """A snapshot of one partition in the making."""

    identity: Identity
    partition: Partition
    sessions: deque[Session]
    missing: deque[bytes] = field(default_factory=deque)    # blocks to be copied out

    @property
    def is_done(self) -> bool:
        return not self.sessions and not self.missing


class Keeper:
    """Of one worker. All methods but `learn` belong to the loop's thread."""

    def __init__(
        self,
        make_identity: Callable[[int, str], Identity],
        writer: SnapshotWriter,
        reader: SnapshotReader,
        interval_s: float,
        warn: Callable[[str], None],
    ) -> None:
        """make_identity: of a partition and the id of the records topic."""
        self._make_identity = make_identity
        self._writer, self._reader = writer, reader
        self._interval_s = interval_s
        self._warn = warn
        self._identities: dict[int, Identity] = {}
        self._shelves: dict[int, Blocks] = {}       # by partition: the blocks of its newest manifest
        self._learned: deque[tuple[Identity, Blocks]] = deque()     # from the writer's thread
        self._rounds: dict[int, Round] = {}
        self._due_s: dict[int, float] = {}
        self._saving: dict[bytes, Identity] = {}    # on their way out of the pool
        self._search = Search(reader, warn)
        self._standby: Standby | None = None
        self._fetcher = Fetcher(writer, reader, self._doubt)
        writer.on_published = self.learn

    def stand_by(self, standby: Standby) -> None:
        """Follow the partitions of others with this; to be called before `connect`."""
        self._standby = standby

    def connect(self, pool: BlockPool, tier: Tier, block_bytes: int) -> None:
        self._pool, self._tier, self._block_bytes = pool, tier, block_bytes
        self._reserved_bytes = min(STEP_BYTES, self._writer.room // 2)
        self._reader.block_bytes = block_bytes
        tier.shelf = self
        if self._standby:
            tier.share(self._standby.spare)
            self._standby.start(tier.is_here, block_bytes)

    # A shelf

    @property
    def _ours(self) -> Identity | None:
        """Of any partition: blocks are stored once for all of them."""
        return next(iter(self._identities.values()), None)

    def has(self, name: bytes) -> bool:
        ours = self._ours
        is_named = any(name in shelf.names for shelf in self._shelves.values())
        return is_named or (ours is not None and self._writer.look_up(ours, name) is not None)

    def fetch(self, names: Sequence[bytes]) -> "Future[Mapping[bytes, Any]]":
        assert self._ours is not None, "there is nothing without a partition"
        return self._fetcher.fetch(self._ours, self._shelves.values(), names)

    def _doubt(self, identity: Identity, names: Sequence[bytes]) -> None:
        """These blocks cannot be read. From any thread."""
        if self._identities.get(identity.partition) == identity:
            self._writer.doubt(identity, names)

    @property
    def room(self) -> int:
        """Blocks that the writer takes, less those on their way to it and what a round may always take."""
        num_bytes = self._writer.room - self._reserved_bytes - len(self._saving) * self._block_bytes
        return max(num_bytes // self._block_bytes, 0) if self._identities else 0

    def put(self, name: bytes, data: Any) -> None:
        """Store a block that had to leave memory."""
        if self._ours:
            self._writer.add(self._ours, [(name, data)])

    def learn(self, manifest: Manifest) -> None:
        """This manifest is stored: what it names can be read back. From any thread."""
        self._learned.append((manifest.identity, self._reader.open(manifest)))

    def _take_learned(self) -> None:
        while self._learned:
            identity, blocks = self._learned.popleft()
            if self._identities.get(identity.partition) == identity:
                self._search.stop(identity.partition)
                self._put_up(identity.partition, blocks)

    def _put_up(self, number: int, blocks: Blocks) -> None:
        """These are what the newest manifest of the partition has."""
        before = self._shelves.get(number)
        self._shelves[number] = blocks
        self._tier.retry(blocks.names, before.names if before else ())

    # Partitions that come and go

    @property
    def sought(self) -> frozenset[int]:
        """Partitions of which it is not known yet what is stored: too early to compute."""
        return self._search.sought

    def assigned(self, committed: Mapping[int, tuple[str, int]]) -> None:
        """These partitions are ours: topic id and committed offset of each."""
        now = time.monotonic()
        for number, (topic_id, offset) in committed.items():
            identity = self._identities[number] = self._make_identity(number, topic_id)
            self._due_s[number] = now + self._interval_s
            known = self._standby.known(identity, offset) if self._standby else None
            if known:
                self._reader.take_over(known.blocks)
                self._shelves[number] = known.blocks
                self._tier.adopt([name for session in known.manifest.sessions for name in session.names])
            self._search.begin(identity, offset, known)
        if self._standby:
            self._standby.own(self._identities)

    def let_go(self, numbers: Collection[int]) -> None:
        """These partitions are somebody else's."""
        self._take_learned()
        for number in numbers:
            self._rounds.pop(number, None)
            self._search.stop(number)
            shelf = self._shelves.pop(number, None)
            if shelf:
                self._tier.retry(shelf.names)
            if shelf and self._standby:
                self._tier.part_with(shelf.names)
            if identity := self._identities.pop(number, None):
                self._writer.forget(identity)
        if self._standby:
            self._standby.own(self._identities)

    # Rounds

    def committed(self, partitions: Iterable[Partition]) -> None:
        """These partitions' offsets have moved: begin the rounds that are due."""
        now = time.monotonic()
        for partition in partitions:
            number = partition.number
            if number in self._identities and number not in self._rounds and now >= self._due_s[number]:
                self._begin(partition)

    def _begin(self, partition: Partition) -> None:
        number = partition.number
        self._due_s[number] = time.monotonic() + self._interval_s
        self._rounds[number] = Round(self._identities[number], partition, deque(partition.sessions.values()))

    def pick(self) -> Saves:
        """Blocks that the next step is to copy out. To be called between two steps: what has a name is computed."""
        for number, blocks in self._search.found():
            self._put_up(number, blocks)
        self._take_learned()
        self._saving.clear()    # no step is out: what has not come by now does not come
        saves: Saves = []
        for round_ in list(self._rounds.values()):
            self._look(round_)
            room = min(STEP_BYTES, self._writer.room - len(self._saving) * self._block_bytes)
            while round_.missing and len(saves) < max(1, room // self._block_bytes) and room > 0:
                self._take_out(round_, round_.missing.popleft(), saves)
            if round_.is_done and not saves:
                self._publish(round_)
        return saves

    def _look(self, round_: Round) -> None:
        """Which blocks of some more of its sessions are not stored yet."""
        offset = round_.partition.committed[0]
        for _ in range(min(LOOKED_AT, len(round_.sessions))):
            if len(round_.missing) * self._block_bytes > STEP_BYTES:
                return
            session = round_.sessions.popleft()
            names = names_before(session.committed_generation(offset), offset, self._pool.block_size)[1]
            round_.missing += [name for name in names if not self._writer.has(round_.identity, name)]

    def _take_out(self, round_: Round, name: bytes, saves: Saves) -> None:
        """A block by its name, from wherever it is; one that is nowhere is computed when somebody needs it."""
        if name in self._saving or self._writer.has(round_.identity, name):
            return
        block_id, data = self._pool.look_up(name), self._tier.get(name)
        if data is not None:
            self._writer.add(round_.identity, [(name, data)])
        elif block_id is not None:
            self._saving[name] = round_.identity
            saves.append((block_id, name))

    def take(self, saved: Mapping[bytes, Any]) -> None:
        """What a step has copied out."""
        for name, data in saved.items():
            if identity := self._saving.pop(name, None):
                self._writer.add(identity, [(name, data)])

    def _publish(self, round_: Round) -> None:
        partition = round_.partition
        del self._rounds[partition.number]
        self._writer.publish(round_.identity, partition.committed[0], parts(partition, self._pool.block_size))

    def hand_over(self, partitions: Sequence[Partition], copy_out: Callable[[Saves], None], deadline_s: float) -> None:
        """These partitions go to somebody else, who need not compute what is stored within so many seconds.

        copy_out: copies these blocks out at once, and calls `take`.
        """
        started = time.monotonic()
        for partition in partitions:
            if partition.number in self._identities:
                self._rounds.pop(partition.number, None)
                self._begin(partition)
        numbers = {partition.number for partition in partitions}
        while numbers & self._rounds.keys() and time.monotonic() - started < deadline_s / 2:
            saves = self.pick()
            copy_out(saves)
            if not saves and not self._writer.room:
                time.sleep(0.005)
        for number in numbers & self._rounds.keys():    # what there was no time for is computed again
            self._publish(self._rounds[number])
        self._writer.wait(max(0.0, started + deadline_s - time.monotonic()))

    def close(self) -> None:
        """What is still on its way to the store is dropped."""
        if self._standby:
            self._standby.close()
        self._writer.close()
        self._search.close()
        self._fetcher.close()
        self._reader.close()


def check_store(config: Config) -> None:
    """Raises Usage where the settings name no store that can be opened."""
    if config.snapshots.url:
        open_store(config.snapshots.url)


def make_keeper(config: Config, engine: Engine, warn: Callable[[str], None]) -> Keeper | None:
    """Of the snapshots that the settings ask for."""
    settings = config.snapshots
    if not settings.url:
        return None
    store = open_store(settings.url)
    fingerprint = f"{engine.fingerprint}.{engine.runner.block_size}"    # names are those of blocks of this size

    def identity(number: int, topic_id: str) -> Identity:
        return Identity(fingerprint, config.worker.group, config.topics.records, topic_id, number)

    retention = Retention.every(settings.interval_s, settings.keep, settings.max_age_s)
    writer = SnapshotWriter(store, warn, settings.pending_bytes, retention)
    keeper = Keeper(identity, writer, SnapshotReader(store, warn), settings.interval_s, warn)
    if settings.standby:
        keeper.stand_by(Standby(store, identity(-1, ""), settings.interval_s, warn))
    return keeper


def parts(partition: Partition, block_size: int) -> list[SessionPart]:
    """The sessions of a partition as of its committed offset."""
    offset, found = partition.committed[0], []
    for session in partition.sessions.values():
        generation = session.committed_generation(offset)
        num_tokens, names = names_before(generation, offset, block_size)
        if num_tokens:
            start, before = generation.start_offset, generation.records_before
            found.append(SessionPart(session.key, start, before, num_tokens, names))
    return found


def names_before(generation: Generation, offset: int, block_size: int) -> tuple[int, tuple[bytes, ...]]:
    """Tokens of a generation up to the last record below the offset, and the names of its full blocks up to there."""
    num_entries = generation.num_entries_before(offset)
    num_tokens = generation.entries[num_entries - 1].end if num_entries else 0
    return num_tokens, tuple(generation.name(index, block_size) for index in range(num_tokens // block_size))
