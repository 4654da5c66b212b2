"""What happened in a run: one JSON object a line, in the order in which it was known.

    run         scenario, seed, topics, shape of sessions: the first line
    send        a message that was acknowledged: topic (its role), partition, offset, key, value
    query       a change of the control topic: id, value (null: removed), and per partition of the records the offsets
                below which it cannot have counted (low) and from which on it must (high)
    seen        a message of the answers topic, as the reader that never stops saw it
    sample      as-of offsets seen so far (seen), and offsets of the group that were fetched after that (committed)
    cut, anew   records of a topic were deleted before these offsets; the topic was deleted and made again
    fault       what was done to whom
    worker      what became of a worker process
    settled     whether everything sent was processed in time, by the committed offsets
    memory      what a worker that lived long needed at most, in the second and in the last third of its life, bytes
    log         a message of a topic at the end, read from its start
    ends        of a topic's partitions: end for those who read committed messages, and of the log
    group       the group's committed offsets at the end, by role of the topic
    note        anything else worth keeping

`t` is in seconds since the run's start.
"""

import json
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class History:
    """Writes events; any thread may."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("w")
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self.num_faults = 0

    def now(self) -> float:
        return round(time.monotonic() - self._started, 4)

    def add(self, op: str, **facts: Any) -> None:
        line = json.dumps({"t": self.now(), "op": op, **facts})
        with self._lock:
            self._file.write(line + "\n")

    def fault(self, what: str, **facts: Any) -> None:
        self.num_faults += 1
        self.add("fault", what=what, **facts)

    def close(self) -> None:
        with self._lock:
            self._file.close()


def text_of(data: bytes | None) -> str | None:
    """A key or value as JSON can hold it; what is not UTF-8 keeps its bytes as surrogates."""
    return None if data is None else data.decode("utf-8", "surrogateescape")


def bytes_of(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogateescape")


def read_history(path: Path) -> Iterator[Event]:
    with path.open() as lines:
        for line in lines:
            yield json.loads(line)


class Past:
    """A history, sorted by kind."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.by_op: dict[str, list[Event]] = {}
        for event in events:
            self.by_op.setdefault(event["op"], []).append(event)

    def of(self, op: str, **facts: Any) -> list[Event]:
        """Events of a kind, with these facts."""
        found = self.by_op.get(op, [])
        return [event for event in found if all(event.get(name) == value for name, value in facts.items())]

    @property
    def run(self) -> Event:
        return self.by_op["run"][0]
