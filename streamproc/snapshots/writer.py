"""The writer of snapshots: takes blocks and manifests at once, stores them from a thread of its own.

Nobody waits for it: what does not fit its memory is not taken, and a store that fails is said in one line, tried
again ever more slowly, and costs nothing but older snapshots.

Blocks are stored in the order in which they came, many in a segment. A manifest waits for the blocks that were given
before it; of those of one partition that wait, the first and the newest are written.
"""

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from streamproc.errors import Unavailable
from streamproc.snapshots.collector import Retention
from streamproc.snapshots.contract import Buffer, Store
from streamproc.snapshots.inbox import Given, Inbox, Place, Wish
from streamproc.snapshots.manifest import Identity, Manifest, SessionPart
from streamproc.snapshots.publisher import Publisher
from streamproc.snapshots.shelf import Shelved

log = logging.getLogger(__name__)

MAX_PENDING_BYTES = 256 * 2**20
SEGMENT_BYTES = 32 * 2**20
PATIENCE_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # between two tries
CLOSE_S = 10.0


class SnapshotWriter:
    """Has a thread until it is closed. No method waits for the store but `wait` and `close`; none raises for it."""

    def __init__(
        self,
        store: Store,
        warn: Callable[[str], None],
        max_pending_bytes: int = MAX_PENDING_BYTES,
        retention: Retention = Retention(),  # noqa: B008 - frozen
    ) -> None:
        self._store = store
        self._warn = warn
        self._max_pending_bytes = max_pending_bytes
        self._segment_bytes = min(SEGMENT_BYTES, max(max_pending_bytes // 4, 1))
        self._publisher = Publisher(store, warn, retention)
        self.on_published: Callable[[Manifest], None] = lambda manifest: None  # called in the thread
        self._changed = threading.Condition()
        self._inbox = Inbox()
        self._seq = 0
        self._places: dict[Identity, Place] = {}
        self._shared: dict[tuple[str, str], Place] = {}  # fingerprint and scope
        self._num_waiting = 0
        self._num_failures = 0
        self._said_untidy = False
        self._is_closed = False
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="snapshot-writer", daemon=True)
        self._thread.start()

    @property
    def room(self) -> int:
        """Bytes that it takes now; 0 while the store fails."""
        with self._changed:
            if self._num_failures or self._broken or self._is_closed:
                return 0
            return max(self._max_pending_bytes - self._inbox.num_bytes, 0)

    def has(self, identity: Identity, name: bytes) -> bool:
        """Whether a block is stored or on its way; also what the partition's newest manifest names, once the thread has
        read that (until then a block may be given again; it is not stored again).
        """
        return self._place(identity).has(name)

    def look_up(self, identity: Identity, name: bytes) -> Buffer | Shelved | None:
        """Where a block is of which it is known already that it has it: its bytes while it is on its way, then the
        segment in which it lies.
        """
        place = self._shared.get((identity.fingerprint, identity.scope))
        return place.look_up(name) if place else None

    def _place(self, identity: Identity) -> Place:
        """Where the partition's blocks go; at the first use the thread is told to read what is stored already."""
        if place := self._places.get(identity):
            return place
        with self._changed:
            shared = Place(self._publisher.shelf(identity), {})
            place = self._places[identity] = self._shared.setdefault((identity.fingerprint, identity.scope), shared)
            self._inbox.to_learn[identity] = None
            self._changed.notify_all()
            return place

    def newest(self, identity: Identity) -> Manifest | None:
        """The partition's manifest that is stored, as far as is known here: what it names can be read back, to evict
        blocks from memory and to load them again (`SnapshotReader.open`).
        """
        return self._publisher.newest(identity)

    def add(self, identity: Identity, blocks: Sequence[tuple[bytes, Buffer]]) -> int:
        """Blocks to be stored, by name; their buffers must not change any more -> how many of them, from the first on,
        were taken or are there already; the others did not fit: give them again later.
        """
        place = self._place(identity)
        with self._changed:
            for num_taken, (name, data) in enumerate(blocks):
                if place.has(name):
                    continue
                if self._is_closed or self._broken or self._inbox.num_bytes + len(data) > self._max_pending_bytes:
                    return num_taken
                self._seq += 1
                self._inbox.blocks.append(Given(self._seq, identity, place, name, data))
                place.coming[name] = data
                self._inbox.num_bytes += len(data)
            if self._inbox.num_bytes >= self._segment_bytes:
                self._changed.notify_all()
            return len(blocks)

    def publish(
        self, identity: Identity, offset: int, sessions: Sequence[SessionPart], is_urgent: bool = False
    ) -> None:
        """A manifest of the partition as of this offset, once the blocks given so far are stored; an urgent one waits
        for those of its own sessions alone, which are stored before all others.
        """
        place = self._place(identity)
        with self._changed:
            wish = Wish(self._seq, identity, offset, tuple(sessions))
            if is_urgent:
                self._inbox.hurry(wish, place)
            else:
                self._inbox.wish(wish)
            self._changed.notify_all()

    def doubt(self, identity: Identity, names: Iterable[bytes]) -> None:
        """These blocks could not be read back whole: forget that they are stored, so that they are given again."""
        self._place(identity).shelf.doubt(names)

    def forget(self, identity: Identity) -> None:
        """The partition is somebody else's. A manifest of it that still waits is written all the same: what it says is
        right whoever writes it, and its new owner may be in need of it.
        """
        with self._changed:
            self._inbox.to_learn.pop(identity, None)
            self._places.pop(identity, None)
            self._publisher.forget(identity)
            self._changed.notify_all()

    def wait(self, deadline_s: float) -> bool:
        """Wait until everything given so far is stored, manifests too, at most so many seconds -> whether it is."""
        with self._changed:
            self._num_waiting += 1
            self._changed.notify_all()
            try:
                return self._wait_for(lambda: self._inbox.is_empty, deadline_s)
            finally:
                self._num_waiting -= 1

    def wait_for_manifests(self, identities: Collection[Identity], deadline_s: float) -> bool:
        """Wait until those that were given so far of these partitions are stored -> whether they are."""
        with self._changed:
            return self._wait_for(lambda: not self._inbox.awaits(identities), deadline_s)

    def _wait_for(self, is_done: Callable[[], bool], deadline_s: float) -> bool:
        self._changed.wait_for(lambda: is_done() or self._broken or self._is_closed, deadline_s)
        return is_done() and not self._broken

    def close(self, deadline_s: float = CLOSE_S) -> None:
        """Stop the thread after what it is doing, at most so many seconds; what still waits is dropped."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(deadline_s)

    def _run(self) -> None:
        try:
            while step := self._next_step():
                try:
                    step()
                except Unavailable as problem:
                    self._failed(problem)
                else:
                    self._worked()
        except Exception as problem:
            with self._changed:
                self._broken = problem
                self._changed.notify_all()
            self._warn(f"snapshots: none are written any more: {type(problem).__name__}: {problem}")
            log.error("the writer of snapshots has a fault", exc_info=problem)

    def _next_step(self) -> Callable[[], None] | None:
        """What to do next, waited for; None: closed."""
        with self._changed:
            if self._num_failures:
                pause_s = PATIENCE_S[min(self._num_failures, len(PATIENCE_S)) - 1]
                self._changed.wait_for(lambda: self._is_closed, pause_s)
            while not self._is_closed:
                if step := self._choose():
                    return step
                self._num_failures = 0  # nothing is left to be tried again: what comes next must have room to find out
                self._changed.wait()
            return None

    def _choose(self) -> Callable[[], None] | None:
        """Learn first: it saves writing. A manifest whose blocks are stored before more blocks."""
        inbox = self._inbox
        if inbox.to_learn:
            return partial(self._learn, next(iter(inbox.to_learn)))
        if wish := inbox.granted(self._seq):
            return partial(self._publish, wish)
        is_wanted = inbox.wishes or self._num_waiting or self._num_failures
        if inbox.blocks and (is_wanted or inbox.num_bytes >= self._segment_bytes):
            return self._write
        return partial(self._tidy, next(iter(inbox.to_tidy))) if inbox.to_tidy else None

    def _learn(self, identity: Identity) -> None:
        self._publisher.learn(identity)
        with self._changed:
            self._inbox.to_learn.pop(identity, None)
            self._inbox.take_out([given for given in self._inbox.blocks if given.name in given.place.shelf])
            self._changed.notify_all()

    def _write(self) -> None:
        """One segment of the oldest blocks."""
        with self._changed:
            together = self._inbox.together(self._segment_bytes)
        self._publisher.write(together[0].identity, [(given.name, given.data) for given in together])
        with self._changed:
            self._inbox.take_out(together)
            self._changed.notify_all()

    def _publish(self, wish: Wish) -> None:
        manifest = self._publisher.publish(wish.identity, wish.offset, wish.sessions)
        with self._changed:
            is_ours = wish.identity in self._places
            if not is_ours:
                self._publisher.forget(wish.identity)
        if is_ours:
            self.on_published(manifest)
        with self._changed:
            self._inbox.fulfil(wish)
            if is_ours:
                self._inbox.to_tidy[wish.identity] = None
            self._changed.notify_all()

    def _tidy(self, identity: Identity) -> None:
        """Where nothing may be deleted, snapshots are still written."""
        with self._changed:
            self._inbox.to_tidy.pop(identity, None)
        try:
            self._publisher.tidy(identity)
        except Unavailable as problem:
            if not self._said_untidy:
                self._said_untidy = True
                self._warn(f"{problem}; snapshots that are no longer needed stay for now")

    def _failed(self, problem: Unavailable) -> None:
        with self._changed:
            self._num_failures += 1
            is_first = self._num_failures == 1
        if is_first:
            self._warn(f"{problem}; it is tried again, until then a restart has more to compute")

    def _worked(self) -> None:
        with self._changed:
            was_failing, self._num_failures = self._num_failures > 0, 0
        if was_failing:
            self._warn(f"snapshots: {self._store.url} works again")
