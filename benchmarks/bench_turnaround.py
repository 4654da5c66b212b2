"""How long does the device wait for the host between two steps? No GPU is needed.

The real loop over a log in memory, and the real runner with the packing of a step for a GPU (bench_gpu_host.py), on a
device that takes `--step-ms` for every step and says 7 as the next token. A transaction takes `--commit-ms`.

    read      64 sessions, records without end
    answers   64 sessions with a standing question, of which a record comes whenever the one before it is answered:
              eight tokens, nothing to guess from
    typed     as answers, numbers: each token is held to a mask, which is made while the layers are computed
    one       one session, likewise
    short     one session, whose answers end after three tokens, which nobody knows before

    waits_ms      the device had nothing to do between two steps that followed each other, the median
    idle_share    of the time from the first step to the last
    answer_ms     an answer is there so long after the record, p50
    after_ms      the same, less the steps since then
"""

import argparse
import itertools
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

from bench_gpu_host import RESULTS, Idle
from bench_gpu_host import runner as packing_runner
from bench_market import Questions
from memory_kafka import MemoryKafka
from telling import last_line, show

from streamproc.answertypes import AnswerType
from streamproc.config import Config, Engine, Worker
from streamproc.engine.build import build_engine
from streamproc.engine.masks import Masks, Rows, unpacked
from streamproc.engine.transfers import Transfers
from streamproc.messages import Query
from streamproc.ports import Clock
from streamproc.processor import StreamProcessor, collect_rarely
from streamproc.records import Trade
from streamproc.schedule.plan import Chunk, verify
from streamproc.state.partition import Recovery

SAID, NUM_BLOCKS, WARM, ANSWER = "7", 40_000, 20, 8


class Timed(Idle):
    """A device that takes `step_s` for every step, one after the other; it says SAID, where a type allows it."""

    step_s = free_at = begun_at = 0.0
    said, end_id, ends_after = 0, 0, 10**9
    rows: Rows

    def begin(self, kv: Any, chunks: Sequence[Chunk], masks: Masks | None = None, copies: Any = ()) -> Any:
        """Packed as for a GPU; the step begins once it is, and ends no earlier than its masks are there."""
        self.begun_at, self.rows = 0.0, []
        self._launch(kv, chunks, masks and partial(self._note, masks), copies)
        started = max(self.begun_at or time.perf_counter(), self.free_at)
        self.free_at = ends_at = max(started + self.step_s, time.perf_counter())
        self.spans.append((started, ends_at))
        for chunk in chunks:
            self.counts[chunk.seq_id] += chunk.num_samples
        sampled = [chunk for chunk in chunks for _ in range(chunk.num_samples)]
        tokens = [self.end_id if self.counts[chunk.seq_id] == self.ends_after else self._choice(i)
                  for i, chunk in enumerate(sampled)]  # fmt: skip

        def wait(*_: Any) -> Any:
            time.sleep(max(ends_at - time.perf_counter(), 0))
            return verify(chunks, iter(tokens))

        return wait

    def _note(self, masks: Masks) -> Rows:
        self.begun_at = time.perf_counter()     # the layers are on the device
        self.rows = masks()
        return self.rows

    def _choice(self, sample: int) -> int:
        row = self.rows[sample] if self.rows else None
        if row is None or row[self.said // 32] >> self.said % 32 & 1:
            return self.said
        return int(unpacked(row, 32 * len(row)).nonzero()[0][0])

    def _choose(self, *_: Any) -> Any:
        return RESULTS[1]


def timed_runner(step_s: float, engine: Any) -> Any:
    """The engine's own runner, whose model is a `Timed`."""
    runner = packing_runner(NUM_BLOCKS)
    idle: Any = runner.forward
    forward: Any = Timed(runner.loaded, idle.program, idle.ops)
    idle.ops.copy_blocks = lambda *_: None
    forward._staging, forward._graphs, forward.spans = idle._staging, idle._graphs, []
    forward.counts, forward.end_id = Counter(), min(engine.renderer.eos_ids)
    forward.step_s, forward.said = step_s, engine.renderer.prompt_ids(SAID)[-1]
    runner.loaded.eos_ids = engine.renderer.eos_ids
    runner.forward, runner.constrainer = forward, engine.runner.constrainer
    runner._transfers = Transfers(runner.kv)
    runner._pool, runner._landing, runner._saving, runner._masks = (ThreadPoolExecutor(1) for _ in range(4))
    runner._landed_at, runner._newest, runner._followers = 0.0, None, None
    return runner


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

    def start(self, queries: list[Query]) -> tuple[StreamProcessor, SlowKafka, Timed]:
        runner = timed_runner(self.given.step_ms / 1e3, self.engine)
        kafka = SlowKafka(self.config.topics)
        kafka.commit_s = self.given.commit_ms / 1e3
        engine: Any = SimpleNamespace(runner=runner, renderer=self.engine.renderer, why_not=self.engine.why_not,
                                      fingerprint="device", model="device")  # fmt: skip
        processor = StreamProcessor(self.config, engine, kafka, Questions(self.config, queries), Clock())
        processor.scheduler.speculation.is_on = False
        processor.connect(kafka)
        processor.assigned({0: Recovery(0, 0, {}, asks_from=0)})
        return processor, kafka, runner.forward

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

    def answers(self, name: str, num_sessions: int, kind: str = "text", ends_after: int = 10**9) -> dict[str, Any]:
        most = min(ANSWER, 8 * ends_after)
        query = Query("q", "how is {last}?", every=1, answer=AnswerType(kind), max_tokens=most, stop=())
        processor, kafka, device = self.start([query])
        device.ends_after = ends_after
        source, waits, whole, counted = records(num_sessions), [], [], 0
        while len(device.spans) < self.given.steps:
            for _ in range(num_sessions):
                kafka.add(next(source))
            first, started = len(device.spans), time.perf_counter()
            counted += num_sessions
            while processor.counters.flash_answers < counted:
                processor.step()
            whole.append(time.perf_counter() - started)
            waits.append(whole[-1] - (len(device.spans) - first) * device.step_s)
        return {"what": name, **self.told(device), "answer_ms": statistics.median(whole[2:]) * 1e3,
                "after_ms": statistics.median(waits[2:]) * 1e3}  # fmt: skip

    @staticmethod
    def told(device: Timed) -> dict[str, Any]:
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
    rows = [bench.read(), bench.answers("answers", 64),
            bench.answers("typed", 64, "number"), bench.answers("one", 1),
            bench.answers("short", 1, ends_after=3)]
    bench.engine.close()
    show([{"answer_ms": 0.0, "after_ms": 0.0, **row} for row in rows])
    last_line({"benchmark": "turnaround", "step_ms": given.step_ms, "commit_ms": given.commit_ms, "rows": rows})


if __name__ == "__main__":
    main()
