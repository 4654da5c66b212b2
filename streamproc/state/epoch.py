"""An epoch as a value: everything that one Kafka transaction carries."""

from dataclasses import dataclass
from typing import NamedTuple

Headers = tuple[tuple[str, bytes], ...]


class Message(NamedTuple):
    """One message as it came from a topic; a tuple, because every record passes through one."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message to produce; `partition` None leaves the choice to its key."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """An offset to commit: the next one to read."""

    topic: str
    partition: int
    offset: int
    metadata: str = ""


@dataclass(frozen=True, slots=True)
class Epoch:
    """Answers, dead letters, session heads and the offsets they came from: all or nothing."""

    messages: tuple[Outgoing, ...]
    positions: tuple[Position, ...]

    def __bool__(self) -> bool:
        return bool(self.messages or self.positions)


@dataclass(frozen=True, slots=True)
class Bad:
    """A message that can never be processed, and why."""

    message: Message
    code: str
    reason: str
    deaths: int = 0  # of workers, at this message

    @property
    def offset(self) -> int:
        return self.message.offset

    def letter(self, dead_topic: str) -> Outgoing:
        """Its original bytes, with the reason in headers."""
        message = self.message
        facts = {
            "code": self.code,
            "reason": self.reason,
            "topic": message.topic,
            "partition": message.partition,
            "offset": message.offset,
            "timestamp_ms": message.timestamp_ms,
            **({"deaths": self.deaths} if self.deaths else {}),
        }
        headers = tuple((name, str(value).encode()) for name, value in facts.items())
        return Outgoing(dead_topic, message.key, message.value, headers)
