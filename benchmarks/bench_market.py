"""How fast does the built-in market model read, and how soon is a standing question answered? On the CPU, no Kafka.

The real loop over a log in memory. Real trades of the sample under 16 symbols, each a session of its own.

    records_per_s         trades read, rendered, tokenised and computed; contexts as in the settings, full and hopping,
                          so what a new generation computes again counts as time and not as records
    flash_answer_ms_p50   from the moment a record is there to its answer: the record's tokens, the question's, and the
                          answer's, one after another; over all kinds of questions about trades in turn, at rest
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

from memory_kafka import MemoryKafka, until_idle
from telling import last_line, show

from streamproc.config import Config, Engine, Worker
from streamproc.engine.build import build_engine
from streamproc.market.files import read_records
from streamproc.market.questions import KINDS
from streamproc.market.sample import SAMPLE, sample_path
from streamproc.messages import Query
from streamproc.ports import Clock
from streamproc.processor import StreamProcessor, collect_rarely
from streamproc.records import Record
from streamproc.state.epoch import Message
from streamproc.state.partition import Recovery

BASES = ("BTC", "ETH", "SOL", "XRP", "ADA", "DOGE", "LTC", "BNB")
SYMBOLS = tuple(base + money for base in BASES for money in ("USDT", "EUR"))
PORTION = 4 * len(SYMBOLS)      # records given at once
AHEAD_TOKENS = 1_024            # waiting for the engine at most, when more are given
LEVEL = "39430.5"


class Questions:
    """A control topic that says all it has at the first poll."""

    def __init__(self, config: Config, queries: list[Query]) -> None:
        self.messages = [Message(config.topics.control, 0, i, query.id.encode(), query.encode(), 0)
                         for i, query in enumerate(queries)]  # fmt: skip

    def poll(self) -> list[Message]:
        messages, self.messages = self.messages, []
        return messages


def trades() -> Iterator[Record]:
    """Real trades without end, under the 16 symbols in turn."""
    recorded = list(read_records(sample_path(SAMPLE[0])))
    for record, sym in zip(itertools.cycle(recorded), itertools.cycle(SYMBOLS), strict=False):
        yield record._replace(sym=sym)


def questions() -> list[Query]:
    """Each kind about trades, of one symbol each, answered whenever there is time."""
    kinds = [kind for kind in KINDS.values() if not kind.is_about_quotes]
    return [Query(f"{kind.name}.{sym}", kind.question(level=LEVEL), sym, answer=kind.answer, max_tokens=12)
            for sym, kind in zip(SYMBOLS, itertools.cycle(kinds), strict=False)]  # fmt: skip


def start(config: Config, engine: Any, queries: list[Query]) -> tuple[StreamProcessor, MemoryKafka]:
    kafka = MemoryKafka(config.topics)
    processor = StreamProcessor(config, engine, kafka, Questions(config, queries), Clock())
    processor.connect(kafka)
    processor.assigned({0: Recovery(0, 0, {}, asks_from=0)})
    return processor, kafka


def feed(processor: StreamProcessor, kafka: MemoryKafka, source: Iterator[Record], count: int) -> None:
    """Give `count` records as fast as they are computed: no session falls far behind, as on a live feed."""
    given = 0
    while given < count:
        if processor.workload.num_behind < AHEAD_TOKENS and not kafka.waiting:
            for _ in range(min(PORTION, count - given)):
                kafka.add(next(source))
                given += 1
        processor.step()
    until_idle(processor, kafka)


def ingest(config: Config, engine: Any, count: int) -> dict[str, Any]:
    """Fill every context until it has hopped, then count `count` records more."""
    processor, kafka = start(config, engine, [])
    source = trades()
    feed(processor, kafka, source, config.engine.context_tokens // 12 * len(SYMBOLS))
    tokens, started = processor.counters.tokens, time.perf_counter()
    feed(processor, kafka, source, count)
    seconds = time.perf_counter() - started
    tokens = processor.counters.tokens - tokens
    sessions = processor.partitions[0].sessions.values()
    return {"records": count, "records_per_s": count / seconds, "tokens_per_record": tokens / count,
            "tokens_per_s": tokens / seconds,
            "sessions_that_had_hopped": sum(session.current.records_before > 0 for session in sessions)}  # fmt: skip


def flash(config: Config, engine: Any, count: int) -> list[float]:
    """Milliseconds of `count` answers, one at a time."""
    processor, kafka = start(config, engine, questions())
    source = trades()
    for _ in range(40 * len(SYMBOLS)):
        kafka.add(next(source))
    until_idle(processor, kafka)
    found = []
    for _ in range(count):
        kafka.add(next(source))
        wanted, started = processor.counters.flash_answers + 1, time.perf_counter()
        while processor.counters.flash_answers < wanted:
            processor.step()
        found.append((time.perf_counter() - started) * 1e3)
    return found


def main() -> None:
    collect_rarely()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="market-tiny")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--records", type=int, default=5_000, help="records in one run")
    parser.add_argument("--answers", type=int, default=200, help="answers in one run")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    config = Config(engine=Engine(model=given.model, dtype=given.dtype, device="cpu"), worker=Worker(slot="bench"))
    engine = build_engine(config)
    runs = []
    for _ in range(given.runs):
        run = ingest(config, engine, given.records)
        times = flash(config, engine, given.answers)
        runs.append({**run, "flash_answer_ms_p50": statistics.median(times),
                     "flash_answer_ms_p95": sorted(times)[int(len(times) * 0.95)]})  # fmt: skip
    show(runs)
    middle = sorted(runs, key=lambda run: run["records_per_s"])[len(runs) // 2]
    p50 = statistics.median(run["flash_answer_ms_p50"] for run in runs)
    last_line({**middle, "flash_answer_ms_p50": p50, "model": given.model, "dtype": str(engine.loaded.dtype),
               "exact": engine.runner.exact, "context_tokens": config.engine.context_tokens})  # fmt: skip
    engine.close()


if __name__ == "__main__":
    main()
