"""Records what a step has computed. Nobody else moves a sequence forward."""

from collections.abc import Mapping, Sequence

from streamproc.schedule.plan import STUCK, Chunk, Plan, num_equal
from streamproc.schedule.speculation import Speculation
from streamproc.state.ending import Decoder, finished_text
from streamproc.state.fork import Fork
from streamproc.state.workload import Workload


class Progress:
    """Of one workload. `decoder` tells when an answer is complete."""

    def __init__(self, workload: Workload, speculation: Speculation, decoder: Decoder) -> None:
        self._workload = workload
        self._speculation = speculation
        self._decoder = decoder

    def apply(self, plan: Plan, sampled: Mapping[int, Sequence[int]], now: float) -> list[Fork]:
        """The plan is carried out, and these tokens follow (plan.Flight) -> the forks that are over.

        What was let go of while the device worked, such as a generation that was hopped over, is passed over.
        """
        finished = []
        for chunk in plan.chunks:
            fork = self._workload.running.get(chunk.seq_id)
            if fork is None:
                generation = self._workload.resident.get(chunk.seq_id)
                if generation is not None:
                    self._workload.advance(generation, len(chunk.token_ids))
                continue
            fork.started_at = now if fork.started_at is None else fork.started_at
            if self._extend(fork, chunk, sampled.get(chunk.seq_id, ())):
                fork.finished_at = now
                self._workload.finish(fork)
                finished.append(fork)
        return finished

    def _extend(self, fork: Fork, chunk: Chunk, tokens: Sequence[int]) -> bool:
        """What is certain of the chunk is computed, and the part of its draft that held -> whether the answer ends."""
        num_held, question = num_equal(chunk.draft, tokens), fork.question
        self._speculation.settle(fork, len(chunk.draft), num_held)
        for token_id in tokens:
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
