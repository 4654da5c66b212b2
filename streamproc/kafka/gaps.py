"""Whether the log still fits what was committed from it. Pure: what Kafka says comes in, a reason comes out.

    start over      the log is another one, or nobody knows how far this one was read: no session of it means anything
    go on           a part of it is missing, or it is processed in another way now: go on from what there is
"""

from dataclasses import dataclass

from streamproc.messages import Head
from streamproc.state.origin import UNKNOWN, Origin


@dataclass(frozen=True, slots=True)
class Found:
    """A partition as Kafka has it now; `committed` -1: the group has no offset there."""

    topic: str
    number: int
    group: str
    topic_id: str
    low: int
    high: int
    committed: int
    committed_topic_id: str
    heads: dict[str, Head]
    before: Origin = UNKNOWN  # what it was processed with
    origin: Origin = UNKNOWN  # what it is to be processed with

    @property
    def where(self) -> str:
        return f"{self.topic} partition {self.number}"


@dataclass(frozen=True, slots=True)
class Gap:
    """What is wrong, and what going on would mean; `starts_over`: nothing that was committed counts any more."""

    reason: str
    remedy: str
    starts_over: bool

    def line(self, policy: str) -> str:
        if policy == "rebuild":
            return f"{self.reason}; {self.remedy} (worker.on_gap = rebuild)"
        return f"{self.reason}; set worker.on_gap = rebuild: {self.remedy}"


def find_gap(found: Found) -> Gap | None:
    """The first thing that does not fit, or None."""
    known = {found.committed_topic_id, *(head.topic_id for head in found.heads.values())} - {""}
    if known and found.topic_id and known != {found.topic_id}:
        return Gap(
            f"{found.where}: the topic was deleted and made again since group {found.group} read it",
            "it starts over in the new one, as worker.start says",
            True,
        )
    if found.committed < 0 and found.heads:
        return Gap(
            f"{found.where}: the committed offset of group {found.group} is gone, its {len(found.heads)} sessions are "
            "not: offsets expire when nobody is in the group (offsets.retention.minutes)",
            "it starts over as worker.start says, and answers again what it reads again",
            True,
        )
    if 0 <= found.committed < found.low:
        return Gap(
            f"{found.where}: records {found.committed} to {found.low - 1} were deleted before they were processed",
            "it goes on from the oldest there is",
            False,
        )
    if found.committed > found.high:
        return Gap(
            f"{found.where}: offset {found.committed} is committed, the log ends at {found.high}: records were lost",
            "it goes on from the log's end",
            False,
        )
    return _set_back(found) or _other_origin(found)


def _set_back(found: Found) -> Gap | None:
    """Heads are committed with the offset: none can know of a record beyond it."""
    ahead = sorted((head.newest, session) for session, head in found.heads.items() if head.newest >= found.committed)
    if not ahead:
        return None
    newest, session = ahead[-1]
    return Gap(
        f"{found.where}: offset {found.committed} is committed, but {len(ahead)} sessions' heads know of later "
        f"records, that of {session!r} of {newest}: somebody has set group {found.group} back",
        f"it reads these sessions again from the log's start, {found.low}, and answers again from {found.committed} on",
        False,
    )


def _other_origin(found: Found) -> Gap | None:
    """The log is whole, but it is processed, or filled, in another way."""
    before, now = found.before, found.origin
    if before.model and now.model and before.model != now.model:
        return Gap(
            f"{found.where}: group {found.group} has processed it with model {before.model}, this worker's is "
            f"{now.model} (a digest of its weights)",
            "contexts are computed again with this one, and it answers from here on",
            False,
        )
    if before.num_partitions and now.num_partitions and before.num_partitions != now.num_partitions:
        return Gap(
            f"{found.where}: the topic had {before.num_partitions} partitions when group {found.group} read it, it has "
            f"{now.num_partitions} now: keys may have moved to other partitions",
            "it goes on, and a key that has moved begins a new session where it is now",
            False,
        )
    return None
