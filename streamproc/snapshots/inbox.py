"""What waits for the writer's thread, and what is known to whoever asks."""

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from streamproc.snapshots.contract import Buffer
from streamproc.snapshots.manifest import Identity, SessionPart
from streamproc.snapshots.shelf import Shelf, Shelved


class Place(NamedTuple):
    """The blocks of one model, group and topic: those that are stored, and those on their way, by name. A block is on
    the shelf before it is no longer on its way, so whoever looks there first needs no lock.
    """

    shelf: Shelf
    coming: dict[bytes, Buffer]

    def has(self, name: bytes) -> bool:
        return name in self.coming or name in self.shelf

    def look_up(self, name: bytes) -> Buffer | Shelved | None:
        """The bytes of a block on its way, or the segment in which it lies."""
        data = self.coming.get(name)
        return self.shelf.where(name) if data is None else data


class Given(NamedTuple):
    """A block on its way. `seq` counts all that was given."""

    seq: int
    identity: Identity
    place: Place
    name: bytes
    data: Buffer


class Wish(NamedTuple):
    """A manifest to be written once all blocks up to `seq` are stored."""

    seq: int
    identity: Identity
    offset: int
    sessions: tuple[SessionPart, ...]


@dataclass(slots=True)
class Inbox:
    """What waits for the thread; guarded by the writer's lock."""

    blocks: deque[Given] = field(default_factory=deque)
    num_bytes: int = 0
    wishes: dict[str, list[Wish]] = field(default_factory=dict)  # by the partition's folder, two at most
    to_learn: dict[Identity, None] = field(default_factory=dict)
    to_tidy: dict[Identity, None] = field(default_factory=dict)

    def awaits(self, identities: Collection[Identity]) -> bool:
        """Whether a manifest of these partitions is still to be written."""
        return any(wish.identity in identities for waiting in self.wishes.values() for wish in waiting)

    @property
    def is_empty(self) -> bool:
        return not (self.blocks or self.wishes or self.to_learn)

    def wish(self, wish: Wish) -> None:
        """The newest wish of a partition replaces one that waits, but never the one whose turn is next: with a store
        that is slower than the wishes come, no manifest would ever be written.
        """
        waiting = self.wishes.setdefault(wish.identity.folder, [])
        waiting[1:] = [wish]

    def hurry(self, wish: Wish, place: Place) -> None:
        """This wish comes before all others, and its blocks before all others; it replaces those of its partition."""
        names = frozenset(name for session in wish.sessions for name in session.names)
        end = self.blocks[0].seq if self.blocks else 1
        urgent = [given for given in self.blocks if given.place is place and given.name in names]
        rest = [given for given in self.blocks if not (given.place is place and given.name in names)]
        first = [given._replace(seq=seq) for seq, given in enumerate(urgent, end - len(urgent))]
        self.blocks = deque([*first, *rest])
        self.wishes.pop(wish.identity.folder, None)
        self.wishes = {wish.identity.folder: [wish._replace(seq=end - 1)], **self.wishes}

    def granted(self, last_seq: int) -> Wish | None:
        """A wish whose blocks are all stored; `last_seq`: of all that was given."""
        first = self.blocks[0].seq if self.blocks else last_seq + 1
        return next((waiting[0] for waiting in self.wishes.values() if waiting[0].seq < first), None)

    def fulfil(self, wish: Wish) -> None:
        """This wish is a manifest now; it may have been replaced meanwhile."""
        folder = wish.identity.folder
        left = [other for other in self.wishes.pop(folder, []) if other is not wish]
        if left:
            self.wishes[folder] = left

    def together(self, max_bytes: int) -> list[Given]:
        """The oldest block and those after it that can share its segment, up to so many bytes."""
        first, num_bytes, together = self.blocks[0], 0, list[Given]()
        for given in self.blocks:
            if given.place is first.place and len(given.data) == len(first.data):
                if together and num_bytes + len(given.data) > max_bytes:
                    break
                together.append(given)
                num_bytes += len(given.data)
        return together

    def take_out(self, stored: Iterable[Given]) -> None:
        """These blocks are stored."""
        gone = {(id(given.place), given.name) for given in stored}
        left = deque[Given]()
        for given in self.blocks:
            if (id(given.place), given.name) in gone:
                given.place.coming.pop(given.name, None)
                self.num_bytes -= len(given.data)
            else:
                left.append(given)
        self.blocks = left
