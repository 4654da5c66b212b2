"""Reading snapshots: the newest manifest that fits, and blocks by name.

Nothing read here is trusted: a manifest and a segment's header are held to the digests in their paths, a block to its
checksum. What does not pass is said in one line and left out; the caller computes it.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from streamproc.errors import Unavailable
from streamproc.snapshots.contract import Store
from streamproc.snapshots.manifest import (
    Damaged,
    Identity,
    Manifest,
    ManifestName,
    SegmentRef,
    Unknown,
    decode,
    parse_name,
    segment_path,
)
from streamproc.snapshots.segment import Header, Stored, opened, read_header
from streamproc.snapshots.threads import Threads

Warn = Callable[[str], None]

NUM_THREADS = 8  # requests at once; checksums too are computed outside the interpreter's lock
RUN_BYTES = 4 * 2**20  # most bytes of one request: enough for a network, small enough to share among threads


class Run(NamedTuple):
    """Neighbouring blocks of one segment, read in one piece."""

    segment: SegmentRef
    header: Header
    blocks: tuple[Stored, ...]


Lying = tuple[SegmentRef, Header, Stored]  # a block, and the segment that it lies in
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
NONE: Mapping[str, Header] = {}  # headers by digest of their segment


class SnapshotReader:
    """Finds manifests and opens their blocks, with so many threads; 0: in the caller's own. Thread-safe."""

    def __init__(self, store: Store, warn: Warn, num_threads: int = NUM_THREADS) -> None:
        self.store = store
        self._warn = warn
        self._pool = Threads(num_threads, "snapshot-reader") if num_threads else None
        self.block_bytes = 0  # of a block that can be used; 0: of any size

    def find(self, identity: Identity, max_offset: int) -> Manifest | None:
        """The newest manifest of this identity at or before the offset that can be read. Newer ones are passed
        over, each with its reason in one line. Raises Unavailable where the store does not answer.
        """
        failed: Unavailable | None = None
        for name in by_offset(self.store, identity.folder):
            try:
                if manifest := self._fitting(name, identity, max_offset):
                    return manifest
            except Unavailable as problem:
                if failed:  # a store that is away is not asked for every one of them
                    raise
                failed = problem
                self._pass_over(name, str(problem).removeprefix("snapshots: "))
        if failed:
            raise failed
        return None

    def _fitting(self, name: ManifestName, identity: Identity, max_offset: int) -> Manifest | None:
        """The manifest of this name if it is of this identity at or before the offset."""
        if name.offset > max_offset:
            self._pass_over(name, f"it is ahead of the committed offset {max_offset}")
            return None
        try:
            manifest = read_manifest(self.store, name)
        except (Damaged, Unknown) as problem:
            self._pass_over(name, str(problem))
            return None
        if manifest is None:  # collected since it was listed
            return None
        if reason := misfit(manifest, name, identity):
            self._pass_over(name, reason)
            return None
        return manifest

    def _pass_over(self, name: ManifestName, reason: str) -> None:
        self._warn(f"snapshots: {name.path} is passed over: {reason}")

    def open(self, manifest: Manifest, known: Mapping[str, Header] = NONE) -> "Blocks":
        """The blocks of a manifest that are there; reads the headers of its segments, but for those that are known."""
        return Blocks(self, manifest, known)

    @property
    def warn(self) -> Warn:
        return self._warn

    @property
    def each(self) -> Map:
        return self._pool.map if self._pool else map

    def take_over(self, blocks: "Blocks") -> None:
        """From now on these blocks are read, and what is lost of them is said, as if this reader had opened them."""
        blocks.warn, blocks.each = self.warn, self.each

    def close(self) -> None:
        if self._pool:
            self._pool.close()


