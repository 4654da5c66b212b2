"""`streamproc replay`: answer questions over a stretch of the past."""

import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamproc.cli.common import Call, shared_options
from streamproc.errors import Unavailable, Usage

if TYPE_CHECKING:
    from streamproc.config import Config
    from streamproc.replay.run import FileSink, TopicSink


@click.command()
@click.option("--from", "begin", metavar="POS", default="start", help="First record to answer at.  [default: start]")
@click.option("--to", "end", metavar="POS", default="end", help="Record to stop before.  [default: end]")
@click.option(
    "--queries",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path),
    help="TOML file of [query.ID] tables, triggered every N records.",
)
@click.option("--out", metavar="TOPIC|FILE.jsonl", required=True, help="Where the answers go.")
@shared_options
def replay(call: Call, begin: str, end: str, queries: Path, out: str) -> None:
    """Answer questions over a stretch of the past; live topics and offsets stay as they are.

    \b
    streamproc replay --queries q.toml --out answers.jsonl
    streamproc replay --from @2021-01-08 --to @2021-01-09 --queries q.toml --out answers.bt.run1

    Positions: start end 100 -100 @2026-01-15 @-1h. Queries that are triggered every N records give the same answers
    as the live run, byte for byte.
    """
    from streamproc.kafka.properties import check_reachable, client_properties
    from streamproc.kafka.stretch import Stretch
    from streamproc.positions import parse_position
    from streamproc.queryfile import load_queries
    from streamproc.replay.run import FileSink
    from streamproc.replay.run import replay as run

    config, now_ms = call.config, time.time_ns() // 1_000_000
    positions = parse_position(begin, now_ms), parse_position(end, now_ms)
    questions = load_queries(queries)
    for query in questions:
        if query.every is None:
            raise Usage(f"{queries}: query {query.id}: trigger: idle cannot be replayed, use 'every N records'")
    check_reachable(client_properties(config))
    sink = make_sink(config, out)
    stretch = Stretch(config, *positions)
    if any(stretch.starts.values()):
        call.note(
            f"warning: {config.topics.records} has lost its oldest records; contexts that began in them may differ"
        )
    from streamproc.engine.build import build_engine

    started = time.monotonic()
    engine = build_engine(config)
    try:
        done = run(config, engine, stretch, sink, questions)
        if isinstance(sink, FileSink):
            sink.publish()
    finally:
        stretch.close()
        sink.close()
        engine.close()
    seconds = round(time.monotonic() - started, 3)
    call.emit(
        {**asdict(done), "seconds": seconds, "out": out},
        f"{done.answers} answers over {done.records} records of {done.sessions} sessions in {seconds:.1f} s -> {out}",
    )


def make_sink(config: "Config", out: str) -> "FileSink | TopicSink":
    """A file where the name ends in .jsonl, else a topic, made if it is missing."""
    from streamproc.replay.run import FileSink, TopicSink

    if out.endswith(".jsonl"):
        path = Path(out)
        if not path.parent.is_dir():
            raise Usage(f"--out: there is no folder {path.parent}")
        return FileSink(path, config.topics.answers)
    if out in {getattr(config.topics, name) for name in config.topics.__slots__}:
        raise Usage(f"--out: {out} is a live topic, name another, such as answers.bt.run1")
    from streamproc.kafka.epoch import PlainSink
    from streamproc.kafka.properties import client_properties, connect_admin
    from streamproc.kafka.topics import create, load_specs

    properties = client_properties(config)
    specs = load_specs(replace(config.topics, answers=out))
    for finding in create(connect_admin(properties), [spec for spec in specs if spec.role == "answers"]):
        if finding.state == "failed":
            raise Unavailable(f"--out: topic {out} could not be created: {finding.error}")
    sink = PlainSink(properties, f"replay-{out}-{os.getpid()}", _warn)
    return TopicSink(sink, config.topics.answers, out)


def _warn(text: str) -> None:
    click.echo(f"warning: {text}", err=True)
