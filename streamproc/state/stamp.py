"""What a committed offset of the records topic says beside its number: the offset's metadata, at most 4,096 bytes.

An epoch writes it, and so does a worker that begins to restore a partition, or to process its records: so whoever owns
the partition next can tell an owner that left from one that died, at what, and how often one died there.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import orjson

RESTORING, LIVE = "restoring", "live"  # what an owner is at; "" for nothing: it waits for records
MAX_POISONED = 64  # keeps the metadata far below the broker's limit


@dataclass(frozen=True, slots=True)
class Stamp:
    """All of it follows from who has written it, and when."""

    epoch: str = ""  # id of the epoch that committed the offset; empty: none has
    topic_id: str = ""  # of the records topic: another one may have its name
    left: bool = False  # the owner has let go of the partition by itself
    stage: str = ""  # what the owner is at
    restores: int = 0  # owners before it that died while they restored what is committed at this offset
    attempts: int = 0  # owners before it that began at this offset and died before they had committed another
    trying: int = -1  # offset of the one record that is under way, with nothing beside it
    named: int = 0  # owners before it that died while this record was under way alone
    poisoned: dict[int, int] = field(default_factory=dict)  # records left out -> deaths, 0 once that has been told

    def succeeded(self) -> "Stamp":
        """What the next owner starts from: who has written this, and has not left, is dead."""
        if self.left:
            return Stamp(topic_id=self.topic_id, poisoned=self.poisoned)
        return replace(
            self,
            epoch="",
            stage="",
            restores=self.restores + (self.stage == RESTORING),
            attempts=self.attempts + (self.stage == LIVE),
            named=self.named + (self.trying >= 0),
        )

    @property
    def num_deaths(self) -> int:
        """Owners in a row that died at this offset."""
        return max(self.restores, self.attempts)

    def encode(self) -> str:
        doc: dict[str, Any] = {"epoch": self.epoch, "topic": self.topic_id, "stage": self.stage}
        doc |= {"left": True} if self.left else {}
        doc |= {"restores": self.restores} if self.restores else {}
        doc |= {"attempts": self.attempts} if self.attempts else {}
        doc |= {"trying": self.trying, "named": self.named} if self.trying >= 0 else {}
        doc |= {"poisoned": {str(offset): times for offset, times in self.poisoned.items()}} if self.poisoned else {}
        return orjson.dumps(doc).decode()

    def after(self, offset: int) -> "Stamp":
        """With only those poisoned records that are at or after this offset."""
        return replace(self, poisoned={at: times for at, times in self.poisoned.items() if at >= offset})


FRESH = Stamp(left=True)  # nobody has died


def decode_stamp(metadata: str) -> Stamp:
    """The inverse of `encode`; what somebody else wrote, a tool that moves offsets for example, says nothing."""
    try:
        doc = orjson.loads(metadata)
        return Stamp(
            str(doc["epoch"]),
            str(doc["topic"]),
            bool(doc.get("left", False)),
            str(doc["stage"]),
            int(doc.get("restores", 0)),
            int(doc.get("attempts", 0)),
            int(doc.get("trying", -1)),
            int(doc.get("named", 0)),
            {int(offset): int(times) for offset, times in doc.get("poisoned", {}).items()},
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return FRESH
