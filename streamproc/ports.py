"""What the loop needs of the world: a source, a sink, a control topic, an engine and a clock.

Kafka and the model stand behind these; so do the fakes of the tests, and a replay's bounded source and file.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from streamproc.schedule.plan import Runner
from streamproc.state.blocks import BlockPool
from streamproc.state.epoch import Epoch, Message
from streamproc.state.intake import Renderer
from streamproc.state.partition import Partition, Recovery
from streamproc.state.stamp import Stamp
from streamproc.state.tier import Tier


class Source(Protocol):
    """Where records and asks come from."""

    @property
    def membership(self) -> Any: ...

    def poll(self, timeout_s: float) -> list[Message]: ...

    def rewind(self, fallbacks: dict[int, int]) -> dict[int, Recovery]: ...

    def stamp(self, stamps: Mapping[int, tuple[int, Stamp]]) -> None:
        """Commit these offsets of the records topic, which are committed already, with other stamps; by partition."""
        ...

    def hold(self, numbers: Collection[int]) -> None:
        """Fetch no more records of these partitions, and again of all others; asks of all."""
        ...

    def close(self) -> None: ...

    def abandon(self) -> None:
        """Leave without committing anything; may be called after `close`."""
        ...


class Sink(Protocol):
    """Where epochs go."""

    def commit(self, epoch: Epoch, membership: Any, timeout_s: float | None = None) -> None:
        """`timeout_s` bounds all of it; None: as long as the sink thinks fit."""
        ...

    def close(self) -> None: ...


class Control(Protocol):
    """The control topic."""

    def poll(self) -> list[Message]: ...


class Keeper(Protocol):
    """Snapshots of this worker's partitions (keeper.py)."""

    def connect(self, pool: BlockPool, tier: Tier, block_bytes: int, partitions: Mapping[int, Partition]) -> None:
        """partitions: those that are ours, at any time."""
        ...

    def assigned(self, committed: Mapping[int, tuple[str, int]]) -> None:
        """These partitions are ours: topic id and committed offset of each."""
        ...

    def committed(self, partitions: Iterable[Partition]) -> None:
        """These partitions' offsets have moved."""
        ...

    @property
    def sought(self) -> Collection[int]:
        """Partitions of which it is not known yet what is stored: too early to compute."""
        ...

    def pick(self) -> Sequence[tuple[int, bytes]]:
        """Blocks that the next step is to copy out, and their names. Not called while one is out that does so."""
        ...

    def take(self, saved: Mapping[bytes, Any]) -> None:
        """What a step has copied out, by name."""
        ...

    def hand_over(
        self,
        partitions: Sequence[Partition],
        copy_out: Callable[[Sequence[tuple[int, bytes]]], None],
        deadline_s: float,
    ) -> None:
        """These partitions go to somebody else: leave a snapshot at their committed offset, if there is time."""
        ...

    def let_go(self, numbers: Collection[int]) -> None:
        """These partitions are somebody else's."""
        ...

    def close(self, deadline_s: float = 0.0) -> None:
        """What is on its way to the store gets so many seconds. May be called again."""
        ...


class Engine(Protocol):
    """A runner and the renderer of its model; `streamproc.engine`, or fakes."""

    @property
    def runner(self) -> "ModelRunner": ...

    @property
    def renderer(self) -> Renderer: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def model(self) -> str:
        """Digest of weights, dtype and configuration."""
        ...

    def why_not(self, grammar: str) -> str | None:
        """The reason why answers cannot be held to this grammar (AnswerType.grammar), or None."""
        ...


class ModelRunner(Runner, Protocol):
    """A runner, and what the loop has to know of its model."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def block_bytes(self) -> int: ...

    @property
    def block_size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Clock:
    """Time as the loop sees it: `now` in seconds for intervals, `unix_ms` for deadlines of asks."""

    now: Callable[[], float] = time.monotonic
    unix_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
