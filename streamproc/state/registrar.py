"""Standing questions as the control topic brings them; what cannot be registered goes to the dead topic, once.

Every worker holds all queries. The one that owns partition 0 of the records answers for the control topic: it commits
how far it has been read, with the dead letters of bad queries in the same transaction.
"""

from collections.abc import Callable

from streamproc.errors import BadQuery
from streamproc.messages import Query, decode_query
from streamproc.state.epoch import Bad, Message, Outgoing, Position
from streamproc.state.queries import QueryBook, QueryChange

OWNER = 0  # partition of the records topic whose owner answers for the control topic


class Registrar:
    """The only writer of the query book. `why_not` says why this worker cannot serve a query, or None."""

    def __init__(self, topic: str, book: QueryBook, why_not: Callable[[Query], str | None]) -> None:
        self._topic = topic
        self._book = book
        self._why_not = why_not
        self._next_offset = 0
        self._bad: list[Bad] = []
        self.committed = 0

    def take(self, message: Message) -> str | None:
        """Read a control message -> the id of the query that changed, if one did."""
        self._next_offset = message.offset + 1
        try:
            change = self._read(message)
        except BadQuery as problem:
            self._bad.append(Bad(message, problem.code, str(problem)))
            return None
        return change.query_id if self._book.apply(change) else None

    def _read(self, message: Message) -> QueryChange:
        if message.value is None:
            return QueryChange((message.key or b"").decode(errors="replace"), None)
        query = decode_query(message.key, message.value)
        reason = self._why_not(query)
        if reason:
            raise BadQuery(reason)
        return QueryChange(query.id, query)

    @property
    def is_behind(self) -> bool:
        """Whether the control topic has been read further than is committed."""
        return self._next_offset > self.committed

    def epoch(self, dead_topic: str) -> tuple[list[Outgoing], list[Position]]:
        """What the owner of partition 0 has to commit."""
        letters = [bad.letter(dead_topic) for bad in self._bad if bad.offset >= self.committed]
        return letters, [Position(self._topic, 0, self._next_offset)]

    def settle(self, positions: tuple[Position, ...]) -> None:
        """An epoch with these positions is committed."""
        for position in positions:
            if position.topic == self._topic:
                self.committed = position.offset
                self._bad = [bad for bad in self._bad if bad.offset >= position.offset]
