"""A worker on the fake model, as a process of its own that can be killed, frozen and made to fail:

    python -P -m harness.worker streamproc.toml status.jsonl '{"throw_after": 200}'

It says how it is twice a second, in the status file. How it ends: 0 after a signal to stop; 3 with one line for an
error that is meant for people; 70 for a failure that it was told to have; 1 with a traceback for anything else.
"""

import faulthandler
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes import FakeEngine, FakeFlight, FakeRenderer, FakeRunner

from streamproc.config import Config
from streamproc.errors import OutOfMemory, StreamprocError
from streamproc.kafka.control import ControlTopic
from streamproc.kafka.epoch import EpochSink, transactional_id
from streamproc.kafka.properties import client_properties
from streamproc.kafka.source import Source
from streamproc.keeper import make_keeper
from streamproc.ports import Clock
from streamproc.processor import StreamProcessor, collect_rarely
from streamproc.schedule.plan import Plan
from streamproc.settings import load_config

STATUS_S = 0.5
CHECK_EVERY = 50  # turns of the loop: the check walks all blocks
SAID, THROWN = 3, 70


MORTAL = 4  # one life of so many may end while it restores
MOST_BEHIND = 1  # steps that come to nothing with one that fails


class Thrown(Exception):
    """A failure that was ordered."""


@dataclass(frozen=True)
class Orders:
    """Failures that the worker is told to have."""

    throw_after: int = 0  # records, from half to twice as many: always at the same one would be poison; 0: never.
    # Records that are read again count in one life of MORTAL alone: who dies whenever it restores never gets anywhere.
    oom_share: float = 0.0  # of the steps that compute something
    seed: int = 0
    num_blocks: int = 6_000


class SpoiltRunner(FakeRunner):
    """The fake model on a device whose memory runs out now and then; steps are out for a while, so that others come
    behind them.
    """

    def __init__(self, orders: Orders, block_size: int) -> None:
        super().__init__(orders.num_blocks, block_size)
        self._rng = random.Random(orders.seed)
        self._share = orders.oom_share
        self._num_fine = 0

    def launch(self, plan: Plan) -> FakeFlight:
        return SpoiltFlight(self, plan, self._rng.choice((0, 0, 1, 3)) if plan.chunks else 0)

    def is_out_of_memory(self) -> bool:
        """Never twice in a row, whatever was behind the first: that is an end of its own."""
        self._num_fine = 0 if self._num_fine > MOST_BEHIND and self._rng.random() < self._share else self._num_fine + 1
        return not self._num_fine


class SpoiltFlight(FakeFlight):
    def wait(self) -> dict[int, tuple[int, ...]]:
        assert isinstance(self.runner, SpoiltRunner)
        if self.plan.chunks and self.runner.is_out_of_memory():
            self.runner.sampled = {}
            self.runner.cells = [0 if cell is None else cell for cell in self.runner.cells]  # what is behind reads them
            raise OutOfMemory("ordered")
        return super().wait()


def run(config: Config, status: Path, orders: Orders) -> None:
    """Until a signal to stop comes."""
    faulthandler.register(signal.SIGUSR1)  # where it hangs, into its log
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stopped.append(number))
    collect_rarely()
    engine = FakeEngine(SpoiltRunner(orders, config.engine.block_size), FakeRenderer())
    properties = client_properties(config)
    control = ControlTopic(config)
    sink = EpochSink(properties, transactional_id(config), say)
    processor = StreamProcessor(config, engine, sink, control, Clock())
    source = Source(config, processor, say, config.worker.slot, engine.model)
    processor.connect(source, make_keeper(config, engine, say))
    with status.open("w", buffering=1) as file:
        try:
            loop(processor, lambda: bool(stopped), lambda **facts: print(json.dumps(facts), file=file), orders)
        except StreamprocError:
            processor.source.abandon()  # as the product's worker does: others need not wait for the session timeout
            raise
    control.close()


def loop(processor: StreamProcessor, is_stopped: Callable[[], bool], tell: Callable[..., Any], orders: Orders) -> None:
    """The product's own loop, with a look at its books and a word on how it goes."""
    turn, told_at = 0, 0.0
    throw_after = random.Random(orders.seed).randint(orders.throw_after // 2, orders.throw_after * 2)
    count = num_taken if orders.seed % MORTAL == 0 else num_new
    while not is_stopped():
        processor.step()
        turn += 1
        if turn % CHECK_EVERY == 0:
            processor.check()
        if throw_after and count(processor) >= throw_after:
            raise Thrown(f"after {count(processor)} records")
        if (now := time.monotonic()) - told_at >= STATUS_S:
            told_at = now
            tell(**how_it_is(processor))
    processor.close()


def num_taken(processor: StreamProcessor) -> int:
    """Records of this life, those that are read again among them."""
    return processor.counters.records


def num_new(processor: StreamProcessor) -> int:
    """Records of this life that nobody has committed before, of partitions that are still here."""
    return sum(max(each.next_offset - each.live_from, 0) for each in processor.partitions.values())


def how_it_is(processor: StreamProcessor) -> dict[str, Any]:
    done = processor.counters
    return {
        "owned": {number: partition.phase.value for number, partition in processor.partitions.items()},
        "records": done.records,
        "answers": done.flash_answers,
        "epochs": done.epochs,
        "aborted": done.aborted_epochs,
        "rss_bytes": rss_bytes(),
    }


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def say(text: str) -> None:
    print(f"{time.time():.3f} warning: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        run(load_config(file=Path(sys.argv[1])), Path(sys.argv[2]), Orders(**json.loads(sys.argv[3])))
    except StreamprocError as problem:
        print(f"{type(problem).__name__}: {problem}", file=sys.stderr)
        os._exit(SAID)
    except Thrown as problem:
        print(f"Thrown: {problem}", file=sys.stderr)
        os._exit(THROWN)  # a crash: nothing is closed, nobody is told
