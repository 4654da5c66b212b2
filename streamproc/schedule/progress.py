"""Records what steps compute. Nobody else moves a sequence forward.

Plans are carried out in the order of their launch, so what a plan computes is there for every later plan from its
launch on, and counts as computed. The tokens that it samples are known once it has landed.
"""

from collections.abc import Mapping, Sequence

from streamproc.schedule.plan import STUCK, Chunk, Plan, num_equal
from streamproc.schedule.speculation import Speculation
from streamproc.state.ending import Decoder, finished_text
from streamproc.state.fork import Fork
from streamproc.state.recent import remember
from streamproc.state.workload import Workload


class Progress:
    """Of one workload. `decoder` tells when an answer is complete."""

    def __init__(self, workload: Workload, speculation: Speculation, decoder: Decoder) -> None:
        self._workload = workload
        self._speculation = speculation
        self._decoder = decoder

    def launched(self, plan: Plan) -> None:
        """The plan is the newest one on the device.

        What was let go of since it was decided, such as a generation that was hopped over, is passed over.
        """
        workload = self._workload
        for chunk in plan.chunks:
            workload.out[chunk.seq_id] += 1
            if chunk.num_samples:
                workload.untold[chunk.seq_id] = chunk.start + len(chunk.token_ids)
            fork = workload.running.get(chunk.seq_id)
            if fork is None:
                generation = workload.resident.get(chunk.seq_id)
                if generation is not None:
                    workload.advance(generation, len(chunk.token_ids))
            elif not chunk.num_samples:
                fork.advance(len(chunk.token_ids))

    def landed(self, plan: Plan, sampled: Mapping[int, Sequence[int]], now: float) -> list[Fork]:
        """The oldest plan on the device is carried out, and these tokens follow (plan.Flight) -> the forks that are
        over. Those that were let go of while the device worked are passed over.
        """
        finished = []
        for chunk in plan.chunks:
            self._is_in(chunk)
            fork = self._workload.running.get(chunk.seq_id)
            if fork is None:
                continue
            fork.started_at = now if fork.started_at is None else fork.started_at
            if chunk.num_samples and self._extend(fork, chunk, sampled.get(chunk.seq_id, ())):
                fork.finished_at = now
                self._speculation.ended(fork)
                self._workload.finish(fork)
                remember(fork)
                finished.append(fork)
        return finished

    def failed(self, plans: Sequence[Plan]) -> None:
        """All the plans on the device, in their order, count as never made."""
        for plan in reversed(plans):
            for chunk in reversed(plan.chunks):
                self._is_in(chunk)
                if fork := self._workload.running.get(chunk.seq_id):
                    fork.rewind(chunk.start)
                elif generation := self._workload.resident.get(chunk.seq_id):
                    self._workload.rewind(generation, chunk.start)

    def _is_in(self, chunk: Chunk) -> None:
        """It is not on the device any more."""
        workload = self._workload
        workload.out[chunk.seq_id] -= 1
        if not workload.out[chunk.seq_id]:
            del workload.out[chunk.seq_id]
        if workload.untold.get(chunk.seq_id) == chunk.start + len(chunk.token_ids):
            del workload.untold[chunk.seq_id]

    def _extend(self, fork: Fork, chunk: Chunk, tokens: Sequence[int]) -> bool:
        """What is certain of the chunk is computed, and the part of its draft that held -> whether the answer ends."""
        num_held, question = num_equal(chunk.draft, tokens), fork.question
        num_known = fork.base + fork.num_tokens - chunk.start - len(chunk.token_ids) + len(chunk.draft)
        if not num_known:
            self._speculation.settle(fork, len(chunk.draft), num_held, max(len(tokens) - num_held - 1, 0))
        if num_known and tuple(tokens[:num_known]) != tuple(fork.token_ids[-num_known:]):
            tokens = ()     # STUCK, at a place where the step before has found that there is only one
        for token_id in tokens[num_known:]:
            if token_id == STUCK:
                fork.error = (
                    f"answer: what its type allows after {len(fork.answer_ids)} tokens is too much to be found out, "
                    "make its schema or pattern simpler"
                )
                return True
            fork.extend(token_id)
            fork.text = finished_text(self._decoder, fork.answer_ids, question.stop, question.max_tokens)
            if fork.text is not None:
                return True
        fork.advance(len(chunk.token_ids) - len(chunk.draft) + num_held)
        return False