class Blocks:
    """The blocks of one manifest, by name. `failed`: how the store did not answer at some time, so that what was left
    out may be there all the same. `warn` and `each` may be changed. Thread-safe.
    """

    def __init__(self, reader: SnapshotReader, manifest: Manifest, known: Mapping[str, Header]) -> None:
        self._store, self._block_bytes = reader.store, reader.block_bytes
        self.warn, self.each = reader.warn, reader.each
        self._identity = manifest.identity
        self.failed: Unavailable | None = None
        self._said: set[str] = set()
        self._lock = threading.Lock()
        self._places: list[dict[bytes, Lying]] = [{}]  # where blocks lie; those that lie twice, where else; and so on
        missing = [segment for segment in manifest.segments if segment.sha256 not in known]
        found = self.each(self._header, missing)
        read = {segment.sha256: header for segment, header in zip(missing, found, strict=True)}
        headers = {s.sha256: known.get(s.sha256) or read[s.sha256] for s in manifest.segments}
        self.headers = {digest: header for digest, header in headers.items() if header}
        self._fill(manifest)
        self.names = frozenset(self._places[0])

    def _fill(self, manifest: Manifest) -> None:
        wanted = manifest.names
        for segment in manifest.segments:
            if segment.sha256 not in self.headers:
                continue
            header = self.headers[segment.sha256]
            for block in header.blocks:
                if block.name in wanted:
                    layer = next((layer for layer in self._places if block.name not in layer), None)
                    if layer is None:
                        self._places.append(layer := {})
                    layer[block.name] = (segment, header, block)

    def _header(self, segment: SegmentRef) -> Header | None:
        try:
            header = header_of(self._store, self._identity, segment)
            if self._block_bytes and header.block_bytes != self._block_bytes:
                raise Damaged(f"its blocks are of {header.block_bytes} bytes, here they are of {self._block_bytes}")
            return header
        except Damaged as problem:
            self._leave_out(segment, segment.num_blocks, str(problem))
        except Unavailable as problem:
            self._no_answer(problem)
        return None

    def fetch(self, names: Iterable[bytes]) -> dict[bytes, memoryview]:
        """The bytes of those of these blocks that are there and whole. They may share memory with their neighbours in
        the segment: copy what is to be kept alone.
        """
        found: dict[bytes, memoryview] = {}
        missing = frozenset(names)
        for layer in self._places:
            places = [layer[name] for name in missing if name in layer]
            for blocks in self.each(self._read, list(runs(places))):
                found |= blocks
            missing -= found.keys()
        return found

    def _read(self, run: Run) -> dict[bytes, memoryview]:
        """The whole blocks of a run; the others are said, once a segment."""
        start = run.blocks[0].start
        try:
            path = segment_path(self._identity.scope, run.segment.sha256)
            content = self._store.get_range(path, start, run.blocks[-1].end - start)
        except Unavailable as problem:
            self._no_answer(problem)
            return {}
        if content is None:
            self._leave_out(run.segment, len(run.blocks), "it is gone")
            return {}
        found = {
            block.name: data
            for block in run.blocks
            if (data := opened(run.header, block, content[block.start - start : block.end - start])) is not None
        }
        if num_lost := len(run.blocks) - len(found):
            self._leave_out(run.segment, num_lost, "damaged")
        return found

    def _leave_out(self, segment: SegmentRef, num_blocks: int, reason: str) -> None:
        path = segment_path(self._identity.scope, segment.sha256)
        self._say_once(path, f"snapshots: {num_blocks} blocks or more of {path} are computed again: {reason}")

    def _no_answer(self, problem: Unavailable) -> None:
        self.failed = problem
        self._say_once("", f"{problem}; blocks are computed again")

    def _say_once(self, about: str, line: str) -> None:
        with self._lock:
            if about in self._said:
                return
            self._said.add(about)
        self.warn(line)


def by_offset(store: Store, folder: str) -> list[ManifestName]:
    """The manifests in a folder, the newest offset first; of one offset that which was made last."""
    names = [name for found in store.list(folder) if (name := parse_name(found.path))]
    return sorted(names, key=lambda name: (name.offset, name.created_ms), reverse=True)


def read_manifest(store: Store, name: ManifestName) -> Manifest | None:
    """A manifest; None: it is not there any more. Raises Damaged, Unknown or Unavailable."""
    content = store.get(name.path)
    return None if content is None else decode(name, content)


def misfit(manifest: Manifest, name: ManifestName, identity: Identity) -> str:
    """Why a manifest is not one of this identity at its offset; empty: it is."""
    theirs = manifest.identity
    if theirs.fingerprint != identity.fingerprint:
        return f"it is of another model ({theirs.fingerprint[:12]}, here {identity.fingerprint[:12]})"
    if theirs.topic_id != identity.topic_id:
        return f"the topic was recreated (it is of {theirs.topic_id}, now {identity.topic_id})"
    if theirs != identity or manifest.offset != name.offset:
        return f"it is of {theirs.group} {theirs.topic} {theirs.partition} at {manifest.offset}"
    return ""


def header_of(store: Store, identity: Identity, segment: SegmentRef) -> Header:
    """A segment's header. Raises Damaged, also where the segment is gone or of another model, or Unavailable."""
    content = store.get_range(segment_path(identity.scope, segment.sha256), 0, segment.header_bytes)
    if content is None:
        raise Damaged("it is gone")
    header = read_header(segment, content)
    if header.fingerprint != identity.fingerprint:
        raise Damaged("it is of another model")
    return header


def runs(places: Sequence[Lying]) -> Iterator[Run]:
    """Blocks that lie one after the other put together, up to RUN_BYTES."""
    together: list[Stored] = []
    last: tuple[SegmentRef, Header] | None = None
    for segment, header, block in sorted(places, key=lambda place: (place[0].sha256, place[2].start)):
        if last and not (
            last[0] is segment and block.start == together[-1].end and block.end - together[0].start <= RUN_BYTES
        ):
            yield Run(*last, tuple(together))
            together = []
        together.append(block)
        last = segment, header
    if last:
        yield Run(*last, tuple(together))
