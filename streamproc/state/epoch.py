"""An epoch as a value: everything that one Kafka transaction carries."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

LETTER_VALUE_BYTES, LETTER_KEY_BYTES = 512 * 1024, 64 * 1024  # Kafka takes a message of 1 MB as it comes

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
        """Its original bytes, with the reason in headers; of what is too large for any topic, the first ones."""
        message = self.message
        key, value = message.key, message.value
        facts = {
            "code": self.code,
            "reason": self.reason,
            "topic": message.topic,
            "partition": message.partition,
            "offset": message.offset,
            "timestamp_ms": message.timestamp_ms,
            **({"deaths": self.deaths} if self.deaths else {}),
            **_cut("key", key, LETTER_KEY_BYTES),
            **_cut("value", value, LETTER_VALUE_BYTES),
        }
        headers = tuple((name, str(value).encode()) for name, value in facts.items())
        return Outgoing(dead_topic, key and key[:LETTER_KEY_BYTES], value and value[:LETTER_VALUE_BYTES], headers)


def _cut(name: str, whole: bytes | None, most: int) -> dict[str, object]:
    """What the letter says of bytes that it does not hold."""
    if whole is None or len(whole) <= most:
        return {}
    return {f"{name}_bytes": len(whole), f"{name}_sha256": hashlib.sha256(whole).hexdigest()}
