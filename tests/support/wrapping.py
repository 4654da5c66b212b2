"""A runner and its flights seen through: what is the same for whoever stands between the loop and a device."""

from dataclasses import dataclass
from typing import Any

from streamproc.schedule.plan import Flight


@dataclass
class Around:
    """Has the shape of the runner inside."""

    runner: Any

    @property
    def num_blocks(self) -> int:
        return int(self.runner.num_blocks)

    @property
    def block_size(self) -> int:
        return int(self.runner.block_size)

    @property
    def block_bytes(self) -> int:
        return int(self.runner.block_bytes)


@dataclass
class AroundFlight:
    """Lasts as long as the flight inside, and has saved what that has."""

    flight: Flight

    @property
    def seconds(self) -> float:
        return self.flight.seconds

    @property
    def queued_at(self) -> float:
        return self.flight.queued_at

    @property
    def ended_at(self) -> float:
        return self.flight.ended_at

    @property
    def saved(self) -> dict[bytes, Any]:
        return self.flight.saved

    def is_done(self, timeout_s: float) -> bool:
        return self.flight.is_done(timeout_s)
