"""A Kafka in memory that plays stretches to one processor, and asks as it goes.

A partition's records come up to its next point; then its questions come, each with the newest offset as `min_offset`;
and no further record before the replies to all of them are committed. So an answer's as-of offset is the one that its
question was drawn for. Partitions do not wait for each other.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from streamproc.config import Topics
from streamproc.errors import StreamprocError
from streamproc.evaluate.plan import Inquiry, Point
from streamproc.evaluate.stretch import Stretch
from streamproc.messages import Answer, Ask, decode_answer
from streamproc.records import encode_record
from streamproc.state.epoch import Epoch, Message, Outgoing
from streamproc.state.partition import Recovery
from streamproc.state.stamp import Stamp

BATCH = 200     # records of one partition in one poll


@dataclass(slots=True)
class Lane:
    """How far one partition has got. `waiting`: questions asked and not answered yet, by id."""

    stretch: Stretch
    points: deque[Point]
    next_offset: int = 0
    next_ask: int = 0
    waiting: dict[str, Inquiry] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        return not self.points and not self.waiting


class Play:
    """Source, sink and control topic in one; `answered` grows with every epoch."""

    membership = None

    def __init__(self, topics: Topics, max_tokens: int) -> None:
        """`max_tokens`: of the longest answer."""
        self._topics, self._max_tokens = topics, max_tokens
        self._lanes: dict[int, Lane] = {}
        self._stopped: Collection[int] = ()  # partitions that are not to bring more records now
        self.num_asks = 0
        self.answered: list[tuple[Inquiry, Answer]] = []

    def begin(self, stretches: Iterable[Stretch], points: Iterable[Point]) -> dict[int, Recovery]:
        """Play these; `points` of a partition stand in the order of its log -> the partitions to be assigned."""
        self._lanes = {stretch.partition: Lane(stretch, deque()) for stretch in stretches}
        for point in points:
            self._lanes[point.place.partition].points.append(point)
            self.num_asks += len(point.inquiries)
        return {number: Recovery(0, 0, {}, asks_from=0) for number in self._lanes}

    @property
    def is_done(self) -> bool:
        return all(lane.is_done for lane in self._lanes.values())

    # The source and the control topic

    def poll(self, timeout_s: float = 0.0) -> list[Message]:
        """The next records, and the questions whose records have all been given."""
        return [message for lane in self._lanes.values() for message in self._next(lane)]

    def _next(self, lane: Lane) -> list[Message]:
        if lane.waiting or not lane.points:
            return []
        messages = [] if lane.stretch.partition in self._stopped else self._records(lane, lane.points[0].place.offset)
        if lane.next_offset > lane.points[0].place.offset:
            messages += self._asks(lane, lane.points.popleft())
        return messages

    def _records(self, lane: Lane, last: int) -> list[Message]:
        number, first = lane.stretch.partition, lane.next_offset
        lane.next_offset = min(last + 1, first + BATCH)
        records = lane.stretch.records[first : lane.next_offset]
        return [
            Message(self._topics.records, number, offset, record.sym.encode(), encode_record(record), 0)
            for offset, record in enumerate(records, first)
        ]

    def _asks(self, lane: Lane, point: Point) -> list[Message]:
        lane.waiting = {inquiry.id: inquiry for inquiry in point.inquiries}
        first, lane.next_ask = lane.next_ask, lane.next_ask + len(point.inquiries)
        return [
            Message(self._topics.asks, lane.stretch.partition, offset, None, self._ask(inquiry).encode(), 0)
            for offset, inquiry in enumerate(point.inquiries, first)
        ]

    def _ask(self, inquiry: Inquiry) -> Ask:
        place, words = inquiry.place, inquiry.words.replace("{", "{{").replace("}", "}}")
        return Ask(inquiry.id, place.session, words, place.offset, None, inquiry.kind.answer, self._max_tokens)

    def rewind(self, fallbacks: dict[int, int]) -> dict[int, Recovery]:
        raise AssertionError("every epoch lands here")

    def stamp(self, stamps: Mapping[int, tuple[int, Stamp]]) -> None:
        """Nobody comes after us."""

    def abandon(self) -> None:
        """There is no group to leave."""

    def hold(self, numbers: Collection[int]) -> None:
        self._stopped = numbers

    def close(self) -> None:
        """Nothing to let go of."""

    # The sink

    def commit(self, epoch: Epoch, membership: Any, timeout_s: float | None = None) -> None:
        """Take the answers. Raises StreamprocError where something of ours went to the dead topic."""
        for message in epoch.messages:
            if message.topic == self._topics.dead:
                raise StreamprocError(f"evaluation: the worker refuses what was played: {reason_of(message)}")
            if message.topic == self._topics.answers:
                self._take(decode_answer(message.value or b""))

    def _take(self, answer: Answer) -> None:
        lane = self._lanes[int(answer.id.partition("-")[0])]
        inquiry = lane.waiting.pop(answer.id)
        place, as_of = inquiry.place, answer.as_of
        wanted = (place.partition, place.from_offset, place.offset)
        if as_of and (as_of.partition, as_of.from_offset, as_of.offset) != wanted:
            raise StreamprocError(
                f"evaluation: asked over offsets {place.from_offset} to {place.offset} of partition {place.partition}, "
                f"answered over {as_of.from_offset} to {as_of.offset} of partition {as_of.partition}"
            )
        self.answered.append((inquiry, answer))


class NoQueries:
    """A control topic without standing questions."""

    def poll(self) -> list[Message]:
        return []


def reason_of(letter: Outgoing) -> str:
    return dict(letter.headers).get("reason", b"").decode()
