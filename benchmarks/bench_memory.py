"""Does a worker's memory stay the same under load that goes on? The real loop, no Kafka.

32 sessions, 8 standing questions each, due every 4 records, as fast as they are computed; contexts fill and hop.
Resident memory is read every ten seconds.

    rss_mb        at the first reading after every session has hopped twice, and at the last
    growth_mb     between the two
    free_blocks   of the KV pool once all is answered and all sessions let go: fewer than `blocks`, if some leak

Loads: `market`, real trades and typed questions on the built-in model; `s4`, that of bench_peers.py's S4 on the model
of 109M parameters: answers are free text, contexts hop at 1,100 tokens.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

import torch
from bench_market import Questions
from common import last_line, show
from memory_kafka import MemoryKafka, until_idle
from peers import ours, standing
from peers.subject import SHAPE, make_weights

from streamproc.config import Config, Engine, Worker
from streamproc.engine.build import build_engine
from streamproc.market.files import read_records
from streamproc.market.questions import KINDS
from streamproc.market.sample import SAMPLE, sample_path
from streamproc.messages import Query
from streamproc.ports import Clock
from streamproc.processor import StreamProcessor, collect_rarely
from streamproc.records import Record
from streamproc.state.partition import Recovery

SESSIONS, QUERIES, EVERY = 32, 8, 4
READ_EVERY_S = 10
RECORD = 13                     # tokens at least
S4_CONTEXT = 1_100              # tokens at which a session hops
MOST_WAITING = Worker().backlog_tokens // 2


@dataclass(frozen=True, slots=True)
class Load:
    """A worker, and `add`: the next record of every session."""

    processor: StreamProcessor
    kafka: MemoryKafka
    add: Callable[[], None]


def records() -> Iterator[Record]:
    """Real trades without end, under the sessions' symbols in turn."""
    recorded = list(read_records(sample_path(SAMPLE[0])))
    symbols = [f"SYM{i}USD" for i in range(SESSIONS)]
    for record, sym in zip(itertools.cycle(recorded), itertools.cycle(symbols), strict=False):
        yield record._replace(sym=sym)


def queries() -> list[Query]:
    kinds = itertools.cycle(kind for kind in KINDS.values() if not kind.is_about_quotes)
    return [Query(f"q{i}", kind.question(level="39430.5"), "*", every=EVERY, answer=kind.answer, max_tokens=12)
            for i, kind in zip(range(QUERIES), kinds, strict=False)]  # fmt: skip


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def has_hopped_twice(processor: StreamProcessor) -> bool:
    shape = processor.shape
    num_dropped = 2 * (shape.context_tokens - shape.keep_tokens) // RECORD
    return all(session.current.records_before >= num_dropped for session in processor.partitions[0].sessions.values())


def market() -> Load:
    config = Config(engine=Engine(device="cpu"), worker=Worker(slot="bench"))
    kafka = MemoryKafka(config.topics)
    processor = StreamProcessor(config, build_engine(config), kafka, Questions(config, queries()), Clock())
    processor.connect(kafka)
    processor.assigned({0: Recovery(0, 0, {}, asks_from=0)})
    source = records()

    def add() -> None:
        for _ in range(SESSIONS):
            kafka.add(next(source))

    return Load(processor, kafka, add)


def s4() -> Load:
    stream = standing.Stream(SESSIONS, QUERIES, EVERY, hops_at=S4_CONTEXT)
    with tempfile.TemporaryDirectory(prefix="streamproc-bench-") as folder:
        loaded = ours.load(SHAPE, make_weights(SHAPE, 1.0), Path(folder))
    loop = standing.start(loaded, stream, torch.get_num_threads(), S4_CONTEXT, 512)

    def add() -> None:
        loop.kafka.answers.clear()      # it keeps them
        for session in range(SESSIONS):
            loop.give(session, 1)

    return Load(loop.processor, loop.kafka, add)


LOADS = {"market": market, "s4": s4}


def main() -> None:
    collect_rarely()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--load", choices=LOADS, default="market")
    given = parser.parse_args()
    load = LOADS[given.load]()
    processor, kafka = load.processor, load.kafka
    started, rows = time.monotonic(), []
    while time.monotonic() - started < given.seconds:
        if len(kafka.waiting) < SESSIONS and processor.workload.num_waiting < MOST_WAITING:
            load.add()
        processor.step()
        if time.monotonic() - started > READ_EVERY_S * (len(rows) + 1):
            rows.append({"seconds": READ_EVERY_S * (len(rows) + 1), "rss_mb": rss_mb(),
                         "records": processor.counters.records, "answers": processor.counters.flash_answers,
                         "settled": has_hopped_twice(processor)})  # fmt: skip
    until_idle(processor, kafka)
    processor.commit()
    settled = [row for row in rows if row["settled"]] or rows[-1:]
    show(rows[:: max(1, len(rows) // 20)])
    processor.lost([0])
    last_line({"load": given.load, "seconds": given.seconds,
               "settled_seconds": settled[-1]["seconds"] - settled[0]["seconds"], "records": processor.counters.records,
               "answers": processor.counters.flash_answers, "rss_mb": [settled[0]["rss_mb"], settled[-1]["rss_mb"]],
               "growth_mb": settled[-1]["rss_mb"] - settled[0]["rss_mb"], "free_blocks": processor.pool.num_free,
               "blocks": processor.pool.num_blocks})  # fmt: skip
    processor.close()


if __name__ == "__main__":
    main()
