"""A program of several processes that share tiny models over gloo, on the CPU.

    python ranks_world.py WHAT FOLDER   with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment

Models lie in FOLDER, one in each folder there. The first process leaves what it has found in FOLDER/found.pt.
"""

import itertools
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from streamproc.config import Engine
from streamproc.engine import choice, follower, runner
from streamproc.engine.choice import gpu_forward
from streamproc.engine.flight import ModelFlight
from streamproc.engine.gpu.meeting import meet, part
from streamproc.engine.gpu.parallel import ALONE, Ranks
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.loaded import LoadedModel
from streamproc.engine.model import load_model
from streamproc.engine.runner import ModelRunner
from streamproc.errors import StreamprocError
from streamproc.schedule.plan import UNTOLD, Chunk, Constraint, Plan

NUM_BLOCKS, SIZE = 24, 16
SAVED = tuple(range(14))
NUM_STEPS = 8


def ids(seed: int, count: int) -> tuple[int, ...]:
    return tuple((seed + 37 * i * i + 11 * i) % 290 + 3 for i in range(count))


def plans(answers: list[dict[int, tuple[int, ...]]]) -> Plan | None:
    """The next plan after these answers: prefill, decode, a fork, drafts, copies; in the end all blocks are saved."""
    first, second = ids(1, 70), ids(2, 33)
    table, other = (0, 1, 2, 3, 4, 5), (6, 7, 8)
    fork = (0, 1, 2, 3, 9, 10)
    match len(answers):
        case 0:
            return Plan((), (Chunk(1, 0, first[:50], table), Chunk(2, 0, second, other, 1)))
        case 1:
            return Plan((), (Chunk(1, 50, first[50:], table, 1), Chunk(2, 33, answers[0][2][-1:], other, 1)))
        case 2:
            return Plan(((4, 9),), (Chunk(3, 70, ids(5, 9), fork, 2), Chunk(1, 70, answers[1][1][-1:], table, 1)))
        case 3:
            draft = answers[2][1][-1:] + answers[2][3][:1] + (17,)
            return Plan(((8, 11),), (Chunk(1, 71, draft, table, 3), Chunk(4, 0, ids(9, 21), (12, 13), 1)))
        case 4:
            return Plan((), (), tuple((block, bytes([block])) for block in SAVED))
    return None


def answering(step: int, known: dict[int, list[int]], is_unseen: bool) -> Plan:
    """Answers that go on in every step, one of them held to masks: from the last token that is known, or unseen from
    the one that the step before samples. A third sequence comes later, and blocks leave meanwhile.
    """
    texts = {1: ids(1, 40), 2: ids(2, 33), 3: ids(9, 21)}
    tables = {1: (0, 1, 2, 3), 2: (6, 7, 8), 3: (12, 13)}
    chunks = []
    for seq_id in (3, 1, 2) if step == 3 else (1, 2, 3):
        done, text, table = step - 2 * (seq_id == 3), texts[seq_id], tables[seq_id]
        held = Constraint("any", tuple(known[seq_id])) if seq_id == 2 else None
        if done == 0:
            chunks.append(Chunk(seq_id, 0, text, table, 1, constraint=held))
        elif done > 0:
            token_ids = (UNTOLD if is_unseen else known[seq_id][-1],)
            chunks.append(Chunk(seq_id, len(text) + done - 1, token_ids, table, 1, constraint=held))
    return Plan((), tuple(chunks), ((step % 3, bytes([step])),) if step % 2 else ())


def mask(chunk: Chunk) -> np.ndarray | None:
    """Other tokens after every one of the answer."""
    if chunk.constraint is None:
        return None
    residue = sum(chunk.constraint.answer_ids) % 9
    return np.packbits(np.arange(320) % 9 == residue, bitorder="little").view(np.uint32)


CONSTRAINER: Any = SimpleNamespace(masks=lambda chunks: [mask(chunk) for chunk in chunks], forced=lambda *_: (),
                                   prepare=lambda: None)  # fmt: skip


