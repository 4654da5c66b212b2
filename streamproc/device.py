"""The device and the plans that are out on it, two at most. What comes back is recorded here and nowhere else.

The next step is decided when the one on the device is about to end, so that the device need not wait for the host and
what came in meanwhile is in it:

    plan n+1       answers that go on from a token which step n samples are fed with it on the device, unseen by the
                   host (as in vLLM's asynchronous scheduling)
    launch n+1     at once: it is behind n in the device's queue
    land n         its tokens are recorded, what it has completed goes out; the device works on n+1 meanwhile

An answer that ends with n, though it might have gone on, has a row too many in n+1: nobody reads what it gives, and its
cells are written before whoever gets them next writes there. Where more than one token is likely to come of n, or all
of n+1 would likely be such rows, the step is launched once n has landed, with all that n said (schedule/unseen.py).
"""

import logging
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from streamproc.errors import OutOfMemory, StreamprocError
from streamproc.ports import Clock, Keeper, ModelRunner
from streamproc.schedule.builder import StepBuilder
from streamproc.schedule.plan import Flight, Plan
from streamproc.schedule.progress import Progress
from streamproc.schedule.scheduler import Scheduler
from streamproc.state.fork import Fork
from streamproc.state.tier import Tier

MOST_OUT = 2
LEAST_AHEAD_S, MOST_AHEAD_S = 0.0015, 0.05  # a plan is decided so long before the device needs it
MEMORY = 0.9  # weight of what was known of how long it takes to plan
TIMELY = 0.98  # of what late plans have added to that, after each that was not
NOTHING = Plan((), ())

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


@dataclass(eq=False, frozen=True, slots=True)
class Out:
    """A plan on the device."""

    step: StepBuilder
    plan: Plan
    flight: Flight
    is_behind: bool  # launched while another one was out


class Device:
    """Of one loop. `keeper` is told of blocks that steps copy out for it."""

    def __init__(
        self, runner: ModelRunner, scheduler: Scheduler, progress: Progress, tier: Tier, counters: Counters
    ) -> None:
        self.runner = runner
        self.keeper: Keeper | None = None
        self._scheduler, self._progress, self._tier = scheduler, progress, tier
        self._counters = counters
        self._out: deque[Out] = deque()
        self._begun: StepBuilder | None = None  # waits for what the plan that is out says
        self._ends_at = self._planning_s = self._ended_at = 0.0
        self._ahead_s = LEAST_AHEAD_S
        self._was_out_of_memory = False

    @property
    def oldest(self) -> Out | None:
        """The plan that lands next."""
        return self._out[0] if self._out else None

    @property
    def saves_are_out(self) -> bool:
        """Blocks that were asked for are on their way out of the pool."""
        return any(out.step.feeds_snapshot for out in self._out)

    @property
    def has_begun(self) -> bool:
        """A step waits for the one that is out."""
        return self._begun is not None

    def is_ending(self, within_s: float = 0.0) -> bool:
        """Whether what is out will have landed by the time that the next step is decided, if that is begun so many
        seconds from now, as far as can be told.
        """
        return time.perf_counter() + within_s >= self._ends_at - 2 * self._planning_s - self._ahead_s

    def plan(self, saves: Sequence[tuple[int, bytes]] = (), held: Collection[int] = ()) -> None:
        """Decide the next step (Scheduler.begin) and launch it, now or when the one that is out has landed."""
        assert self._begun is None, "a step waits"
        assert len(self._out) < MOST_OUT, "too many plans are out"
        started = time.perf_counter()
        step = self._scheduler.begin(saves, held)
        if step.waits:
            self._begun = step
        else:
            self._launch(step)
        self._planning_s = MEMORY * self._planning_s + (1 - MEMORY) * (time.perf_counter() - started)

    def _launch(self, step: StepBuilder) -> None:
        plan = self._scheduler.finish(step)
        if plan == NOTHING:
            return
        self._progress.launched(plan)
        self._out.append(Out(step, plan, self.runner.launch(plan), is_behind=bool(self._out)))
        self._ends_at = max(self._ends_at, time.perf_counter()) if len(self._out) > 1 else time.perf_counter()
        self._ends_at += self._scheduler.times.step_s(step.load)

    def is_busy(self, timeout_s: float) -> bool:
        """Whether the oldest plan is still being carried out, after waiting for so long at most."""
        return bool(self._out) and not self._out[0].flight.is_done(timeout_s)

    def land(self, clock: Clock) -> list[Fork]:
        """Wait for the oldest plan that is out, if any, and record what it has brought; launch what has waited for that
        -> the forks that are over.

        Raises OutOfMemory at its second time in a row; at its first, what is out counts as never planned.
        """
        if not self._out:
            return []
        out = self._out[0]
        try:
            sampled = out.flight.wait()
        except OutOfMemory as problem:
            if self._was_out_of_memory:
                raise
            self._was_out_of_memory = True
            log.warning("%s; trying once more with less in a step", problem)
            self._retreat()
            return []
        self._out.popleft()
        self._was_out_of_memory &= not out.plan.chunks
        self._scheduler.landed(out.step, out.flight.seconds)
        self._note_times(out)
        self._take_saved(out.flight)
        self._counters.steps += bool(out.plan.chunks)
        self._counters.tokens += out.plan.num_tokens
        forks = self._progress.landed(out.plan, sampled, clock.now())
        if self._out:
            self._ends_at = time.perf_counter() + self._scheduler.times.step_s(self._out[0].step.load)
        if self._begun:
            step, self._begun = self._begun, None
            self._launch(step)
        return forks

    def _note_times(self, out: Out) -> None:
        """How long the host needs before a step can begin differs from machine to machine: where the device has waited
        for one that was decided ahead, the next ones are decided earlier.
        """
        late_s = max(out.flight.queued_at - self._ended_at, 0.0) if out.is_behind else 0.0
        self._ahead_s = min(max(TIMELY * self._ahead_s, LEAST_AHEAD_S) + late_s, MOST_AHEAD_S)
        self._ended_at = out.flight.ended_at

    def _retreat(self) -> None:
        """The oldest plan was not carried out; those behind it computed from what it has not written."""
        outs, begun = list(self._out), self._begun
        self._out.clear()
        self._begun = None
        for out in outs[1:]:
            try:
                out.flight.wait()
            except StreamprocError:
                continue
        self._progress.failed([out.plan for out in outs])
        self._scheduler.retreat([*(out.step for out in outs), *([begun] if begun else [])])

    def copy_out(self, saves: Sequence[tuple[int, bytes]]) -> None:
        """These blocks, by their names, at once; no plan is out."""
        assert not self._out, "a plan is out"
        self._tier.saving(name for _, name in saves)
        flight = self.runner.launch(Plan((), (), tuple(saves)))
        flight.wait()
        self._take_saved(flight)

    def _take_saved(self, flight: Flight) -> None:
        """Blocks that a step has copied out of the pool."""
        if saved := flight.saved:
            self._tier.put(saved)
            if self.keeper:
                self.keeper.take(saved)
