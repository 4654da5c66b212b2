"""Restore or recompute: which stored blocks are computed because that is clearly faster than to wait for them.

Both are lines that people stand in: the shelf's is what is on its way and what others wait for (state/fetches.py), the
device's is what was chosen to be computed before. A sequence goes to the one in which its turn is over first; so at a
restart the device computes some contexts while the store sends others.

    computing    rows, pairs and reads of the steps so far (steptime.py): tokens/s at the positions in question
    fetching     latency and time per block of what has come, and the time that steps took to copy blocks in

What is in memory is always copied in: no device computes a block in the time of a copy. Fetching is preferred: it
leaves the device to others. Until the store is measured, nothing is computed that is stored; where all wait for it and
the device has done nothing yet, one of them tries that out. A store that is too slow is looked at now and then.

Answers do not depend on it. Where the engine is exact, a block has the same bits either way. Where it is not, its bits
depend on what else was in the batch in any case, and what a store has lost is computed too: nothing is promised there.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from streamproc.schedule.builder import LEAST
from streamproc.schedule.steptime import StepTimes
from streamproc.state.generation import Generation
from streamproc.state.tier import Tier
from streamproc.state.workload import Workload

log = logging.getLogger(__name__)

MARGIN = 1.5  # times as fast as fetching has computing to be, while the store is the quicker one by itself
LEAST_GAIN_S = 0.05  # and so much sooner done: less is a matter of chance
MIND_S = 60.0  # for which it stays said which of the two is the quicker one by itself: short contexts and long differ
PROBE_SHARE = 8  # of a run that is computed, the last such part is fetched to see how the store does
LEAST_PROBE = 4  # blocks; as many as are worth an interruption (cells.py)
TRIAL_S = 1.0  # who would wait for longer is computed in part to see how long that takes, where nobody knows
TRIAL_TOKENS = 64
LOADED = 0.8  # weight of the past in the time of copying in


def is_clearly_faster(compute_s: float, fetch_s: float, margin: float = MARGIN) -> bool:
    """Whether to compute; 0 s: it is not known how long that takes."""
    return compute_s > 0 and compute_s * margin + LEAST_GAIN_S < fetch_s


@dataclass(slots=True)
class Run:
    """Blocks of a generation that are computed though they are stored: those below index `end`, and probably those
    below `goal`; `at`: its tokens that were computed when the newest plan was begun.
    """

    end: int
    goal: int
    at: int


class Recompute:
    """The choice, for each generation when it would begin to wait."""

    def __init__(self, times: StepTimes, tier: Tier, workload: Workload, step_tokens: int, step_s: float) -> None:
        """step_tokens, step_s: what a step takes at most."""
        self._times, self._tier, self._workload = times, tier, workload
        self._step_tokens, self._step_s = step_tokens, step_s
        self._size = workload.pool.block_size
        self._runs: dict[int, Run] = {}
        self._device_s = 0.0  # what the runs still take
        self._num_ahead = 0  # blocks that others wait for, or that are on their way
        self._load_s = 0.0  # of a block that a step copies in
        self._is_slow = False  # the store, by itself, is slower than to compute
        self._mind_until_s = float("-inf")

    # Measured

    def loaded(self, num_blocks: int, seconds: float) -> None:
        """A step took so long to copy so many blocks in."""
        self._load_s = LOADED * self._load_s + (1 - LOADED) * max(seconds, 0.0) / num_blocks

    def _prefill_s(self, start: int, end: int) -> float:
        if not self._times.is_known or end <= start:
            return 0.0
        fits = self._times.most_tokens(self._step_s - self._times.fixed, (start + end) // 2)
        return self._times.prefill_s(start, end, max(min(fits, self._step_tokens), LEAST))

    # Chosen

    def begin(self) -> None:
        """A plan is begun."""
        self._num_ahead = len(self._tier.fetches.names)
        self._runs = {seq_id: run for seq_id, run in self._runs.items() if self._goes_on(seq_id, run)}
        self._device_s = sum(self._prefill_s(run.at, run.goal * self._size) for run in self._runs.values())

    def _goes_on(self, seq_id: int, run: Run) -> bool:
        """Whether what the run was chosen for is still to be done; cells that were lost are chosen for anew."""
        generation = self._workload.growing.get(seq_id) or self._workload.ahead.get(seq_id)
        if generation is None or not run.at <= generation.num_computed < run.goal * self._size:
            return False
        run.at = generation.num_computed
        return True

    def covers(self, generation: Generation, index: int) -> bool:
        """Whether the generation's block of this index is computed unless it is in memory."""
        run = self._runs.get(generation.seq_id)
        return run is not None and index < run.end

    def choose(self, generation: Generation, first: int, most: int) -> bool:
        """The generation goes on at the block of index `first`: whether what is not in memory of its blocks is
        computed. `most`: blocks for which the choice holds.
        """
        if self.covers(generation, first):
            return True
        size, num_full = self._size, generation.num_tokens // self._size
        begin = _first_not(lambda index: self._is(self._tier.is_near, generation, index), first, num_full)
        asked = _first_not(lambda index: self._is(self._tier.is_asked, generation, index), begin, num_full)
        goal = _first_not(lambda index: self._is(self._tier.has, generation, index), asked, num_full)
        num_ahead, self._num_ahead = self._num_ahead, self._num_ahead + goal - asked
        if asked > begin or goal == begin:
            return False    # what is on its way is waited for, and there may be nothing to wait for
        run = self._runs.pop(generation.seq_id, None)
        self._device_s -= self._prefill_s(run.at, run.goal * size) if run else 0.0
        alone_s = self._prefill_s(begin * size, goal * size)
        is_trial, is_faster = self._weigh(goal - begin, num_ahead, alone_s)
        if not is_trial and not is_faster:
            return False
        self._num_ahead = num_ahead
        self._device_s += alone_s
        end = min(begin + (-(-TRIAL_TOKENS // size) if is_trial else most), goal)
        self._runs[generation.seq_id] = Run(end, goal, generation.num_computed)
        self._probe(generation, begin, end)
        return True

    def _weigh(self, num_blocks: int, num_ahead: int, alone_s: float) -> tuple[bool, bool]:
        """Whether to compute these blocks as a trial, and whether because that is faster; alone_s: where nobody else
        stands in line of the device.
        """
        load_s = num_blocks * self._load_s
        self._make_up_mind(num_blocks, alone_s, self._tier.fetches.rate.seconds(num_blocks) + load_s)
        fetch_s = self._tier.fetches.seconds_until(num_ahead + num_blocks) + load_s
        is_trial = not self._times.is_known and not self._runs and fetch_s > TRIAL_S
        return is_trial, is_clearly_faster(self._device_s + alone_s, fetch_s, 1.0 if self._is_slow else MARGIN)

    def _is(self, there: Callable[[bytes], bool], generation: Generation, index: int) -> bool:
        return there(generation.name(index, self._size))

    def _probe(self, generation: Generation, begin: int, end: int) -> None:
        """Fetch the last blocks of a run: nobody waits for them, and if they come in time they are used."""
        num_blocks = max((end - begin) // PROBE_SHARE, LEAST_PROBE)
        if self._tier.fetches.is_stale and end - begin >= 2 * num_blocks:
            self._tier.expect([generation.name(index, self._size) for index in range(end - num_blocks, end)])

    def _make_up_mind(self, num_blocks: int, compute_s: float, fetch_s: float) -> None:
        """Which is faster where nobody else stands in line."""
        is_slow = is_clearly_faster(compute_s, fetch_s) if not self._is_slow else fetch_s > compute_s
        now = self._tier.fetches.now()
        if is_slow == self._is_slow or now < self._mind_until_s or not self._tier.fetches.rate.is_known:
            return
        self._is_slow, self._mind_until_s = is_slow, now + MIND_S
        rates = [num_blocks * self._size / max(seconds, 1e-9) for seconds in (compute_s, fetch_s)]
        if is_slow:
            text = "snapshots: computing is faster than this store (%.0f tokens/s against %.0f tokens/s): blocks are " \
                "computed until it is quicker"  # fmt: skip
        else:
            text = "snapshots: this store is faster than computing again (%.0f tokens/s computed, %.0f tokens/s " \
                "fetched): blocks are fetched"  # fmt: skip
        log.info(text, *rates)


def _first_not(holds: Callable[[int], bool], start: int, end: int) -> int:
    """The first index from `start` below `end` for which it does not hold, if it holds for those before it alone; so
    a long context is not gone through block by block.
    """
    step = 1
    while start < end and holds(min(start + step, end) - 1):
        start, step = min(start + step, end), 2 * step
    end = min(start + step - 1, end)
    while start < end:
        middle = (start + end) // 2
        start, end = (middle + 1, end) if holds(middle) else (start, middle)
    return start
