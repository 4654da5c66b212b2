"""Which answers go on from a token that the step which is out still samples: fed with it on the device, unseen.

Between a step that has to be seen first and the next one the device waits for the host, for GAP_S. What going on
unseen may cost is the row of an answer that has ended, and, where there is nothing else to do, a whole step of such
rows, behind which the next record has to wait. So it depends on how likely answers end, by those before (habits.py).

All go on unseen or none: one that has to be seen would else come a step later each time.
"""

import math
from collections.abc import Sequence

from streamproc.schedule.speculation import Speculation
from streamproc.schedule.steptime import Load
from streamproc.state.fork import Fork
from streamproc.state.workload import Workload

GAP_S = 0.001  # benchmarks/bench_turnaround.py, before answers went on unseen


class Unseen:
    """Of one workload."""

    def __init__(self, workload: Workload, speculation: Speculation) -> None:
        self._workload, self._speculation = workload, speculation

    def split(self) -> tuple[list[Fork], list[Fork]]:
        """Running forks that go on in the next step now, and those that have to see first what the step that is out
        says. Whose last possible token is on its way is in neither.
        """
        forks, untold = list(self._workload.running.values()), self._workload.untold
        coming = [fork for fork in forks if fork.seq_id in untold and not self._is_at_end(fork)]
        told = [fork for fork in forks if fork.seq_id not in untold]
        if any(self._must_see(fork) for fork in coming) or self._is_in_vain(coming, bool(told)):
            return told, coming
        going = {fork.seq_id for fork in coming}
        return [fork for fork in forks if fork.seq_id not in untold or fork.seq_id in going], []

    def _is_one_token_coming(self, fork: Fork) -> bool:
        """Whether exactly the token after all that are known of it is on its way."""
        return self._workload.untold[fork.seq_id] == fork.base + fork.num_tokens

    def _is_at_end(self, fork: Fork) -> bool:
        return fork.num_left == 1 and self._is_one_token_coming(fork)

    def _must_see(self, fork: Fork) -> bool:
        """Whether it likely goes on by more than the one token."""
        if not self._is_one_token_coming(fork):     # a draft, or what its type left no choice about
            return True
        return not self._speculation.is_one_token_likely(fork, len(self._workload.running))

    def _is_in_vain(self, forks: Sequence[Fork], has_more: bool) -> bool:
        """Whether by what is to be expected more is lost than is won."""
        times, workload = self._speculation.times, self._workload
        has_more = has_more or bool(workload.growing or workload.awaited or workload.flash)
        ends = [self._speculation.ends_at(fork, len(fork.answer_ids) + 1) for fork in forks]
        rows = [times.seconds(Load().add(fork.base + fork.num_tokens, 1, 1)) for fork in forks]
        all_end = 0.0 if has_more else math.prod(ends)
        lost = all_end * times.fixed + sum(end * row for end, row in zip(ends, rows, strict=True))
        return lost > (1 - all_end) * GAP_S
