"""What may be deleted: manifests by retention, segments that no manifest names.

A segment that a live manifest names is never deleted, however many workers write and collect at once:

1. A pass lists the marks first, then reads all manifests of the group and topic, then lists the segments.
2. A segment that none of them names, and that is older than the grace period, is *condemned*: a mark is put beside it.
   A mark stays until its segment is gone.
3. A segment whose mark is older than the grace period, and that no manifest names, is deleted; its mark afterwards.
4. Whoever publishes lists first the marks, then the segments, and names none that is marked or missing. It is done
   within half the grace period, or takes its manifest back (see publisher.py).

So a manifest that names a marked segment was begun before the mark was put, is there when the mark is a grace period
old, and is read in 1. A path never comes back once its segment is deleted: every segment has a random part. All ages
are by the store's clock: a pass puts a file and reads the time it got.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from streamproc.errors import Unavailable
from streamproc.snapshots.manifest import (
    Damaged,
    ManifestName,
    Unknown,
    condemned_folder,
    manifests_folder,
    parse_name,
    segment_digest,
    segments_folder,
)
from streamproc.snapshots.restore import read_manifest
from streamproc.snapshots.store import Found, Store

FOREIGN_S = 86_400.0  # how long the newest manifests of another model or topic id are kept: a way back
CLOCK = "clock"  # the file that a pass puts to know the store's time


@dataclass(frozen=True, slots=True)
class Retention:
    """How many manifests of a partition are kept, and those younger than an age (0: no others); `grace_s`: how long a
    segment may be on its way into a manifest.
    """

    keep: int = 2
    max_age_s: float = 0.0
    grace_s: float = 600.0


@dataclass(slots=True)
class Swept:
    """What was deleted, or would be."""

    manifests: list[str] = field(default_factory=list)
    segments: list[str] = field(default_factory=list)
    num_bytes: int = 0
    num_condemned: int = 0


def surplus(listed: Iterable[Found], tag: str, retention: Retention) -> list[Found]:
    """Those of a partition's manifests that need not be kept. What counts is when they were written, not their offset:
    a group may be set back. `tag`: whose manifests are ours.
    """
    known = [(found, name) for found in listed if (name := parse_name(found.path))]
    now = max((found.modified_s for found, _ in known), default=0.0)
    known.sort(key=lambda item: (item[0].modified_s, item[1].offset, item[1].created_ms), reverse=True)
    num_newer: dict[str, int] = {}
    gone = []
    for found, name in known:
        rank = num_newer[name.tag] = num_newer.get(name.tag, 0) + 1
        age_s = now - found.modified_s
        is_kept = rank <= retention.keep or age_s < retention.max_age_s
        if not is_kept or (name.tag != tag and age_s > max(FOREIGN_S, retention.max_age_s)):
            gone.append(found)
    return gone


def prune(store: Store, folder: str, tag: str | None, retention: Retention, dry_run: bool = False) -> Swept:
    """Delete the surplus manifests of a partition; `tag`: ours, or that of the manifest written last. Raises
    Unavailable.
    """
    swept, listed = Swept(), store.list(folder)
    for found in surplus(listed, tag or tag_of_newest(listed), retention):
        if not dry_run:
            store.delete(found.path)
        swept.manifests.append(found.path)
        swept.num_bytes += found.num_bytes
    return swept


def tag_of_newest(listed: Iterable[Found]) -> str:
    known = [(found.modified_s, name.tag) for found in listed if (name := parse_name(found.path))]
    return max(known)[1] if known else ""


class Collector:
    """Deletes the segments of a group and topic that nobody needs. What it has read of manifests it remembers: they
    never change.
    """

    def __init__(self, store: Store, scope: str, grace_s: float) -> None:
        self._store = store
        self._scope = scope
        self._grace_s = grace_s
        self._named: dict[str, frozenset[str]] = {}  # manifest's path: digests of its segments

    def collect(self, dry_run: bool = False) -> Swept:
        """One pass. Raises Unavailable; what was done until then is right."""
        store = self._store
        now = time.time() if dry_run else self._store_time()
        marks = {segment_digest(found.path): found for found in store.list(condemned_folder(self._scope))}
        marks.pop(CLOCK, None)
        named = self._all_named()
        segments = {segment_digest(found.path): found for found in store.list(segments_folder(self._scope))}
        swept = Swept()
        for digest, found in segments.items():
            if digest in named:
                continue
            if digest in marks and now - marks[digest].modified_s >= self._grace_s:
                self._delete(swept, found, marks[digest], dry_run)
            elif digest not in marks and now - found.modified_s >= self._grace_s:
                swept.num_condemned += 1
                if not dry_run:
                    store.put_if_absent(f"{condemned_folder(self._scope)}/{digest}", [b""])
        for digest, mark in marks.items():
            if digest not in segments and not dry_run:
                store.delete(mark.path)  # its segment is gone, for good
        return swept

    def _delete(self, swept: Swept, found: Found, mark: Found, dry_run: bool) -> None:
        swept.segments.append(found.path)
        swept.num_bytes += found.num_bytes
        if not dry_run:
            self._store.delete(found.path)
            self._store.delete(mark.path)

    def _store_time(self) -> float:
        """Now, by the store's clock."""
        folder = condemned_folder(self._scope)
        self._store.put(f"{folder}/{CLOCK}", [b""])
        listed = self._store.list(folder)
        return next((found.modified_s for found in listed if segment_digest(found.path) == CLOCK), 0.0)

    def _all_named(self) -> frozenset[str]:
        """Digests of the segments that any manifest names, of whatever partition and model."""
        names = [name for found in self._store.list(manifests_folder(self._scope)) if (name := parse_name(found.path))]
        self._named = {name.path: self._named.get(name.path) or self._segments_of(name) for name in names}
        return frozenset(digest for digests in self._named.values() for digest in digests)

    def _segments_of(self, name: ManifestName) -> frozenset[str]:
        """Segments of one manifest; of a damaged one none: nobody can restore from it."""
        try:
            manifest = read_manifest(self._store, name)
        except Damaged:
            return frozenset()
        except Unknown as problem:
            raise Unavailable(f"snapshots: nothing is collected in {self._scope}: {name.path}: {problem}") from None
        return frozenset(segment.sha256 for segment in manifest.segments) if manifest else frozenset()


def marked(store: Store, scope: str) -> frozenset[str]:
    """Digests of the condemned segments; to be listed before `present`."""
    return frozenset(segment_digest(found.path) for found in store.list(condemned_folder(scope)))


def present(store: Store, scope: str) -> frozenset[str]:
    """Digests of the segments that are there."""
    return frozenset(segment_digest(found.path) for found in store.list(segments_folder(scope)))
