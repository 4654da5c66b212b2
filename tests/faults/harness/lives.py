"""Three lives of a worker over the second half of a log: with nothing there, with the blocks of the life before, with
the snapshots of the live run.

The product's replay keeps no snapshots and lives once, so a processor stands for it that is given what a replay has,
and a keeper.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from fakes import FakeEngine, FakeRenderer, FakeRunner

from harness.paces import Again
from streamproc.config import Config
from streamproc.keeper import Keeper, make_keeper
from streamproc.messages import Answer, Head, Query
from streamproc.ports import Clock
from streamproc.processor import StreamProcessor
from streamproc.replay.run import Questions, is_idle
from streamproc.replay.sink import ReplaySink
from streamproc.schedule.plan import Plan
from streamproc.snapshots.manifest import Identity, Manifest
from streamproc.snapshots.store import open_store
from streamproc.snapshots.survey import entries
from streamproc.state.epoch import Outgoing

WHOLE_TOKENS = 1_000_000  # of a pool that forgets nothing of a run
LATER = 20  # records after a snapshot, from which on a life answers
NEVER_S = 86_400


class Gathered:
    """The output of a life: the bytes of its answers."""

    def __init__(self) -> None:
        self.values: list[bytes] = []

    def write(self, answers: Sequence[tuple[Answer, Outgoing]]) -> None:
        self.values += [message.value or b"" for _, message in answers]

    def publish(self) -> None:
        """Nobody waits for them."""

    def close(self) -> None:
        """They stay."""


class Did(NamedTuple):
    """Tokens that a runner has computed, blocks that it has copied in."""

    num_tokens: int
    num_loaded: int


class LoadingRunner(FakeRunner):
    """Counts what it is given instead of computing it."""

    num_loaded = 0

    def run(self, plan: Plan) -> dict[int, tuple[int, ...]]:
        self.num_loaded += len(plan.loads)
        return super().run(plan)

    @property
    def did(self) -> Did:
        return Did(self.num_tokens, self.num_loaded)


class Worker:
    """A processor on a stretch; may live again."""

    def __init__(self, config: Config, queries: Sequence[Query], source: Again, keeper: Keeper | None = None) -> None:
        self._source, self._output, self._runner = source, Gathered(), loading_runner(config)
        engine = FakeEngine(self._runner, FakeRenderer())
        sink = ReplaySink(config.topics, self._output, unheard)
        clock = Clock(time.monotonic, lambda: source.now_ms)
        control = Questions(config.topics.control, queries)
        self._processor = StreamProcessor(config, engine, sink, control, clock)
        self._processor.connect(source, keeper)

    def live(self) -> tuple[list[bytes], Did]:
        """Take the partitions, answer the stretch, let go of them -> the answers, and what that took."""
        processor, before = self._processor, self._runner.did
        self._output.values = []
        processor.assigned(self._source.recoveries())
        while not (self._source.is_read and is_idle(processor)):
            processor.step()
        processor.commit()
        processor.lost(list(processor.partitions))
        processor.check()
        after = self._runner.did
        did = Did(after.num_tokens - before.num_tokens, after.num_loaded - before.num_loaded)
        return self._output.values, did


def lives(config: Config, queries: Sequence[Query]) -> tuple[dict[int, int], dict[str, list[bytes]]]:
    """-> offsets from which on they answer, by partition; their answers, by what was there when they began."""
    middle = middle_snapshots(config)
    begins = {number: manifest.offset + LATER for number, manifest in middle.items()}
    like = FakeEngine(loading_runner(config), FakeRenderer())  # names and sizes are those of any other
    keeper = make_keeper(writing_nothing(config), like, unheard)
    assert keeper, "the live run kept no snapshots"
    source = Again(config, begins, {number: heads(manifest) for number, manifest in middle.items()})
    found: dict[str, list[bytes]] = {}
    did: dict[str, Did] = {}
    try:
        fresh, kept = Worker(config, queries, source), Worker(config, queries, source, keeper)
        for what, worker in (("cold", fresh), ("warm", fresh), ("restored", kept)):
            found[what], did[what] = worker.live()
    finally:
        source.close()
        keeper.close()
    is_used = did["warm"].num_tokens < did["cold"].num_tokens and did["restored"].num_loaded > 0
    assert is_used, f"what was there has not been used: {did}"
    return begins, found


def middle_snapshots(config: Config) -> dict[int, Manifest]:
    """Of every partition the one in the middle of those that are kept."""
    scope = Identity("", config.worker.group, config.topics.records, "", 0).scope
    found: dict[int, list[Manifest]] = {}
    for entry in entries(open_store(config.snapshots.url), scope):
        assert entry.manifest, entry.problem
        found.setdefault(entry.manifest.identity.partition, []).append(entry.manifest)
    return {number: manifests[len(manifests) // 2] for number, manifests in sorted(found.items())}


def heads(manifest: Manifest) -> list[Head]:
    """What the sessions topic said when this was written; there are no questions that compare with an answer before."""
    topic_id = manifest.identity.topic_id
    return [Head(part.key, part.start_offset, part.records_before, {}, topic_id) for part in manifest.sessions]


def writing_nothing(config: Config) -> Config:
    return replace(config, snapshots=replace(config.snapshots, interval_s=NEVER_S))


def loading_runner(config: Config) -> LoadingRunner:
    size = config.engine.block_size
    return LoadingRunner(WHOLE_TOKENS // size, size)


def unheard(text: str) -> None:
    """A line for people."""
