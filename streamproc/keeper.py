"""Keeps snapshots of this worker's partitions while its loop goes on, and brings back what was kept.

A snapshot is taken in rounds. After a commit that is due for one, a partition's sessions are looked through, some in
every step: full blocks of their committed generations that are not stored yet are copied out by the next steps and
given to the writer, which stores them from a thread of its own. Then the manifest names what the sessions consisted of
when the round began (snapshots/rounds.py).

For the tier (state/tier.py) all that is stored of this worker's group and topic, as far as it is known, is a shelf: the
blocks of the newest manifests, restored or written, and those that had to leave memory before a round came to them.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

from streamproc.config import Config
from streamproc.ports import Engine
from streamproc.snapshots.collector import Retention
from streamproc.snapshots.fetcher import Fetcher
from streamproc.snapshots.manifest import Identity, Manifest
from streamproc.snapshots.restore import Blocks, SnapshotReader
from streamproc.snapshots.rounds import Round
from streamproc.snapshots.search import Search
from streamproc.snapshots.standby import Standby
from streamproc.snapshots.store import open_store
from streamproc.snapshots.writer import SnapshotWriter
from streamproc.state.blocks import BlockPool
from streamproc.state.partition import Partition
from streamproc.state.tier import Tier

STEP_BYTES = 8 * 2**20      # copied out in one step: a millisecond or two
LEAVING_BYTES = 32 * 2**20  # likewise, of partitions that are about to go
HAND_OVER_S = 1.0           # a partition that goes is silent for as long
COPYING = 0.6               # share of it for what is not copied out yet; then the rest is to be stored
LAST_S = 1.0                # for what the writer is doing when it is closed

Saves = list[tuple[int, bytes]]


class Kept(NamedTuple):
    """What the last round of a partition came to: its offset, and how many blocks were nowhere."""

    offset: int
    num_lost: int


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
        self._unkept: dict[int, None] = {}      # partitions that may have something to be stored
        self._kept: dict[int, Kept] = {}
        self._saving: dict[bytes, Identity] = {}    # on their way out of the pool
        self._search = Search(reader, warn)
        self._standby: Standby | None = None
        self._fetcher = Fetcher(writer, reader, self._doubt)
        writer.on_published = self.learn

    def stand_by(self, standby: Standby) -> None:
        """Follow the partitions of others with this; to be called before `connect`."""
        self._standby = standby

    def connect(self, pool: BlockPool, tier: Tier, block_bytes: int, partitions: Mapping[int, Partition]) -> None:
        """partitions: those that are ours, at any time."""
        self._pool, self._tier, self._block_bytes, self._partitions = pool, tier, block_bytes, partitions
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
        known = {digest: header for shelf in list(self._shelves.values()) for digest, header in shelf.headers.items()}
        self._learned.append((manifest.identity, self._reader.open(manifest, known)))

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
        for number, blocks in self._search.found():
            self._put_up(number, blocks)
        return self._search.sought

    def assigned(self, committed: Mapping[int, tuple[str, int]]) -> None:
        """These partitions are ours: topic id and committed offset of each."""
        now = time.monotonic()
        for number, (topic_id, offset) in committed.items():
            identity = self._identities[number] = self._make_identity(number, topic_id)
            self._due_s[number] = now + self._interval_s
            self._unkept[number] = None
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
            self._unkept.pop(number, None)
            self._kept.pop(number, None)
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
        """These partitions' offsets have moved."""
        numbers = (partition.number for partition in partitions)
        self._unkept.update({number: None for number in numbers if number in self._identities})

    def _begin_due(self) -> None:
        """A round of every partition that has something to be stored, at its time; also where nothing comes any more,
        for as long as some of its blocks are nowhere.
        """
        now = time.monotonic()
        for number in [number for number in self._unkept if now >= self._due_s[number]]:
            partition = self._partitions.get(number)
            if partition and partition.is_live and number not in self._rounds:
                self._begin(partition)

    def _begin(self, partition: Partition) -> Round:
        number = partition.number
        self._due_s[number] = time.monotonic() + self._interval_s
        self._unkept.pop(number, None)
        round_ = self._rounds[number] = Round(self._identities[number], partition)
        return round_

    def pick(self) -> Saves:
        """Blocks that the next step copies out; not while one that does so is out. What has a name is there by then."""
        self._take_learned()
        self._begin_due()
        return self._go_on(list(self._rounds.values()), STEP_BYTES)

    def _go_on(self, rounds: Iterable[Round], most_bytes: int, is_leaving: bool = False) -> Saves:
        """One step of these rounds -> blocks to be copied out."""
        self._saving.clear()    # no step with saves is out: what has not come by now does not come
        saves: Saves = []
        for round_ in rounds:
            stored = partial(self._writer.has, round_.identity)
            round_.look(stored, self._pool.block_size, most_bytes // self._block_bytes)
            self._take_out(round_, most_bytes, saves)
            if not saves and round_.is_done():
                self._publish(round_, is_leaving)
        return saves

    def _take_out(self, round_: Round, most_bytes: int, saves: Saves) -> None:
        """Missing blocks of a round, as many as the writer takes, up to so many bytes."""
        room = min(most_bytes, self._writer.room - len(self._saving) * self._block_bytes)
        most = max(1, room // self._block_bytes) if room > 0 else 0
        while round_.missing and len(saves) < most:
            if not self._take_out_one(round_, round_.missing[0], saves):
                return
            round_.missing.popleft()

    def _take_out_one(self, round_: Round, name: bytes, saves: Saves) -> bool:
        """A block by its name, from wherever it is -> whether the round is done with it. One that is nowhere is
        computed when somebody needs it.
        """
        if name in self._saving or self._writer.has(round_.identity, name):
            return True
        block_id, data = self._pool.look_up(name), self._tier.get(name)
        if data is not None:
            return self._give(round_.identity, name, data)
        if self._tier.is_leaving(name):
            return False    # it comes to memory with a step that is out
        if block_id is not None:
            self._saving[name] = round_.identity
            saves.append((block_id, name))
        else:
            round_.num_lost += 1
        return True

    def _give(self, identity: Identity, name: bytes, data: Any) -> bool:
        """A block to the writer -> whether it was taken."""
        is_taken = self._writer.add(identity, [(name, data)]) == 1
        if is_taken and (round_ := self._rounds.get(identity.partition)):
            round_.num_given += 1
        return is_taken

    def take(self, saved: Mapping[bytes, Any]) -> None:
        """What a step has copied out; what the writer does not take is missing still."""
        for name, data in saved.items():
            identity = self._saving.pop(name, None)
            if identity and not self._give(identity, name, data) and (round_ := self._rounds.get(identity.partition)):
                round_.missing.append(name)

    def _publish(self, round_: Round, is_leaving: bool = False) -> None:
        """The manifest of a round, unless it would say what the one before it says."""
        number, kept = round_.number, Kept(round_.offset, round_.num_lost)
        del self._rounds[number]
        if kept.num_lost:
            self._unkept[number] = None
        if round_.num_given or kept != self._kept.get(number):
            self._kept[number] = kept
            self._writer.publish(round_.identity, round_.offset, round_.parts, is_leaving)

    def hand_over(self, partitions: Sequence[Partition], copy_out: Callable[[Saves], None], deadline_s: float) -> None:
        """These partitions go to somebody else, who need not compute what is stored within so many seconds, or a second
        if that is less. What is on its way by then is stored all the same.

        copy_out: copies these blocks out, and calls `take`; what else there is to do may be done in it.
        """
        started, within_s = time.monotonic(), min(deadline_s, HAND_OVER_S)
        rounds = [self._begin(partition) for partition in partitions if partition.number in self._identities]
        while left := [round_ for round_ in rounds if self._rounds.get(round_.number) is round_]:
            if time.monotonic() - started >= within_s * COPYING:
                break
            saves = self._go_on(left, LEAVING_BYTES, is_leaving=True)
            copy_out(saves)
            if not saves and not self._writer.room:
                time.sleep(0.005)
        for round_ in left:
            round_.look_at_rest(self._pool.block_size)
            self._publish(round_, is_leaving=True)
        identities = [round_.identity for round_ in rounds]
        self._writer.wait_for_manifests(identities, max(0.0, started + within_s - time.monotonic()))

    def close(self, deadline_s: float = 0.0) -> None:
        """What is on its way to the store gets so many seconds. May be called again."""
        if self._standby:
            self._standby.close()
        self._writer.wait(deadline_s)
        self._writer.close(max(deadline_s, LAST_S))
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
