"""How long does the device wait for the host between two steps? No GPU is needed.

The real loop, over a log in memory, with the prompts and packing of a step on a GPU (bench_gpu_host.py), and a device
that takes `--step-ms` for every step and says 7 as the next token. A transaction takes `--commit-ms`.

    read      64 sessions, records without end
    answers   64 sessions with a standing question, of which a record comes whenever the one before it is answered:
              eight tokens, nothing to guess from
    one       one session, likewise

    waits_ms      the device had nothing to do between two steps that followed each other, the median
    idle_share    of the time from the first step to the last
    after_ms      an answer is there so long after the record, less the steps that it takes; p50
"""

import argparse
import itertools
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

from bench_gpu_host import runner as packing_runner
from bench_market import Questions
from memory_kafka import MemoryKafka
from telling import last_line, show

from streamproc.config import Config, Engine, Worker
from streamproc.engine.build import build_engine
from streamproc.engine.runner import Landed, ModelFlight
from streamproc.messages import Query
from streamproc.ports import Clock
from streamproc.processor import StreamProcessor, collect_rarely
from streamproc.records import Trade
from streamproc.schedule.plan import Plan, verified
from streamproc.state.partition import Recovery

TOKEN, NUM_BLOCKS, WARM, ANSWER = 7, 40_000, 20, 8


class Device:
    """Carries out one plan after the other; each is packed as for a GPU, in a thread that does nothing else."""

    block_size, block_bytes, num_blocks = 16, 16, NUM_BLOCKS

    def __init__(self, step_s: float) -> None:
        self.step_s = step_s
        self.packing = packing_runner(NUM_BLOCKS)
        self.queue: Queue[tuple[float, Plan, Future[Landed]]] = Queue()
        self.spans: list[tuple[float, float]] = []
        self.packer = ThreadPoolExecutor(1)
        threading.Thread(target=self._work, daemon=True).start()

    def launch(self, plan: Plan) -> ModelFlight:
        future: Future[Landed] = Future()
        self.packer.submit(self._pack, plan, future)
        return ModelFlight(future)

    def _pack(self, plan: Plan, future: "Future[Landed]") -> None:
        if plan.chunks:
            self.packing.forward.best(self.packing.kv, plan.chunks)
        self.queue.put((time.perf_counter(), plan, future))

    def _work(self) -> None:
        free_at = 0.0
        while True:
            launched_at, plan, future = self.queue.get()
            if plan.chunks:
                started = max(launched_at, free_at)
                free_at = started + self.step_s
                self.spans.append((started, free_at))
                time.sleep(max(free_at - time.perf_counter(), 0))
            sampling = [chunk for chunk in plan.chunks if chunk.num_samples]
            sampled = {chunk.seq_id: verified(chunk.draft, (TOKEN,) * chunk.num_samples) for chunk in sampling}
            future.set_result(Landed(sampled, {}, self.step_s))


class SlowKafka(MemoryKafka):
    """Whose transactions take their time."""

    commit_s = 0.0

    def commit(self, *_: Any) -> None:
        time.sleep(self.commit_s)


class Bench:
    """One loop for each measurement."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        shape = Engine(model="random-tiny", context_tokens=4_096, step_ms=max(2 * given.step_ms, 20))
        self.config = Config(engine=shape, worker=Worker(slot="bench"))
        self.engine = build_engine(self.config)

    def start(self, queries: list[Query]) -> tuple[StreamProcessor, SlowKafka, Device]:
        device = Device(self.given.step_ms / 1e3)
        kafka = SlowKafka(self.config.topics)
        kafka.commit_s = self.given.commit_ms / 1e3
        engine: Any = SimpleNamespace(runner=device, renderer=self.engine.renderer, why_not=self.engine.why_not,
                                      fingerprint="device", model="device")  # fmt: skip
        processor = StreamProcessor(self.config, engine, kafka, Questions(self.config, queries), Clock())
        processor.scheduler.speculation.is_on = False
        processor.connect(kafka)
        processor.assigned({0: Recovery(0, 0, {}, asks_from=0)})
        return processor, kafka, device

    def read(self) -> dict[str, Any]:
        """Records without end: as many as the loop takes."""
        processor, kafka, device = self.start([])
        source = records(64)
        while len(device.spans) < self.given.steps:
            if processor.workload.num_behind < 20_000:
                for _ in range(max(1_000 - len(kafka.waiting), 0)):
                    kafka.add(next(source))
            processor.step()
        processor.land()
        return {"what": "read", **self.told(device)}

    def answers(self, name: str, num_sessions: int) -> dict[str, Any]:
        query = Query("q", "how is {last}?", every=1, max_tokens=ANSWER, stop=())
        processor, kafka, device = self.start([query])
        source, waits, counted = records(num_sessions), [], 0
        while len(device.spans) < self.given.steps:
            for _ in range(num_sessions):
                kafka.add(next(source))
            first, started = len(device.spans), time.perf_counter()
            counted += num_sessions
            while processor.counters.flash_answers < counted:
                processor.step()
            num_steps = len(device.spans) - first
            waits.append(time.perf_counter() - started - num_steps * device.step_s)
        return {"what": name, **self.told(device), "after_ms": statistics.median(waits[2:]) * 1e3}

    @staticmethod
    def told(device: Device) -> dict[str, Any]:
        spans = device.spans[WARM:]
        gaps = [start - end for (_, end), (start, _) in itertools.pairwise(spans)]
        busy = sum(end - start for start, end in spans)
        return {"steps": len(spans), "waits_ms": statistics.median(gaps) * 1e3,
                "waits_ms_p90": sorted(gaps)[int(0.9 * len(gaps))] * 1e3,
                "idle_share": 1 - busy / (spans[-1][1] - spans[0][0])}  # fmt: skip


def records(num_sessions: int) -> Iterator[Trade]:
    for number in itertools.count():
        yield Trade(f"S{number % num_sessions}", number, f"{100 + number % 7}.5", f"{1 + number % 5}")


def main() -> None:
    collect_rarely()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step-ms", type=float, default=8.0)
    parser.add_argument("--commit-ms", type=float, default=6.0)
    parser.add_argument("--steps", type=int, default=400, help="in each measurement")
    given = parser.parse_args()
    bench = Bench(given)
    rows = [bench.read(), bench.answers("answers", 64), bench.answers("one", 1)]
    bench.engine.close()
    show([{"after_ms": 0.0, **row} for row in rows])
    last_line({"benchmark": "turnaround", "step_ms": given.step_ms, "commit_ms": given.commit_ms, "rows": rows})


if __name__ == "__main__":
    main()
