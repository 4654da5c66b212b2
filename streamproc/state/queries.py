"""The standing questions that this worker holds: all of them, as the control topic has them."""

from collections.abc import Iterator
from dataclasses import dataclass

from streamproc.messages import Query


@dataclass(frozen=True, slots=True)
class QueryChange:
    """One message of the control topic: a new specification, or None for a removal."""

    query_id: str
    query: Query | None


class QueryBook:
    """Queries by id, and which of them look at a session."""

    def __init__(self) -> None:
        self._queries: dict[str, Query] = {}
        self._by_session: dict[str, tuple[Query, ...]] = {}

    def apply(self, change: QueryChange) -> bool:
        """Take a change -> whether it made a difference."""
        if self._queries.get(change.query_id) == change.query:
            return False
        if change.query is None:
            del self._queries[change.query_id]
        else:
            self._queries[change.query_id] = change.query
        self._by_session.clear()
        return True

    def __iter__(self) -> Iterator[Query]:
        return iter(self._queries.values())

    def holds(self, query: Query) -> bool:
        """Whether this very version is still registered."""
        return self._queries.get(query.id) == query

    def of_session(self, session: str) -> tuple[Query, ...]:
        """Queries that look at this session, by id."""
        found = self._by_session.get(session)
        if found is None:
            queries = sorted(self._queries.values(), key=lambda query: query.id)
            found = self._by_session[session] = tuple(query for query in queries if query.matches(session))
        return found
