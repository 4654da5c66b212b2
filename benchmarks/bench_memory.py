"""Does a worker's memory stay the same under load that goes on? The built-in model, the real loop, no Kafka.

32 sessions, 8 standing questions each, due every 4 records, as fast as they are computed; contexts fill and hop.
Resident memory is read every ten seconds.

    rss_mb        at the first reading after every session has hopped twice, and at the last
    growth_mb     between the two
    free_blocks   of the KV pool once everything is answered and every session let go: all of them, or some have leaked
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

from bench_market import MemoryKafka, Questions, until_idle
from common import last_line, show

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


def has_hopped_twice(processor: StreamProcessor, context_tokens: int) -> bool:
    sessions = processor.partitions[0].sessions.values()
    return all(session.current.records_before > 2 * context_tokens // 16 for session in sessions)


def main() -> None:
    collect_rarely()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--model", default="market-tiny")
    given = parser.parse_args()
    config = Config(engine=Engine(model=given.model, device="cpu"), worker=Worker(slot="bench"))
    engine = build_engine(config)
    kafka = MemoryKafka(config.topics)
    processor = StreamProcessor(config, engine, kafka, Questions(config, queries()), Clock())
    processor.connect(kafka)
    processor.assigned({0: Recovery(0, 0, {}, asks_from=0)})
    source, started, rows = records(), time.monotonic(), []
    while time.monotonic() - started < given.seconds:
        if len(kafka.waiting) < SESSIONS and processor.workload.num_waiting < config.worker.backlog_tokens // 2:
            for _ in range(SESSIONS):
                kafka.add(next(source))
        processor.step()
        if time.monotonic() - started > READ_EVERY_S * (len(rows) + 1):
            rows.append({"seconds": READ_EVERY_S * (len(rows) + 1), "rss_mb": rss_mb(),
                         "records": processor.counters.records, "answers": processor.counters.flash_answers,
                         "settled": has_hopped_twice(processor, config.engine.context_tokens)})  # fmt: skip
    until_idle(processor, kafka)
    processor.commit()
    settled = [row["rss_mb"] for row in rows if row["settled"]] or [rss_mb()]
    show(rows[:: max(1, len(rows) // 20)])
    processor.lost([0])
    last_line({"seconds": given.seconds, "records": processor.counters.records, "model": given.model,
               "answers": processor.counters.flash_answers, "rss_mb": [settled[0], settled[-1]],
               "growth_mb": settled[-1] - settled[0], "free_blocks": processor.pool.num_free,
               "blocks": processor.pool.num_blocks})  # fmt: skip
    engine.close()


if __name__ == "__main__":
    main()
