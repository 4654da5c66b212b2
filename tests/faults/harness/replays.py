"""T11: what a run with faults has published is what replays of its log give, byte for byte, however they compute it.

The live run loses workers on the way, so its answers come from sessions built cold, warm and restored. The replays
differ in how much a step computes and in the size of blocks: both are cut elsewhere then.
"""

from dataclasses import replace
from pathlib import Path

from fakes import FakeEngine, FakeRenderer, FakeRunner

from harness.anomalies import Anomaly
from harness.checker import Verdict
from harness.lab import Lab, Shape
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
SHAPE = Shape(records_per_s=300, queries=ALWAYS, asks_per_s=0)
WAYS = ((256, 4), (256, 4), (16, 4), (64, 1), (1_000, 8), (64, 32))  # tokens of a step, tokens of a block


def replayed(lab: Lab) -> Verdict:
    """The live run's verdict, and one anomaly for every replay that differs from it."""
    verdict = lab.finish()
    live = sorted((m.value or b"" for m in lab.site_of("answers").read(lab.topics.answers)), key=by_place)
    for number, (step_tokens, block_size) in enumerate(WAYS):
        found = replay(lab.site.config, lab.folder / f"replay-{number}", step_tokens, block_size)
        if sorted(found, key=by_place) != live:
            differ = len(set(found) ^ set(live))
            text = f"steps of {step_tokens}, blocks of {block_size}: {differ} answers differ from the live run's"
            verdict.anomalies.append(Anomaly("wrong-answer", text))
    return verdict


def by_place(value: bytes) -> tuple[int, int, str]:
    return place(decode_answer(value))


def replay(config: Config, path: Path, step_tokens: int, block_size: int) -> list[bytes]:
    """The whole log again -> the bytes of its answers."""
    engine = replace(config.engine, step_tokens=step_tokens, block_size=block_size)
    runner = FakeRunner(24_000 // block_size, block_size)
    source, output = Stretch(config, Start(), End()), FileOutput(path)
    try:
        parts = Replay(
            replace(config, engine=engine), FakeEngine(runner, FakeRenderer()), source, output, lambda text: None
        )
        parts.run(ALWAYS)
    finally:
        output.close()
        source.close()
    return path.read_bytes().splitlines()