class Found:
    """What a runner gives: answers, saved blocks, and logits of a prefill."""

    def __init__(self, leader: ModelRunner) -> None:
        self.runner = leader

    def walk(self) -> dict[str, Any]:
        answers: list[dict[int, tuple[int, ...]]] = []
        saved: dict[bytes, Any] = {}
        while plan := plans(answers):
            flight = self.runner.launch(plan)
            answers.append(flight.wait())
            saved |= flight.saved
        return {"answers": answers, "saved": {name: torch.from_numpy(data) for name, data in saved.items()},
                "exact": self.runner.exact, "block_bytes": self.runner.block_bytes, "again": self.round_trip(saved),
                "fingerprint": self.runner.fingerprint}  # fmt: skip

    def answer(self, num_out: int) -> dict[str, Any]:
        """With so many plans out; with two, each goes on from the one before it unseen."""
        self.runner.constrainer = CONSTRAINER
        known: dict[int, list[int]] = {1: [], 2: [], 3: []}
        saved: dict[bytes, Any] = {}
        flights: deque[ModelFlight] = deque()

        def land() -> None:
            flight = flights.popleft()
            for seq_id, tokens in flight.wait().items():
                known[seq_id] += tokens
            saved.update(flight.saved)

        for step in range(NUM_STEPS):
            flights.append(self.runner.launch(answering(step, known, num_out == 2)))
            if len(flights) == num_out:
                land()
        while flights:
            land()
        return {"known": known, "saved": {name: torch.from_numpy(data) for name, data in saved.items()}}

    def round_trip(self, saved: dict[bytes, Any]) -> bool:
        """Blocks that are loaded elsewhere are the same bytes when they are saved from there, and give the answer."""
        moved = [20, 21, 22, 23]
        loads = tuple((moved[i], memoryview(bytes(saved[bytes([i])]))) for i in range(4))
        rest = Chunk(7, 64, ids(1, 70)[64:], (20, 21, 22, 23, 19), 1)
        token = self.runner.launch(Plan((), (rest,), (), loads)).wait()[7]
        back = self.runner.launch(Plan((), (), tuple((block, bytes([block])) for block in moved)))
        back.wait()
        same = all(bytes(back.saved[bytes([20 + i])]) == bytes(saved[bytes([i])]) for i in range(4))
        plan = Chunk(8, 64, ids(1, 70)[64:], (0, 1, 2, 3, 18), 1)
        return same and self.runner.launch(Plan((), (plan,))).wait()[8] == token


def build(folder: Path, ranks: Ranks = ALONE) -> ModelRunner:
    loaded = load_model(Engine(model=str(folder), device="cpu"), ranks)
    return ModelRunner(loaded, KVCache(loaded.layout(SIZE), NUM_BLOCKS, loaded.device), 1)


def alone(folder: Path) -> ModelRunner:
    """One process with the GPU's forward, computed by the reference kernels."""
    chosen = runner.choose_forward

    def choose(loaded: LoadedModel, block_size: int, threads: int) -> tuple[Any, bool]:
        with torch.inference_mode():
            return gpu_forward(loaded, block_size), True

    runner.choose_forward = choose
    try:
        return build(folder)
    finally:
        runner.choose_forward = chosen


def best(made: ModelRunner) -> tuple[Any, Any]:
    """Greedy tokens of every prefix of a text, and their logits."""
    kv = KVCache(made.loaded.layout(SIZE), 5, made.loaded.device)
    chunk = Chunk(0, 0, ids(4, 70), (0, 1, 2, 3, 4), 70)

    def work() -> Any:
        with torch.inference_mode():
            return made.forward.best(kv, [chunk])

    return tuple(map(torch.from_numpy, made.call(work)))


