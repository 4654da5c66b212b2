"""What a writer knows to be stored, for one model, group and topic: block names by segment.

The writer's thread changes it. `in` and `doubt` are for any thread: each name is one step on one dict.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from streamproc.snapshots.manifest import SegmentRef


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

    def __contains__(self, name: bytes) -> bool:
        return name in self._where

    def __len__(self) -> int:
        return len(self._segments)

    def add(self, ref: SegmentRef, names: tuple[bytes, ...], seen_s: float) -> None:
        """This segment is stored; its blocks are taken from it from now on."""
        self._segments[ref.sha256] = Shelved(ref, names, seen_s)
        for name in names:
            self._where[name] = ref.sha256

    def learn(self, ref: SegmentRef, names: tuple[bytes, ...]) -> None:
        """A manifest names this segment; whether it is still there is to be checked."""
        if ref.sha256 not in self._segments:
            self._segments[ref.sha256] = Shelved(ref, names, float("-inf"))
            for name in names:
                self._where.setdefault(name, ref.sha256)

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
            for name in self._segments.pop(digest).names:
                if self._where.get(name) == digest:
                    self._where.pop(name, None)  # `doubt` may have been there since

    def keep(self, digests: frozenset[str], since_s: float) -> None:
        """Forget what is neither among these segments nor was seen since."""
        self.drop([d for d, shelved in self._segments.items() if d not in digests and shelved.seen_s < since_s])

    def doubt(self, names: Iterable[bytes]) -> None:
        """These blocks could not be read: they are to be stored again."""
        for name in names:
            self._where.pop(name, None)
