"""Everything that a store holds of one group and topic, for people: what there is, and whether it is whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from streamproc.errors import Unavailable
from streamproc.snapshots.contract import Store
from streamproc.snapshots.manifest import (
    Damaged,
    Identity,
    Manifest,
    ManifestName,
    SegmentRef,
    Unknown,
    manifests_folder,
    parse_name,
    segment_path,
)
from streamproc.snapshots.restore import header_of, read_manifest, runs
from streamproc.snapshots.segment import opened
from streamproc.values import printable

MOST_CHARS = 200


@dataclass(frozen=True, slots=True)
class Entry:
    """A manifest, or why it cannot be read."""

    name: ManifestName
    manifest: Manifest | None
    problem: str

    @property
    def partition(self) -> str:
        return partition_of(self.name)

    @property
    def num_bytes(self) -> int:
        """Bytes of the segments that it names; others may name them too."""
        return sum(segment.num_bytes for segment in self.manifest.segments) if self.manifest else 0


@dataclass(frozen=True, slots=True)
class Checked:
    """A segment that was read in full. `num_damaged`: blocks that cannot be restored from it."""

    path: str
    num_blocks: int
    num_damaged: int
    problem: str


def entries(store: Store, scope: str) -> list[Entry]:
    """All manifests of a group and topic, by partition, the newest first. Raises Unavailable."""
    names = [name for found in store.list(manifests_folder(scope)) if (name := parse_name(found.path))]
    found = [entry for name in names if is_in_place(name, scope) and (entry := read_entry(store, name))]
    return sorted(found, key=lambda entry: (int(entry.partition), -entry.name.offset, -entry.name.created_ms))


def partition_of(name: ManifestName) -> str:
    return name.path.split("/")[-2]


def is_in_place(name: ManifestName, scope: str) -> bool:
    """Whether it lies in the folder of a partition itself."""
    number = partition_of(name)
    folder = f"{manifests_folder(scope)}/{number}"
    return number.isascii() and number.isdecimal() and name.path.rpartition("/")[0] == folder


def read_entry(store: Store, name: ManifestName) -> Entry | None:
    try:
        manifest = read_manifest(store, name)
    except (Damaged, Unknown) as problem:
        return Entry(name, None, str(problem))
    if manifest and manifest.identity.folder != name.path.rpartition("/")[0]:
        return Entry(name, None, f"it is of {printable(manifest.identity.folder, MOST_CHARS)}")
    return Entry(name, manifest, "") if manifest else None


def partitions(listed: Sequence[Entry]) -> dict[str, str]:
    """Partitions with the folder of their manifests."""
    return {entry.partition: entry.name.path.rpartition("/")[0] for entry in listed}


def check_segments(store: Store, listed: Sequence[Entry]) -> Iterator[Checked]:
    """Read every segment that a manifest names, once. Raises Unavailable."""
    wanted = {
        segment.sha256: (entry.manifest.identity, segment)
        for entry in listed
        if entry.manifest
        for segment in entry.manifest.segments
    }
    for _, (identity, segment) in sorted(wanted.items()):
        yield check_segment(store, identity, segment)


def check_segment(store: Store, identity: Identity, segment: SegmentRef) -> Checked:
    path = segment_path(identity.scope, segment.sha256)
    try:
        header = header_of(store, identity, segment)
    except Damaged as damage:
        return Checked(path, segment.num_blocks, segment.num_blocks, str(damage))
    num_whole, problem = 0, ""
    for run in runs([(segment, header, block) for block in header.blocks]):
        start = run.blocks[0].start
        try:
            content = store.get_range(path, start, run.blocks[-1].end - start) or memoryview(b"")
        except Unavailable as failed:
            problem = str(failed)
            continue
        pieces = (content[block.start - start : block.end - start] for block in run.blocks)
        num_whole += sum(opened(header, *pair) is not None for pair in zip(run.blocks, pieces, strict=True))
    num_damaged = len(header.blocks) - num_whole
    return Checked(path, len(header.blocks), num_damaged, problem or ("damaged" if num_damaged else ""))
