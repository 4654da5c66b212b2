"""The engine's own runner on the device, as a worker has it: plans one behind another, threads, saves and loads.

    answers     of four sequences: one whose blocks leave for the CPU, one held to masks, a fork of the first that comes
                later, and one that begins with the first one's blocks, loaded into other places
    queued      each plan is launched while the one before it is out, and goes on from tokens that nobody has seen
    one by one  each once the one before it has landed: the same tokens, and the same bytes of blocks
    stateless   the tokens once more from nothing, in one chunk for each sequence
"""

from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from gpu.bench import Bench
from gpu.models import Ids, Subject, make_subject
from gpu.oracle import row
from streamproc.engine import runner as runners
from streamproc.engine.choice import gpu_forward
from streamproc.engine.gpu.forward import GpuForward
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.runner import ModelRunner
from streamproc.schedule.plan import UNTOLD, Chunk, Constraint, Plan

NUM_STEPS = 24
FORKS_AT, LOADS_AT, SAVES_AT = 4, 8, 2      # steps; what is saved has landed long before it is loaded
FIRST, MASKED, FORK, LOADED = range(4)
RESIDUES = 9


def run(bench: Bench) -> dict[str, Any]:
    subject = make_subject(bench.sizes.oracle_model, bench.device, bench.dtype, bench.ops)
    walk = Walk(bench, subject)
    one_by_one, queued = walk.answers(1), walk.answers(2)
    rows = [row("the runner computes by our kernels", isinstance(walk.runner.forward, GpuForward) and walk.runner.exact,
                walk.runner.forward.name),
            row("queued beside one by one: tokens", queued[0] == one_by_one[0]),
            row("queued beside one by one: blocks", queued[1] == one_by_one[1]),
            row("a session from its loaded blocks", queued[0][LOADED] == queued[0][FIRST][:len(queued[0][LOADED])]),
            row("stateless", walk.stateless(queued[0]) == queued[0])]  # fmt: skip
    if bench.device.type == "cuda":
        num_graphs = len(walk.runner.forward._graphs._captured)
        rows.append(row("steps in graphs", num_graphs > 0, f"{num_graphs} graphs"))
    walk.runner.close()
    found: dict[str, Any] = {"rows": rows}
    if wrong := [each["way"] for each in rows if each["equal"] is False]:
        found["error"] = f"wrong: {', '.join(wrong)}"
    return found


