"""What a writer knows to be stored, for one model, group and topic: block names by segment.

The writer's thread changes it. `in`, `where` and `doubt` are for any thread: each name is a step on one dict, or two
of which the second may be in vain.
"""

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

from streamproc.snapshots.manifest import SegmentRef

LITTLE = 1 / 4  # share of live blocks below which a segment is mostly waste


@dataclass(frozen=True, slots=True)
class Shelved:
    """A stored segment. `seen_s`: when it was known to be there and not condemned, by our own clock."""

    ref: SegmentRef
    names: tuple[bytes, ...]
    seen_s: float


class Shelf:
    """Segments by digest, and for every block the newest segment that has it."""

    def __init__(self) -> None:
        self._segments: dict[str, Shelved] = {}
        self._where: dict[bytes, str] = {}
        self._doubted: set[bytes] = set()  # whoever restores may doubt a block before it is learned that it is there
        self.named: set[str] = set()  # those that a manifest of ours has named

    def __contains__(self, name: bytes) -> bool:
        return name in self._where

    def __len__(self) -> int:
        return len(self._segments)

    @property
    def digests(self) -> Container[str]:
        """Of the segments that are known."""
        return self._segments.keys()

    def add(self, ref: SegmentRef, names: tuple[bytes, ...], seen_s: float) -> None:
        """This segment is stored; its blocks are taken from it from now on."""
        self._segments[ref.sha256] = Shelved(ref, names, seen_s)
        for name in names:
            self._where[name] = ref.sha256
            self._doubted.discard(name)

    def learn(self, ref: SegmentRef, names: tuple[bytes, ...]) -> None:
        """A manifest names this segment; whether it is still there is to be checked."""
        if ref.sha256 not in self._segments:
            self._segments[ref.sha256] = Shelved(ref, names, float("-inf"))
            for name in names:
                if name not in self._doubted:
                    self._where.setdefault(name, ref.sha256)

    def where(self, name: bytes) -> Shelved | None:
        """The segment in which a block lies."""
        return self._segments.get(self._where.get(name, ""))

    def of(self, names: Iterable[bytes]) -> list[Shelved]:
        """The segments in which these blocks lie; blocks that are not stored count for nothing."""
        digests = {digest for name in names if (digest := self._where.get(name))}
        return [self._segments[digest] for digest in sorted(digests)]

    def check(self, is_there: Callable[[str], bool], seen_s: float) -> list[Shelved]:
        """Every segment was looked for at this time -> those that are not there and are forgotten."""
        lost = [shelved for digest, shelved in self._segments.items() if not is_there(digest)]
        self.drop(shelved.ref.sha256 for shelved in lost)
        for digest, shelved in self._segments.items():
            self._segments[digest] = Shelved(shelved.ref, shelved.names, max(seen_s, shelved.seen_s))
        return lost

    def drop(self, digests: Iterable[str]) -> None:
        """Forget segments, and the blocks for which they are the place."""
        for digest in digests:
            self.named.discard(digest)
            for name in self._segments.pop(digest).names:
                if self._where.get(name) == digest:
                    self._where.pop(name, None)  # `doubt` may have been there since

    def keep(self, is_kept: Callable[[Shelved], bool]) -> None:
        """Forget all other segments."""
        self.drop([digest for digest, shelved in self._segments.items() if not is_kept(shelved)])

    def scattered(self, live: frozenset[bytes], many: int, max_bytes: int) -> list[Shelved]:
        """Segments whose live blocks are better put together, up to so many bytes: those that are mostly waste, and
        where there are too many, the smallest half. A single one is left alone unless it is mostly waste.
        """
        num_bytes = {shelved.ref.sha256: self._live_bytes(shelved, live) for shelved in self.of(live)}
        by_size = sorted(num_bytes, key=num_bytes.__getitem__)
        waste = [digest for digest in by_size if num_bytes[digest] < self._segments[digest].ref.num_bytes * LITTLE]
        small = by_size[: len(by_size) // 2] if len(by_size) > many else []
        picked, total = list[Shelved](), 0
        for digest in dict.fromkeys([*waste, *small]):
            total += num_bytes[digest]
            if total > max_bytes:
                break
            picked.append(self._segments[digest])
        return picked if len(picked) > 1 or waste else []

    def _live_bytes(self, shelved: Shelved, live: frozenset[bytes]) -> int:
        """About so many bytes of the segment are blocks that are live and taken from it."""
        digest = shelved.ref.sha256
        num_live = sum(name in live and self._where.get(name) == digest for name in shelved.names)
        return shelved.ref.num_bytes * num_live // max(shelved.ref.num_blocks, 1)

    def doubt(self, names: Iterable[bytes]) -> None:
        """These blocks could not be read: they are to be stored again."""
        for name in names:
            self._doubted.add(name)
            self._where.pop(name, None)
