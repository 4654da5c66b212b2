"""The device and the one plan that may be out on it. What comes back is recorded here and nowhere else."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from streamproc.errors import OutOfMemory
from streamproc.ports import Clock, Keeper, ModelRunner
from streamproc.schedule.plan import Flight, Plan
from streamproc.schedule.progress import Progress
from streamproc.schedule.scheduler import Scheduler
from streamproc.state.fork import Fork
from streamproc.state.tier import Tier

log = logging.getLogger("streamproc")


@dataclass(slots=True)
class Counters:
    """What this worker has done since it started."""

    records: int = 0
    bad_records: int = 0
    flash_answers: int = 0
    asks: int = 0
    epochs: int = 0
    aborted_epochs: int = 0
    steps: int = 0
    tokens: int = 0


class Device:
    """Of one loop. `keeper` is told of blocks that steps copy out for it."""

    def __init__(
        self, runner: ModelRunner, scheduler: Scheduler, progress: Progress, tier: Tier, counters: Counters
    ) -> None:
        self.runner = runner
        self.keeper: Keeper | None = None
        self._scheduler, self._progress, self._tier = scheduler, progress, tier
        self._counters = counters
        self._out: tuple[Plan, Flight] | None = None
        self._was_out_of_memory = False

    def launch(self, plan: Plan) -> None:
        """Returns at once; the plan before it has landed."""
        assert self._out is None, "a plan is out"
        self._out = plan, self.runner.launch(plan)

    def is_busy(self, timeout_s: float) -> bool:
        """Whether a plan is still being carried out, after waiting for so long at most."""
        return self._out is not None and not self._out[1].is_done(timeout_s)

    def land(self, clock: Clock) -> list[Fork]:
        """Wait for the plan that is out, if any, and record its progress -> the forks that are over.

        Raises OutOfMemory at its second time in a row; at its first, the plan counts as never made.
        """
        if self._out is None:
            return []
        (plan, flight), self._out = self._out, None
        try:
            sampled = flight.wait()
        except OutOfMemory as problem:
            if self._was_out_of_memory:
                raise
            self._was_out_of_memory = True
            log.warning("%s; trying once more with less in a step", problem)
            self._scheduler.retreat(plan)
            return []
        self._was_out_of_memory &= not plan.chunks
        self._scheduler.landed(flight.seconds)
        self._take_saved(flight)
        self._counters.steps += bool(plan.chunks)
        self._counters.tokens += plan.num_tokens
        return self._progress.apply(plan, sampled, clock.now())

    def copy_out(self, saves: Sequence[tuple[int, bytes]]) -> None:
        """These blocks, by their names, at once; no plan is out."""
        assert self._out is None, "a plan is out"
        flight = self.runner.launch(Plan((), (), tuple(saves)))
        flight.wait()
        self._take_saved(flight)

    def _take_saved(self, flight: Flight) -> None:
        """Blocks that a step has copied out of the pool."""
        if saved := flight.saved:
            self._tier.put(saved)
            if self.keeper:
                self.keeper.take(saved)
