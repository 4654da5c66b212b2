"""A bounded stretch of the records topic, read outside of any group: the source of a replay.

Both ends are settled once, at the start; what is produced meanwhile is not part of it.
"""

from collections.abc import Collection, Mapping

from streamproc.config import Config
from streamproc.errors import Unavailable, Usage
from streamproc.kafka.cluster import Cluster
from streamproc.kafka.failures import missing_topic
from streamproc.kafka.properties import client_properties
from streamproc.kafka.tailing import TIMEOUT_S, Tail
from streamproc.positions import Position
from streamproc.state.epoch import Message
from streamproc.state.partition import Recovery
from streamproc.state.stamp import Stamp


class Stretch:
    """Records from the log's start up to `end`, answered from `begin` on; the live group is not touched."""

    membership = None

    def __init__(self, config: Config, begin: Position, end: Position) -> None:
        """Raises Unavailable without the topic, Refused for a position it has not, Usage for a stretch of nothing."""
        properties = client_properties(config)
        self._topic = config.topics.records
        counts = Cluster(properties).partition_counts()
        if self._topic not in counts:
            raise missing_topic(self._topic)
        self._tail = Tail(properties, self._topic, counts[self._topic])
        begins, ends = self._tail.resolve(begin), self._tail.resolve(end)
        taken = [number for number in sorted(begins) if begins[number] < ends.get(number, 0)]
        if not taken:
            self._tail.close()
            raise Usage(f"topic {self._topic}: there is no record between --from and --to")
        starts = self._tail.starts()
        self.starts = {number: starts[number] for number in taken}  # of the log
        self._begins = {number: begins[number] for number in taken}
        self._ends = {number: ends[number] for number in taken}
        self.now_ms = 0  # the records' own clock: the newest timestamp delivered
        self.num_records = 0  # delivered from `begin` on
        self._stopped: set[int] = set()  # partitions of which nothing is to be fetched now
        self._silent_since: float | None = None
        self._tail.start(self.starts)

    def recoveries(self) -> dict[int, Recovery]:
        """Partitions as a worker would find them that starts at `begin` and has to rebuild from the log alone."""
        return {
            number: Recovery(min(self.starts[number], begin), begin, {}, asks_from=0)
            for number, begin in self._begins.items()
        }

    @property
    def is_read(self) -> bool:
        """Whether every record of the stretch has been delivered."""
        return not self._left

    @property
    def _left(self) -> dict[int, int]:
        """Where partitions go on of which there are more records."""
        return {number: position for number, position in self._tail.positions.items() if position < self._ends[number]}

    def poll(self, timeout_s: float) -> list[Message]:
        """The next records. Raises Unavailable where Kafka falls silent before the end."""
        if self._left.keys() <= self._stopped:
            self._silent_since = None
            return []
        before = dict(self._tail.positions)
        batch = self._tail.poll(timeout_s)
        self._listen(self._tail.positions != before)
        found = [message for message in batch if message.offset < self._ends[message.partition]]
        if len(found) < len(batch):
            self._leave_finished()
        self.now_ms = max([self.now_ms, *(message.timestamp_ms for message in found)])
        self.num_records += sum(message.offset >= self._begins[message.partition] for message in found)
        return [Message(self._topic, m.partition, m.offset, m.key, m.value, m.timestamp_ms) for m in found]

    def _listen(self, is_heard: bool) -> None:
        now = self._tail.clock()
        if is_heard or self._silent_since is None:
            self._silent_since = None if is_heard else now
        elif now - self._silent_since > TIMEOUT_S:
            raise Unavailable(f"topic {self._topic}: no Kafka answers within {TIMEOUT_S:.0f} s; is it running?")

    def _leave_finished(self) -> None:
        """Fetch only the partitions that have records left."""
        if left := self._left:
            stopped, self._stopped = self._stopped, set()
            self._tail.start(left)
            self.hold(stopped)

    def rewind(self, fallbacks: Mapping[int, int]) -> dict[int, Recovery]:
        raise AssertionError("a replay's output takes every epoch, or ends the replay")

    def stamp(self, stamps: Mapping[int, tuple[int, Stamp]]) -> None:
        """Nobody comes after us."""

    def abandon(self) -> None:
        """There is no group to leave."""

    def hold(self, numbers: Collection[int]) -> None:
        stopped, before = self._tail.positions.keys() & set(numbers), self._stopped
        for number in stopped - before:
            self._tail.pause(number)
        for number in before - stopped:
            self._tail.resume(number)
            self._silent_since = None
        self._stopped = stopped

    def close(self) -> None:
        self._tail.close()
