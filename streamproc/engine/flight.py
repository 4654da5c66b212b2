"""A plan on its way through a ModelRunner: what is put on a device, what it has computed, what waits for it."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from streamproc.engine.masks import Masks, Rows
from streamproc.engine.transfers import Saved
from streamproc.schedule.plan import Plan, told


@dataclass(frozen=True, slots=True)
class Landed:
    """What a step has computed."""

    sampled: dict[int, tuple[int, ...]]
    seconds: float
    queued_at: float
    ended_at: float
    saved: Saved = field(default_factory=dict)      # on a CPU: copied before it computes


@dataclass(frozen=True, slots=True)
class Begun:
    """A step on a GPU."""

    started: float
    queued: float
    sampled: Callable[..., dict[int, tuple[int, ...]]]  # waits for it; without checking those of some sequences
    saved: Callable[[], Saved]


@dataclass(frozen=True, slots=True)
class ModelFlight:
    """A plan on its way. `saving`: on a GPU, of its saves, which may take longer than it computes."""

    computing: "Future[Landed]"
    saving: "Future[Saved] | None" = None

    def wait(self) -> dict[int, tuple[int, ...]]:
        """Block until the step is done; raises what the step raised."""
        sampled = self.computing.result().sampled
        if self.saving:
            self.saving.result()
        return sampled

    def is_done(self, timeout_s: float) -> bool:
        until = time.monotonic() + timeout_s
        try:
            self.computing.exception(timeout_s)
            if self.saving:
                self.saving.exception(max(until - time.monotonic(), 0))
        except TimeoutError:
            return False
        return True

    @property
    def seconds(self) -> float:
        return self.computing.result().seconds

    @property
    def queued_at(self) -> float:
        return self.computing.result().queued_at

    @property
    def ended_at(self) -> float:
        return self.computing.result().ended_at

    @property
    def saved(self) -> Saved:
        return self.saving.result() if self.saving else self.computing.result().saved


@dataclass(slots=True)
class Moment:
    """When masks were first waited for: all else of the step is on the device."""

    at: float = 0.0

    def before(self, masks: Masks) -> Masks:
        def make() -> Rows:
            self.at = time.perf_counter()
            return masks()

        return make


def told_after(before: "Future[Landed] | None", plan: Plan) -> Plan:
    """Once that has landed, if the plan goes on from it."""
    if before is None or not any(chunk.is_untold for chunk in plan.chunks):
        return plan
    return told(plan, before.result().sampled)
