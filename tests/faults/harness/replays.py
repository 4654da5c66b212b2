"""T11: what a run with faults has published is what replays of its log give, byte for byte, however they compute it.

The live run loses workers on the way, so its answers come from sessions built cold, warm and restored. Replays differ
in how much a step computes and in the size of blocks, so that both are cut elsewhere; in the pace at which records
come; and in what is there already (`lives.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fakes import FakeEngine, FakeRenderer, FakeRunner

from harness.anomalies import Anomaly
from harness.checker import Verdict
from harness.lab import Lab, Shape
from harness.lives import lives
from harness.paces import Paced
from streamproc.config import Config
from streamproc.kafka.stretch import Stretch
from streamproc.messages import Query, decode_answer
from streamproc.positions import End, Start
from streamproc.replay.run import Replay
from streamproc.replay.sink import FileOutput, place

ALWAYS = (
    Query("always-2", "Is {last} {count}?", every=2, max_tokens=5),
    Query("some-5", "{session} vwap {vwap} hi {high}", "S[135]*", every=5, max_tokens=8),
)
SHAPE = Shape(records_per_s=300, queries=ALWAYS, asks_per_s=0, kept=1_000)
POOL_TOKENS = 24_000


@dataclass(frozen=True)
class Way:
    """One replay. speed: of the records' timestamps; 0: as fast as it can."""

    step_tokens: int
    block_size: int
    speed: float = 0.0

    def __str__(self) -> str:
        pace = f"x{self.speed:g}" if self.speed else "as fast as it can"
        return f"steps of {self.step_tokens}, blocks of {self.block_size}, {pace}"


WAYS = (
    Way(256, 4),
    Way(16, 4),
    Way(64, 1),
    Way(1_000, 8),
    Way(64, 32),
    Way(256, 4, speed=1.0),  # and so the first one twice
    Way(64, 8, speed=10.0),
)


def replayed(lab: Lab) -> Verdict:
    """The live run's verdict, and one anomaly for every replay that differs from it."""
    verdict = lab.finish()
    live = sorted((m.value or b"" for m in lab.site_of("answers").read(lab.topics.answers)), key=by_place)
    for number, way in enumerate(WAYS):
        found = replay(lab.site.config, lab.folder / f"replay-{number}", way)
        verdict.anomalies.extend(differing(str(way), found, live))
    begins, found = lives(lab.site.config, ALWAYS)
    later = [value for value in live if is_after(begins, value)]
    assert later, f"the live run has no answers after {begins}"
    for what, answers in found.items():
        verdict.anomalies.extend(differing(f"{what}, from {begins} on", answers, later))
    return verdict


def by_place(value: bytes) -> tuple[int, int, str]:
    return place(decode_answer(value))


def is_after(begins: dict[int, int], value: bytes) -> bool:
    number, offset, _ = by_place(value)
    return number in begins and offset >= begins[number]


def differing(what: str, found: Sequence[bytes], live: Sequence[bytes]) -> Iterator[Anomaly]:
    if sorted(found, key=by_place) != live:
        differ = len(set(found) ^ set(live))
        yield Anomaly("wrong-answer", f"{what}: {differ} answers differ from the live run's {len(live)}")


def replay(config: Config, path: Path, way: Way) -> list[bytes]:
    """The whole log again -> the bytes of its answers."""
    engine = replace(config.engine, step_tokens=way.step_tokens, block_size=way.block_size)
    runner = FakeRunner(POOL_TOKENS // way.block_size, way.block_size)
    source = Paced(config, way.speed) if way.speed else Stretch(config, Start(), End())
    output = FileOutput(path)
    try:
        parts = Replay(replace(config, engine=engine), FakeEngine(runner, FakeRenderer()), source, output, ignored)
        parts.run(ALWAYS)
    finally:
        output.close()
        source.close()
    return path.read_bytes().splitlines()


def ignored(text: str) -> None:
    """A line for people."""
