"""A bounded stretch of the records topic, read outside of any group: the source of a replay."""

from collections.abc import Mapping

from streamproc.config import Config
from streamproc.errors import Usage
from streamproc.kafka.cluster import Cluster
from streamproc.kafka.properties import client_properties
from streamproc.kafka.tailing import Tail
from streamproc.positions import Position
from streamproc.state.epoch import Message
from streamproc.state.partition import Recovery


class Stretch:
    """Records from the log's start up to `end`, answered from `begin` on; the live group is not touched."""

    membership = None

    def __init__(self, config: Config, begin: Position, end: Position) -> None:
        properties = client_properties(config)
        self._topic = config.topics.records
        self._tail = Tail(properties, self._topic, Cluster(properties).partition_counts()[self._topic])
        self.starts = self._tail.starts()
        begins, ends = self._tail.resolve(begin), self._tail.resolve(end)
        self._ends = {number: ends[number] for number in begins if number in ends}
        self._begins = {number: min(begins[number], self._ends[number]) for number in self._ends}
        if not self._ends:
            raise Usage("--from and --to name no partition in common")
        self.now_ms = 0  # the records' own clock: the newest timestamp delivered
        self._paused = False
        self._tail.start({number: self.starts[number] for number in self._ends})

    def recoveries(self) -> dict[int, Recovery]:
        """Partitions as a worker would find them that starts at `begin` and has to rebuild from the log alone."""
        return {
            number: Recovery(min(self.starts[number], begin), begin, {}, asks_from=0)
            for number, begin in self._begins.items()
        }

    @property
    def is_read(self) -> bool:
        """Whether every record of the stretch has been delivered."""
        return all(self._tail.positions[number] >= end for number, end in self._ends.items())

    def poll(self, timeout_s: float) -> list[Message]:
        """The next records; a replay never waits long, they are all there."""
        if self._paused or self.is_read:
            return []
        found = [m for m in self._tail.poll(timeout_s) if m.offset < self._ends[m.partition]]
        self.now_ms = max([self.now_ms, *(message.timestamp_ms for message in found)])
        return [Message(self._topic, m.partition, m.offset, m.key, m.value, m.timestamp_ms) for m in found]

    def rewind(self, fallbacks: Mapping[int, int]) -> dict[int, Recovery]:
        """Read again from where the last epoch ended."""
        self._tail.start({**self._tail.positions, **fallbacks})
        return {number: Recovery(offset, offset, {}, asks_from=0) for number, offset in fallbacks.items()}

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    def close(self) -> None:
        self._tail.close()