def models(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def walk(folder: Path, ranks: Ranks) -> None:
    """Every model in turn."""
    found = {}
    for path in models(folder):
        made = build(path, ranks)
        tokens, logits = best(made)
        if ranks.leader:
            follower.carry_out(made, ranks.leader)
        else:
            found[path.name] = {**Found(made).walk(), "tokens": tokens, "logits": logits}
        made.close()
    if not ranks.leader:
        torch.save(found, folder / "found.pt")


def queue(folder: Path, ranks: Ranks) -> None:
    """Two plans are out at all times: process 1 does not tell of one before the next has begun there."""
    made = build(models(folder)[0], ranks)
    if not ranks.leader:
        torch.save(Found(made).answer(2), folder / "found.pt")
        made.close()
        return
    numbers, begun, report = itertools.count(), [threading.Event() for _ in range(NUM_STEPS)], follower.report_outcome
    forward, begin = made.forward, made.forward.begin

    def began(*arguments: Any) -> Any:
        begun[next(numbers)].set()
        return begin(*arguments)

    nexts = iter(begun[1:])

    def report_late(*arguments: Any) -> None:
        if not next(nexts, begun[0]).wait(20):
            print("no other plan came meanwhile", file=sys.stderr)
        report(*arguments)

    forward.begin, follower.report_outcome = began, report_late
    follower.carry_out(made, ranks.leader)
    made.close()


def forget(folder: Path, ranks: Ranks) -> None:
    """Each process in turn runs out of memory in the middle of a step, while another is out that goes on from it; then
    they go on.
    """
    made = build(models(folder)[0], ranks)
    made.constrainer = CONSTRAINER
    forward, problems = made.forward, []
    gated = forward.ops.gated
    count = [0]

    def failing(*arguments: Any) -> Any:
        count[0] += 1
        if (ranks.rank, count[0]) in ((0, 1), (1, 5)):
            raise torch.OutOfMemoryError("out of memory")
        return gated(*arguments)

    forward.ops.gated = failing
    num_forgotten, forget_graphs = [0], forward.forget_graphs

    def forgetting() -> None:
        num_forgotten[0] += 1
        forget_graphs()

    forward.forget_graphs = forgetting
    if ranks.leader:
        follower.carry_out(made, ranks.leader)
    else:
        for _ in range(2):
            flights = [made.launch(answering(step, {1: [], 2: [], 3: []}, is_unseen=True)) for step in range(2)]
            for flight in flights:
                try:
                    flight.wait()
                except StreamprocError as problem:
                    problems.append((problem.code, str(problem)))
        torch.save({"problems": problems} | Found(made).walk(), folder / "found.pt")
    made.close()
    torch.save(num_forgotten, folder / f"forgotten{ranks.rank}.pt")


def disagree(folder: Path, ranks: Ranks) -> None:
    """To the first process, the only one that looks, the model is not transformers'."""
    if not ranks.leader:
        choice.AGREEMENT = {torch.float32: -1.0}
    build(models(folder)[0], ranks)


def run_out(folder: Path, ranks: Ranks) -> None:
    """Process 1 lacks the memory for what is gathered, and still does when it is to gather zeros in its place."""
    made = build(models(folder)[0], ranks)
    if ranks.leader:
        gathered, count = ranks._gathered, itertools.count()

        def lacking(tensor: torch.Tensor) -> torch.Tensor:
            if next(count) in (2, 3):
                raise torch.OutOfMemoryError("out of memory")
            return gathered(tensor)

        ranks._gathered = lacking  # type: ignore[method-assign]
    go_on(made, ranks)


def die(folder: Path, ranks: Ranks) -> None:
    """Steps without end; process 1 is killed in the middle of one."""
    made = build(models(folder)[0], ranks)
    if ranks.rank == 1:
        count, gated = [0], made.forward.ops.gated

        def dying(*arguments: Any) -> Any:
            count[0] += 1
            if count[0] > 7:
                os._exit(77)
            return gated(*arguments)

        made.forward.ops.gated = dying
    go_on(made, ranks)


def fail(folder: Path, ranks: Ranks) -> None:
    """Process 1 meets an error that it cannot go on from."""
    made = build(models(folder)[0], ranks)
    if ranks.rank == 1:
        made.forward.windows = None
    go_on(made, ranks)


def fail_first(folder: Path, ranks: Ranks) -> None:
    """So does the first one: it has no masks for a plan that the other one computes."""
    go_on(build(models(folder)[0], ranks), ranks, lambda: answering(0, {2: []}, is_unseen=True))


def idle(folder: Path, ranks: Ranks) -> None:
    """Nothing but empty plans."""
    go_on(build(models(folder)[0], ranks), ranks, lambda: Plan((), ()))


def go_on(made: ModelRunner, ranks: Ranks, next_plan: Callable[[], Plan | None] = lambda: plans([])) -> None:
    if ranks.leader:
        follower.carry_out(made, ranks.leader)
    print("started", flush=True)
    while True:
        made.launch(next_plan()).wait()
        time.sleep(0.01)


def main() -> None:
    ranks = meet()
    try:
        globals()[sys.argv[1]](Path(sys.argv[2]), ranks)
    except StreamprocError as problem:
        print(f"streamproc: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)
    part()


if __name__ == "__main__":
    main()
