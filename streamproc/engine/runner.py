"""Carries out plans on a loaded model, in a thread of its own: torch computes while the loop goes on.

    launch(plan)    moves blocks out, in and about, then one forward over the packed chunks, which writes their cells
    wait()          the greedy tokens of every chunk that samples; masks of constrained ones are made meanwhile

A plan that is launched while one is out comes after it, with the tokens that the one before it samples. On a GPU it is
packed and put into the device's queue meanwhile, in all processes of a model: the device goes from one to the other
without the host.

The runner decides nothing: it reads and writes exactly the cells that a plan names.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from streamproc.engine.batch import check_chunks, window_unit
from streamproc.engine.choice import choose_forward
from streamproc.engine.flight import Begun, Landed, ModelFlight, Moment, told_after
from streamproc.engine.forward import computing, run_step
from streamproc.engine.gpu.forward import GpuForward
from streamproc.engine.gpu.links import Anew, merged
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.lanes import split
from streamproc.engine.loaded import LoadedModel
from streamproc.engine.masks import Masks
from streamproc.engine.transfers import Saved, Transfers
from streamproc.schedule.plan import STUCK, Chunk, Plan, told

if TYPE_CHECKING:
    from streamproc.engine.constrain import Constrainer  # its library is not everywhere that models are run

T = TypeVar("T")
NOTHING = Plan((), ())


class ModelRunner:
    """Runs one plan after the other. `exact` tells whether a token's bits depend on nothing but its sequence.

    Several lanes share a step: each computes a part of its chunks, with a thread of its own. Since a row's bits do not
    depend on its company, it makes no difference which lane computes it; for a small model lanes are faster than
    threads inside every operation.
    """

    def __init__(self, loaded: LoadedModel, kv: KVCache, threads: int = 1, lanes: int = 1,
                 constrainer: "Constrainer | None" = None) -> None:
        """Measures what is exact here, with the threads that each lane will use. No constrainer: no constraints."""
        self.loaded = loaded
        self.kv = kv
        self.constrainer = constrainer
        self._transfers = Transfers(kv)
        self._masks = ThreadPoolExecutor(1, "streamproc-masks")
        if constrainer:
            self._masks.submit(constrainer.prepare)
        self._followers = loaded.ranks.followers
        self._pool = ThreadPoolExecutor(1, "streamproc-engine", settle_thread, (threads, loaded.device))
        self._landing, self._saving = (ThreadPoolExecutor(1, name, settle_thread, (1, loaded.device))
                                       for name in ("streamproc-landing", "streamproc-saving"))
        self._landed_at = 0.0
        self._sampled: dict[int, tuple[int, ...]] = {}      # by the newest plan, where one ends before the next begins
        self._newest: Future[Landed] | None = None          # where it does not
        self._has_failed = False
        self._helpers = [ThreadPoolExecutor(1, "streamproc-lane", torch.set_num_threads, (threads,))
                         for _ in range(lanes - 1)]  # fmt: skip
        self.forward, self.exact = self.call(lambda: choose_forward(loaded, kv.layout.block_size, threads))
        if not self.exact and self._helpers:    # rows may depend on their company: all threads work on one part
            self.close_lanes()
            self.call(lambda: torch.set_num_threads(threads * lanes))
        self.fingerprint = self.call(self._fingerprint)

    @property
    def num_lanes(self) -> int:
        return len(self._helpers) + 1

    @property
    def num_blocks(self) -> int:
        return self.kv.num_blocks

    @property
    def block_size(self) -> int:
        return self.kv.layout.block_size

    @property
    def block_bytes(self) -> int:
        return self.kv.layout.block_bytes * self.loaded.ranks.size

    @property
    def eos_ids(self) -> frozenset[int]:
        return self.loaded.eos_ids

    @property
    def device(self) -> str:
        return str(self.loaded.device.type)

    @property
    def vocab_size(self) -> int:
        return self.loaded.vocab_size

    def launch(self, plan: Plan) -> ModelFlight:
        """Start a step and return at once."""
        if not isinstance(self.forward, GpuForward):
            return ModelFlight(self._submit(self._timed, plan))
        before = self._newest
        begun = self._pool.submit(self._begin, plan, self.forward, before)
        landing = self._newest = self._guarded(self._landing.submit(self._land, plan, begun, before))
        saving = self._guarded(self._saving.submit(self._save, begun, landing)) if plan.saves else None
        return ModelFlight(landing, saving)

    def _begin(self, plan: Plan, forward: GpuForward, before: "Future[Landed] | None") -> "Begun":
        """Put it on the device, behind the one that may be there; in all processes. Masks are made once that one has
        landed, while the layers are computed.
        """
        started = time.perf_counter()
        if self._followers and plan != NOTHING:
            if self._has_failed:
                self._has_failed = False
                self._followers.tell(Anew())
                forward.forget_graphs()
            plan = self._followers.start(plan, self.kv.layout)
        try:
            check_chunks(plan.chunks, self.kv)
            saved = self._transfers.begin(plan)
        except Exception:       # raised to whoever waits: what comes behind must not go on from an older step
            forward.forget_samples()
            raise
        with computing(forward, plan):
            if plan.chunks:
                masks, queued = self._masks_of(plan, before), Moment()
                sampled = forward.begin(self.kv, plan.chunks, masks and queued.before(masks), plan.copies)
                return Begun(started, queued.at or time.perf_counter(), sampled, saved)
            self.kv.copy(plan.copies)
            return Begun(started, time.perf_counter(), lambda _: {}, saved)

    def _land(self, plan: Plan, begun: "Future[Begun]", before: "Future[Landed] | None") -> Landed:
        """Wait for it, in all processes."""
        try:
            with self._followers.outcome() if self._followers and plan != NOTHING else nullcontext():
                return self._landed(plan, begun.result(), before)
        except Exception:
            self._has_failed = True
            raise

    def _landed(self, plan: Plan, step: "Begun", before: "Future[Landed] | None") -> Landed:
        """Its time is that in which the device had nothing before it, without what goes out beside it."""
        sampled = step.sampled(self._ended(plan, before))
        started, self._landed_at = max(step.started, self._landed_at), time.perf_counter()
        times = self._landed_at - started, step.queued, self._landed_at
        return Landed(self._with_forced(told_after(before, plan).chunks, sampled), *times)

    def _save(self, begun: "Future[Begun]", landing: "Future[Landed]") -> Saved:
        """Wait for the blocks that a plan saves, with all their heads."""
        if not self._followers:
            return begun.result().saved()
        parts = self._followers.saved()
        landing.result()        # what has failed in any process has saved nothing
        return merged(begun.result().saved(), parts, self.kv.layout)

    def _ended(self, plan: Plan, before: "Future[Landed] | None") -> set[int]:
        """Sequences whose answer the token ends that the plan goes on from: what it computes of them is nothing."""
        going = [chunk.seq_id for chunk in plan.chunks if chunk.is_untold]
        if before is None or not going:
            return set()
        sampled, ends = before.result().sampled, (STUCK, *self.eos_ids)
        return {seq_id for seq_id in going if seq_id in sampled and sampled[seq_id][0] in ends}

    def _timed(self, plan: Plan) -> Landed:
        started = time.perf_counter()
        before, self._sampled = self._sampled, {}
        plan = told(plan, before)
        saved = self._transfers.begin(plan)
        self._sampled = self._run(plan)
        ended = time.perf_counter()
        return Landed(self._sampled, ended - started, started, ended, saved())

    def _run(self, plan: Plan) -> dict[int, tuple[int, ...]]:
        """A step, shared between the lanes; an error of any lane is the step's, raised once all have ended."""
        check_chunks(plan.chunks, self.kv)
        first, *rest = split(plan, self.num_lanes)
        if rest:    # what is copied is read by all lanes
            run_step(self.forward, self.kv, Plan(first.copies, ()))
            first = replace(first, copies=())
        parts = [helper.submit(run_step, self.forward, self.kv, part, self._masks_of(part))
                 for helper, part in zip(self._helpers, rest, strict=False)]  # fmt: skip
        try:
            sampled = run_step(self.forward, self.kv, first, self._masks_of(first))
        finally:
            if parts:
                wait(parts)
        for part in parts:
            sampled |= part.result()
        return self._with_forced(plan.chunks, sampled)

    def _masks_of(self, part: Plan, before: "Future[Landed] | None" = None) -> Masks | None:
        """Begin to make them; None where there is no constraint. before: of the plan whose tokens this one goes on from
        unseen.
        """
        if not any(chunk.constraint for chunk in part.chunks):
            return None
        if self.loaded.ranks.rank:      # the first process chooses; the others only do the same work
            return lambda: [None] * sum(chunk.num_samples for chunk in part.chunks)
        assert self.constrainer, "a runner without a constrainer"
        make = self.constrainer.masks
        return self._masks.submit(lambda: make(told_after(before, part).chunks)).result

    def _with_forced(self, chunks: Sequence[Chunk], sampled: dict[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
        for chunk in chunks:
            if chunk.constraint and self.constrainer and chunk.num_samples:
                sampled[chunk.seq_id] += self.constrainer.forced(chunk.seq_id, chunk.constraint, sampled[chunk.seq_id])
        return sampled

    def call(self, work: Callable[[], T]) -> T:
        """Do this in the runner's thread, after the steps before it; no plan that comes next goes on from them."""
        return self._submit(work).result()

    def _submit(self, work: Callable[..., T], *arguments: Any) -> "Future[T]":
        return self._guarded(self._pool.submit(work, *arguments))

    def _guarded(self, future: "Future[T]") -> "Future[T]":
        return self._followers.guarded(future) if self._followers else future

    def forget_graphs(self) -> None:
        """Before the next plan."""
        if isinstance(self.forward, GpuForward):
            self._pool.submit(self.forward.forget_graphs)

    def close(self) -> None:
        """Let the step on its way finish and end the thread; harmless when repeated."""
        self._pool.shutdown()
        self._landing.shutdown()
        self._saving.shutdown()
        if self._followers:
            self._followers.stop()
        self.close_lanes()
        self._masks.shutdown()
        self.forward.close()

    def close_lanes(self) -> None:
        """Compute everything in one part from now on."""
        for helper in self._helpers:
            helper.shutdown()
        self._helpers = []

    def _fingerprint(self) -> str:
        """Of everything that a cell's bits depend on."""
        facts = (self.loaded.fingerprint, str(self.loaded.dtype), str(self.loaded.kv_dtype), chip(self.loaded.device),
                 str(window_unit(self.block_size)), *self.forward.facts)
        return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def settle_thread(threads: int, device: torch.device) -> None:
    """Make this thread one that computes there."""
    torch.set_num_threads(threads)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def chip(device: torch.device) -> str:
    """What decides which kernels run: the kind of GPU, or the vector instructions of the CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} CUDA {torch.version.cuda}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
