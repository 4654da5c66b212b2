"""How partitions come back after an assignment: records are read again, then cells computed or taken from a snapshot.

Sessions that somebody asks of come first, so answers come before everything is back; a line says when it is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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
        """A line for every partition all of whose cells are there."""
        for number, start in list(self._starts.items()):
            partition = partitions[number]
            generations = [session.current for session in partition.sessions.values()]
            if not partition.is_live or any(generation.seq_id in workload.growing for generation in generations):
                continue
            del self._starts[number]
            taken_s = max(now.at - start.at, 1e-9)
            loaded, computed = now.loaded - start.loaded, now.computed - start.computed
            yield (
                f"partition {number} is back after {taken_s:.1f} s: {len(generations)} sessions; meanwhile "
                f"{loaded} tokens were taken from snapshots or memory ({loaded / taken_s:,.0f} a second), "
                f"{computed} computed"
            )
