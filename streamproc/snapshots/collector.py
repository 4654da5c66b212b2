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

Nothing is deleted but what has the full path of a manifest, a segment or a mark: other files in the folders are not
ours.
"""

import time
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from streamproc.errors import Unavailable
from streamproc.snapshots.contract import Found, Store
from streamproc.snapshots.grace import GRACE_S, longest
from streamproc.snapshots.manifest import (
    Damaged,
    ManifestName,
    Unknown,
    condemned_folder,
    manifests_folder,
    mark_digest,
    mark_path,
    parse_name,
    segment_digest,
    segments_folder,
)
from streamproc.snapshots.restore import read_manifest

FOREIGN_S = 86_400.0  # how long the newest manifests of another model or topic id are kept: a way back
SKEW_S = 2.0  # between two times of one store
CLOCK = "clock"  # the file that a pass puts to know the store's time


@dataclass(frozen=True, slots=True)
class Retention:
    """How many manifests of a partition are kept, and those younger than an age (0: no others); `grace_s`: how long a
    segment may be on its way into a manifest (grace.py).
    """

    keep: int = 2
    max_age_s: float = 0.0
    grace_s: float = GRACE_S

    @classmethod
    def every(cls, interval_s: float, keep: int, max_age_s: float) -> "Retention":
        """For manifests at this interval: several of them fit into a quarter of the grace period (see publisher.py)."""
        return cls(keep, max_age_s, max(GRACE_S, 8 * interval_s))


Written = tuple[Found, ManifestName]  # a manifest as it lies in the store


@dataclass(slots=True)
class Swept:
    """What was deleted or condemned, or would be."""

    manifests: list[Found] = field(default_factory=list)
    segments: list[Found] = field(default_factory=list)
    condemned: list[Found] = field(default_factory=list)


def surplus(listed: Sequence[Written], tag: str, retention: Retention, now: float) -> list[Found]:
    """Those of a partition's manifests that need not be kept at this time of the store's clock. What counts is when
    they were written, not their offset: a group may be set back. `tag`: whose manifests are ours.

    A clock that was ahead has left times that are yet to come. They tell nothing: whatever was written since is newer,
    and what its writer made last stays, whatever the store says.
    """
    ours = [name for _, name in listed if name.tag == tag]
    last = max(ours, key=lambda name: (name.created_ms, name.offset), default=None)

    def newness(item: Written) -> tuple[bool, float, int, int]:
        found, name = item
        return found.modified_s <= now + SKEW_S, found.modified_s, name.offset, name.created_ms

    num_newer: dict[str, int] = {}
    gone = []
    for found, name in sorted(listed, key=newness, reverse=True):
        rank = num_newer[name.tag] = num_newer.get(name.tag, 0) + 1
        age_s = max(now - found.modified_s, 0.0)
        is_kept = rank <= retention.keep or age_s < retention.max_age_s or name is last
        if not is_kept or (name.tag != tag and age_s > max(FOREIGN_S, retention.max_age_s)):
            gone.append(found)
    return gone


def prune(store: Store, folder: str, tag: str | None, retention: Retention, dry_run: bool = False) -> Swept:
    """Delete the surplus manifests of a partition; `tag`: ours, or that of the manifest written last. Raises
    Unavailable.
    """
    swept, listed = Swept(), manifests_in(store, folder)
    if len(listed) <= 1:
        return swept
    now = time.time() if dry_run else time_or_ours(store, folder.partition("/manifests/")[0])
    for found in surplus(listed, tag or tag_of_newest(listed, now), retention, now):
        if not dry_run:
            store.delete(found.path)
        swept.manifests.append(found)
    return swept


def manifests_in(store: Store, folder: str) -> list[Written]:
    """The manifests that lie in this folder itself. Raises Unavailable."""
    listed = [(found, name) for found in store.list(folder) if (name := parse_name(found.path))]
    return [(found, name) for found, name in listed if name.path.rpartition("/")[0] == folder]


def tag_of_newest(listed: Sequence[Written], now: float) -> str:
    return max((found.modified_s <= now + SKEW_S, found.modified_s, name.tag) for found, name in listed)[-1]


def store_time(store: Store, scope: str) -> float:
    """Now, by the store's clock. Raises Unavailable."""
    path = mark_path(scope, CLOCK)
    store.put(path, [b""])
    return next((found.modified_s for found in store.list(condemned_folder(scope)) if found.path == path), 0.0)


def time_or_ours(store: Store, scope: str) -> float:
    """Now, by our own clock where the store takes no file: one that is full must be able to get emptier."""
    try:
        return store_time(store, scope)
    except Unavailable:
        return time.time()


def all_marks(store: Store, scope: str) -> dict[str, Found]:
    """The marks by digest of their segments. Raises Unavailable."""
    return {digest: each for each in store.list(condemned_folder(scope)) if (digest := mark_digest(scope, each.path))}


def all_segments(store: Store, scope: str) -> dict[str, Found]:
    """The segments by digest; other files are left out. Raises Unavailable."""
    return {digest: each for each in store.list(segments_folder(scope)) if (digest := segment_digest(scope, each.path))}


class Collector:
    """Deletes the segments of a group and topic that nobody needs. What it has read of manifests it remembers: they
    never change.
    """

    def __init__(self, store: Store, scope: str, grace_s: float, is_alone: bool = False) -> None:
        """is_alone: nobody else writes here, who might need a longer grace period."""
        self._store = store
        self._scope = scope
        self._grace_s, self._is_alone = grace_s, is_alone
        self._named: dict[str, frozenset[str]] = {}  # manifest's path: digests of its segments

    def collect(self) -> Swept:
        """One pass. Raises Unavailable; what was done until then is right."""
        store, scope, now = self._store, self._scope, store_time(self._store, self._scope)
        store.sweep(scope)
        marks = all_marks(store, scope)
        named = self._all_named()
        segments = all_segments(store, scope)
        swept = self._judge(marks, named, segments, now)
        for digest, found in list(segments.items()):
            if found in swept.condemned:
                store.put_if_absent(mark_path(scope, digest), [b""])
            elif found in swept.segments:
                store.delete(found.path)
                del segments[digest]
        for digest, mark in marks.items():
            if digest not in segments:
                store.delete(mark.path)  # its segment is gone, for good
        return swept

    def would_collect(self, gone: Iterable[Found] = ()) -> Swept:
        """What a pass would do once these manifests are gone; changes nothing. Raises Unavailable."""
        marks = all_marks(self._store, self._scope)
        named = self._all_named(frozenset(found.path for found in gone))
        segments = all_segments(self._store, self._scope)
        return self._judge(marks, named, segments, time.time())

    def _judge(
        self, marks: Mapping[str, Found], named: Container[str], segments: Mapping[str, Found], now: float
    ) -> Swept:
        """What to condemn and what to delete at this time."""
        swept, grace_s = Swept(), self._grace_s
        if not self._is_alone:
            grace_s = longest(self._store, self._scope, grace_s, now)
        for digest, found in segments.items():
            if digest not in named and now - marks.get(digest, found).modified_s >= grace_s:
                (swept.segments if digest in marks else swept.condemned).append(found)
        return swept

    def _all_named(self, gone: Container[str] = frozenset()) -> frozenset[str]:
        """Digests of the segments that any manifest but these names, of whatever partition and model."""
        listed = self._store.list(manifests_folder(self._scope))
        names = [name for found in listed if found.path not in gone and (name := parse_name(found.path))]
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
    return frozenset(all_marks(store, scope))


def present(store: Store, scope: str) -> frozenset[str]:
    """Digests of the segments that are there."""
    return frozenset(all_segments(store, scope))