class Walk:
    def __init__(self, bench: Bench, subject: Subject) -> None:
        self.subject, self.size = subject, bench.sizes.block_size
        size = min(bench.sizes.oracle_tokens, 40 * self.size)
        text = subject.ids(0, size + 5)     # its last block is not full
        self.num_full = len(text) // self.size
        self.texts = {FIRST: text, MASKED: subject.ids(0, size // 2, salt=1), LOADED: text,
                      FORK: (*text, *subject.ids(0, 9, salt=2))}  # fmt: skip
        per_table = -(-(len(self.texts[FORK]) + NUM_STEPS) // self.size)
        tables = [tuple(range(i * per_table, (i + 1) * per_table)) for i in range(4)]
        tables[FORK] = (*tables[FIRST][:self.num_full], *tables[FORK][self.num_full:])
        self.tables = tables
        self.kv = KVCache(subject.loaded.layout(self.size), 4 * per_table, bench.device)
        self.runner = make_runner(subject, self.kv)
        self.saved: dict[bytes, Any] = {}

    def answers(self, num_out: int) -> tuple[dict[int, list[int]], dict[bytes, bytes]]:
        """With so many plans out -> tokens by sequence, and all blocks that were saved."""
        known: dict[int, list[int]] = {seq_id: [] for seq_id in self.texts}
        self.saved, flights = {}, deque[Any]()
        self.runner.call(self.kv.data.zero_)        # what is saved has cells that nobody has written yet

        def land() -> None:
            flight = flights.popleft()
            for seq_id, tokens in flight.wait().items():
                known[seq_id] += tokens
            self.saved.update(flight.saved)

        for step in range(NUM_STEPS):
            flights.append(self.runner.launch(self._plan(step, known, num_out > 1)))
            if len(flights) == num_out:
                land()
        while flights:
            land()
        return known, {name: bytes(data) for name, data in self.saved.items()}

    def _plan(self, step: int, known: dict[int, list[int]], is_unseen: bool) -> Plan:
        first, own = self.tables[FIRST], self.tables[LOADED]
        copies = [(first[self.num_full], self.tables[FORK][self.num_full])] if step == FORKS_AT else []
        loads = [(own[i], self.saved[b"whole %d" % i]) for i in range(self.num_full)] if step == LOADS_AT else []
        saves = [(first[i], b"whole %d" % i) for i in range(self.num_full)] if step == SAVES_AT else []
        newest = (len(self.texts[MASKED]) + step - 1) // self.size      # the block that this step goes on to write
        saves += [(self.tables[MASKED][newest], b"step %d" % step)] if step % 3 else []
        going = [(FIRST, step), (MASKED, step), (FORK, step - FORKS_AT), (LOADED, step - LOADS_AT)]
        order = going if step % 2 else going[::-1]      # the place among the samples is another one
        chunks = [self._chunk(seq_id, done, known[seq_id], is_unseen) for seq_id, done in order if done >= 0]
        return Plan(tuple(copies), tuple(chunks), tuple(saves), tuple(loads))

    def _chunk(self, seq_id: int, num_done: int, known: Sequence[int], is_unseen: bool) -> Chunk:
        text, table = self.texts[seq_id], self.tables[seq_id]
        held = Constraint("residues", tuple(known)) if seq_id == MASKED else None
        if num_done:
            token_ids = (UNTOLD if is_unseen else known[-1],)
            return Chunk(seq_id, len(text) + num_done - 1, token_ids, table, 1, constraint=held)
        start = {FORK: len(self.texts[FIRST]), LOADED: self.num_full * self.size}.get(seq_id, 0)
        return Chunk(seq_id, start, text[start:], table, 1, constraint=held)

    def stateless(self, answers: dict[int, list[int]]) -> dict[int, list[int]]:
        """Each verified in one chunk, from nothing."""
        return {seq_id: list(self._verified(seq_id, tuple(answer))) for seq_id, answer in answers.items()}

    def _verified(self, seq_id: int, answer: Ids) -> Ids:
        ids = (*self.texts[seq_id], *answer[:-1])
        table = tuple(range(-(-len(ids) // self.size)))
        kv = KVCache(self.subject.loaded.layout(self.size), len(table), self.subject.loaded.device, is_kept=False)
        rows = [mask(answer[:i], self.subject.loaded.vocab_size) for i in range(len(answer))]
        with torch.inference_mode():
            return self.subject.exact.run(kv, [Chunk(0, 0, ids, table, len(answer))],
                                          (lambda: rows) if seq_id == MASKED else None)[0]


def mask(answer_ids: Sequence[int], vocab_size: int) -> np.ndarray:
    """Other tokens after every token of an answer."""
    allowed = np.arange(-(-vocab_size // 32) * 32) % RESIDUES == sum(answer_ids) % RESIDUES
    return np.packbits(allowed, bitorder="little").view(np.uint32)


def make_runner(subject: Subject, kv: KVCache) -> ModelRunner:
    """On a CPU with the GPU's forward, too, by the references of the kernels."""
    def masks(chunks: Sequence[Chunk]) -> list[np.ndarray | None]:
        vocab_size = subject.loaded.vocab_size
        return [mask(chunk.constraint.answer_ids, vocab_size) if chunk.constraint else None for chunk in chunks]

    def choose(loaded: Any, block_size: int, _: int) -> tuple[Any, bool]:
        with torch.inference_mode():
            return gpu_forward(loaded, block_size), True

    constrainer: Any = SimpleNamespace(masks=masks, forced=lambda *_: (), prepare=lambda: None)
    chosen = runners.choose_forward
    if subject.loaded.device.type == "cpu":
        runners.choose_forward = choose
    try:
        return ModelRunner(subject.loaded, kv, constrainer=constrainer)
    finally:
        runners.choose_forward = chosen
