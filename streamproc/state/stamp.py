"""What a committed offset of the records topic says beside its number: the offset's metadata, at most 4,096 bytes.

An epoch writes it, and so does a worker that begins to restore a partition, or to process its records: so whoever owns
the partition next can tell an owner that left from one that died, which records it was at, and how often owners died
at those.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import orjson

T = TypeVar("T")
EVER = 2**63 - 1  # an offset that no record has
MAX_POISONED = 64  # keeps the metadata far below the broker's limit
MAX_SUSPECTS = 8  # likewise


class Work(NamedTuple):
    """The records [start, end) that an owner is at; `is_alone`: with nothing else under way in its process."""

    start: int
    end: int
    is_alone: bool = False


@dataclass(frozen=True, slots=True)
class Suspects:
    """Records [start, end): `deaths` owners died while all of them were under way or may have been, so one may be the
    cause; in `named` of these it was one record alone.
    """

    start: int
    end: int
    deaths: int
    named: int = 0

    def hold(self, start: int, end: int) -> bool:
        return self.start <= start and end <= self.end

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Stamp:
    """All of it follows from who has written it, and when."""

    epoch: str = ""  # id of the epoch that committed the offset; empty: none has
    topic_id: str = ""  # of the records topic: another one may have its name
    left: bool = False  # the owner has let go of the partition by itself
    work: Work | None = None  # None: it waits for records
    suspects: tuple[Suspects, ...] = ()  # as its predecessors have left them, the newest last
    poisoned: dict[int, int] = field(default_factory=dict)  # records left out -> deaths, 0 once that has been told

    def succeeded(self) -> "Stamp":
        """What the next owner starts from: who has written this, and has not left, is dead. What is suspect stays so
        until it has been tried, whoever leaves before.
        """
        suspects = self.suspects if self.left or self.work is None else _after_a_death(self.suspects, self.work)
        return replace(self, epoch="", left=False, work=None, suspects=suspects)

    @property
    def num_deaths(self) -> int:
        """Owners that died at what may be the work of one record."""
        return max((each.deaths for each in self.suspects), default=0)

    def encode(self) -> str:
        doc: dict[str, Any] = {"epoch": self.epoch, "topic": self.topic_id}
        doc |= {"left": True} if self.left else {}
        doc |= {"work": list(self.work)} if self.work else {}
        doc |= {"suspects": [[s.start, s.end, s.deaths, s.named] for s in self.suspects]} if self.suspects else {}
        doc |= {"poisoned": {str(offset): times for offset, times in self.poisoned.items()}} if self.poisoned else {}
        return orjson.dumps(doc).decode()

    def moved(self, offset: int) -> "Stamp":
        """For this offset, which is committed: who died before it was has made progress after all, unless it is known
        to have been at records behind it.
        """
        suspects = tuple(each for each in self.suspects if offset < each.end < EVER)
        return Stamp(topic_id=self.topic_id, suspects=suspects, poisoned=self.poisoned)

    def after(self, offset: int) -> "Stamp":
        """With only those poisoned records that are at or after this offset."""
        return replace(self, poisoned={at: times for at, times in self.poisoned.items() if at >= offset})


def smallest(suspects: Iterable[Suspects], start: int, end: int) -> Suspects | None:
    """Those among which [start, end) has been narrowed down to the most; None: nobody died there."""
    return min((each for each in suspects if each.hold(start, end)), key=lambda each: each.size, default=None)


def _after_a_death(suspects: tuple[Suspects, ...], work: Work) -> tuple[Suspects, ...]:
    """An owner died at this work. What holds it stays: the death may have been chance, and the cause beside it."""
    around = smallest(suspects, work.start, work.end)
    known = around if around and (around.start, around.end) == (work.start, work.end) else None
    new = Suspects(
        work.start, work.end, (around.deaths if around else 0) + 1, (known.named if known else 0) + work.is_alone
    )
    return (*(each for each in suspects if each is not known), new)[-MAX_SUSPECTS:]


FRESH = Stamp(left=True)  # nobody has died


def decode_stamp(metadata: str) -> Stamp:
    """The inverse of `encode`; what somebody else wrote, a tool that moves offsets for example, says nothing."""
    try:
        doc = orjson.loads(metadata)
        work = doc.get("work")
        return Stamp(
            _only(str, doc["epoch"]),
            _only(str, doc["topic"]),
            _only(bool, doc.get("left", False)),
            None if work is None else Work(whole(work[0]), whole(work[1]), _only(bool, work[2])),
            tuple(Suspects(*map(whole, each)) for each in doc.get("suspects", ())),
            {whole(int(offset)): whole(times) for offset, times in doc.get("poisoned", {}).items()},
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError, IndexError):
        return FRESH


def _only(kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def whole(value: Any) -> int:
    """An offset, or a count. Raises TypeError or ValueError for what is none."""
    if not 0 <= _only(int, value) <= EVER:
        raise ValueError(f"{value!r} is no offset")
    return int(value)
