"""Segments and manifests into the store, step by step; the part of the writer that may wait. Its thread alone calls.

A manifest may name a segment only if that was there and not condemned a short while ago, and is taken back if writing
it took so long that this may have changed; collector.py says why that is enough.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import attrgetter
from typing import TypeVar

from streamproc.errors import Unavailable
from streamproc.snapshots.collector import Collector, Retention, marked, present, prune
from streamproc.snapshots.contract import Buffer, Store
from streamproc.snapshots.grace import tell
from streamproc.snapshots.manifest import (
    Damaged,
    Identity,
    Manifest,
    SegmentRef,
    SessionPart,
    Unknown,
    encode,
    segment_path,
)
from streamproc.snapshots.restore import SnapshotReader, by_offset, header_of, misfit, read_manifest
from streamproc.snapshots.segment import seal
from streamproc.snapshots.shelf import Shelf, Shelved

Warn = Callable[[str], None]
ShelfKey = tuple[str, str]  # fingerprint, scope
Read = TypeVar("Read")

FRESH = 1 / 4  # share of the grace period for which a segment need not be looked for again
KNOWN = 1 / 8  # share of the grace period for which one that we name no more is known: it is fresh for some time yet
MANY = 64  # segments that a shelf's manifests may name
COPY_BYTES = 32 * 2**20  # most bytes that are put together at a time, beyond the memory for what is on its way
DONE = 1 / 2  # share of the grace period within which a manifest is written
TRIES = 2  # at a file of the store before it counts for nothing


class Publisher:
    """What is stored, and how it gets there. What touches the store raises Unavailable."""

    def __init__(
        self,
        store: Store,
        warn: Warn,
        retention: Retention,
        now: Callable[[], float] = time.monotonic,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._warn = warn
        self._retention = retention
        self._now = now
        self._unix_s = unix_s
        self._shelves: dict[ShelfKey, Shelf] = {}
        self._live: dict[Identity, Manifest] = {}  # our partitions' newest
        self._reader = SnapshotReader(store, warn, num_threads=0)
        self._collectors: dict[str, Collector] = {}
        self._collected_s: dict[str, float] = {}
        self._unread: dict[str, int] = {}  # by path: how often it could not be read

    def forget(self, identity: Identity) -> None:
        """The partition's newest manifest is no longer ours to know."""
        self._live.pop(identity, None)

    def newest(self, identity: Identity) -> Manifest | None:
        """The manifest of the partition that was published or read last."""
        return self._live.get(identity)

    def shelf(self, identity: Identity) -> Shelf:
        """What is known to be stored for a partition: of its model, group and topic."""
        return self._shelves.setdefault((identity.fingerprint, identity.scope), Shelf())

    def learn(self, identity: Identity) -> None:
        """The blocks of the partition's newest manifest are stored: they need not be given again. A file that cannot be
        read is tried again by the next call, then passed over: one of them must not keep all others from being written.
        """
        tell(self._store, identity.scope, self._retention.grace_s)
        for name in sorted(by_offset(self._store, identity.folder), key=attrgetter("created_ms"), reverse=True):
            if name.tag != identity.tag:
                continue
            try:
                manifest = self._read(name.path, partial(read_manifest, self._store, name))
            except (Damaged, Unknown):
                continue  # whoever restores says so
            if manifest and not misfit(manifest, name, identity):
                self._learn_segments(manifest)
                self._live[identity] = manifest
                return

    def _learn_segments(self, manifest: Manifest) -> None:
        """Raises Unavailable once all were tried, so that those that cannot be read have their second try together."""
        scope, shelf = manifest.identity.scope, self.shelf(manifest.identity)
        failed: Unavailable | None = None
        for segment in manifest.segments:
            if segment.sha256 in shelf.digests:
                continue
            try:
                path = segment_path(scope, segment.sha256)
                header = self._read(path, partial(header_of, self._store, manifest.identity, segment))
            except Damaged:
                continue
            except Unavailable as problem:
                failed = problem
                continue
            if header:
                shelf.learn(segment, tuple(block.name for block in header.blocks))
        if failed:
            raise failed

    def _read(self, path: str, read: Callable[[], Read]) -> Read | None:
        """What `read` brings of this file; None where it has not come at the second try, which is said once."""
        try:
            content = read()
        except Unavailable as problem:
            num_tries = self._unread[path] = self._unread.get(path, 0) + 1
            if num_tries < TRIES:
                raise
            if num_tries == TRIES:
                self._warn(f"{problem}; it is passed over: what it holds may be stored again")
            return None
        self._unread.pop(path, None)
        return content

    def write(self, identity: Identity, blocks: Sequence[tuple[bytes, Buffer]]) -> None:
        """Blocks of one size as a segment."""
        seen_s = self._now()
        segment, parts = seal(identity.fingerprint, blocks, compressed=self._store.is_remote)
        self._store.put_if_absent(segment_path(identity.scope, segment.sha256), parts)
        self.shelf(identity).add(segment, tuple(name for name, _ in blocks), seen_s)

    def publish(self, identity: Identity, offset: int, sessions: Sequence[SessionPart]) -> Manifest:
        """A manifest of what is stored of these sessions' blocks."""
        names = frozenset(name for session in sessions for name in session.names)
        shelved = self._checked(identity, names)
        segments = tuple(each.ref for each in shelved)
        manifest = Manifest(identity, offset, int(self._unix_s() * 1000), tuple(sessions), segments)
        path, content = encode(manifest)
        self._store.put_if_absent(path, [content])
        if shelved and self._now() - min(each.seen_s for each in shelved) > self._retention.grace_s * DONE:
            self._store.delete(path)
            raise Unavailable(f"snapshots: {path} took too long to be written to {self._store.url}; taken back")
        self._live[identity] = manifest
        self._trim(identity)
        return manifest

    def _checked(self, identity: Identity, names: frozenset[bytes]) -> list[Shelved]:
        """The segments of these blocks, all of them seen a short while ago."""
        shelf, grace_s = self.shelf(identity), self._retention.grace_s
        fresh_since_s = self._now() - grace_s * FRESH
        needed = shelf.of(names)
        if all(each.seen_s >= fresh_since_s for each in needed):
            return needed
        seen_s = self._now()
        condemned = marked(self._store, identity.scope)  # before `there`: a mark goes only after its segment
        there = present(self._store, identity.scope)
        lost = shelf.check(lambda digest: digest in there and digest not in condemned, seen_s)
        gone = {each.ref.sha256 for each in lost} & {each.ref.sha256 for each in needed}
        if gone:
            self._warn(f"snapshots: {len(gone)} segments of {identity.scope} are gone; their blocks are stored again")
        return shelf.of(names)

    def _trim(self, identity: Identity) -> None:
        """Segments that our newest manifests name no more are forgotten: somebody may delete them, and memory stays
        bounded. One that was not named yet may still be, for the grace period.
        """
        live = digests(segment for manifest in self._ours(identity) for segment in manifest.segments)
        shelf, now, grace_s = self.shelf(identity), self._now(), self._retention.grace_s
        shelf.named |= live

        def is_kept(shelved: Shelved) -> bool:
            digest = shelved.ref.sha256
            share = KNOWN if digest in shelf.named else 1
            return digest in live or shelved.seen_s >= now - grace_s * share

        shelf.keep(is_kept)

    def _ours(self, identity: Identity) -> list[Manifest]:
        """Our newest manifests with the same shelf."""
        key = identity.fingerprint, identity.scope
        live = list(self._live.items())  # at once: `forget` comes from another thread
        return [manifest for each, manifest in live if (each.fingerprint, each.scope) == key]

    def tidy(self, identity: Identity) -> None:
        """Retention of the partition's manifests; now and then, as they look at all there is: blocks of many segments
        put together, and the segments that nobody names any more.
        """
        prune(self._store, identity.folder, identity.tag, self._retention)
        scope, now, grace_s = identity.scope, self._now(), self._retention.grace_s
        if now - self._collected_s.get(scope, float("-inf")) >= grace_s * FRESH:
            self._collected_s[scope] = now
            tell(self._store, scope, grace_s)
            self._put_together(identity)
            self._collectors.setdefault(scope, Collector(self._store, scope, grace_s)).collect()

    def _put_together(self, identity: Identity) -> None:
        """Blocks that our manifests need of segments that are mostly waste, or too many, become a segment of their own;
        the next manifest names that instead.
        """
        ours = self._ours(identity)
        live = frozenset[bytes]().union(*(manifest.names for manifest in ours))
        picked = self.shelf(identity).scattered(live, MANY, COPY_BYTES)
        if not picked:
            return
        names = frozenset(name for shelved in picked for name in shelved.names) & live
        part = SessionPart("", 0, 0, 0, tuple(names))
        source = Manifest(identity, 0, 0, (part,), tuple(shelved.ref for shelved in picked))
        opened = self._reader.open(source)
        found = opened.fetch(names)
        if not opened.failed:
            self.shelf(identity).doubt(names - found.keys())
        by_size: dict[int, list[tuple[bytes, Buffer]]] = {}
        for name in (name for shelved in picked for name in shelved.names if name in found):
            by_size.setdefault(len(found[name]), []).append((name, found[name]))
        for blocks in by_size.values():
            self.write(identity, blocks)


def digests(segments: Iterable[SegmentRef]) -> frozenset[str]:
    return frozenset(segment.sha256 for segment in segments)
