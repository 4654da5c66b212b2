"""How partitions come back after an assignment: records are read again, then cells computed or taken from a snapshot.

The hottest sessions come first, as many as the free cells hold, and those that somebody asks of before all; so answers
come before everything is back, and nothing comes back only to make room for the rest. A line says when it is done.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from streamproc.state.generation import Generation
from streamproc.state.partition import Partition
from streamproc.state.workload import Workload


@dataclass(frozen=True, slots=True)
class Start:
    """When a partition was assigned, and what had been computed and loaded by then."""

    at: float  # clock, seconds
    computed: int  # tokens
    loaded: int


class Returning:
    """Partitions that are not back yet."""

    def __init__(self) -> None:
        self._starts: dict[int, Start] = {}

    def __bool__(self) -> bool:
        return bool(self._starts)

    def begin(self, number: int, start: Start) -> None:
        """This partition has sessions to bring back."""
        self._starts[number] = start

    def let_go(self, number: int) -> None:
        self._starts.pop(number, None)

    def back(self, partitions: Mapping[int, Partition], workload: Workload, now: Start) -> Iterator[str]:
        """A line for every partition that has back what it is to have for now."""
        for number, start in list(self._starts.items()):
            partition = partitions[number]
            generations = [session.current for session in partition.sessions.values()]
            if not partition.is_live or any(map(workload.is_behind, generations)):
                continue
            del self._starts[number]
            taken_s = max(now.at - start.at, 1e-9)
            loaded, computed = now.loaded - start.loaded, now.computed - start.computed
            yield (
                f"partition {number} is back after {taken_s:.1f} s: {extent(generations)}; meanwhile "
                f"{loaded} tokens were taken from snapshots or memory ({loaded / taken_s:,.0f} a second), "
                f"{computed} computed"
            )


def extent(generations: Sequence[Generation]) -> str:
    """How many sessions have their cells."""
    num_there = sum(generation.num_computed == generation.num_tokens for generation in generations)
    if num_there == len(generations):
        return f"{num_there} sessions"
    return f"{num_there} of {len(generations)} sessions, the others when they are needed"
