"""`streamproc replay`: answer questions over a stretch of the past."""

import signal
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.exceptions import Exit

from streamproc.cli.common import Call, shared_options
from streamproc.errors import Unavailable, Usage

if TYPE_CHECKING:
    from streamproc.kafka.stretch import Stretch
    from streamproc.messages import Query
    from streamproc.replay.run import Replayed
    from streamproc.replay.sink import Output

INTERRUPTED = 130
FILE = ".jsonl"
OTHER_FILES = (".json", ".ndjson", ".csv", ".txt")


@click.command()
@click.option("--from", "begin", metavar="POS", default="start", help="First record to answer at.  [default: start]")
@click.option("--to", "end", metavar="POS", default="end", help="Record to stop before.  [default: end]")
@click.option(
    "--queries",
    "file",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path),
    help="TOML file of [query.ID] tables, triggered every N records.",
)
@click.option("--out", metavar="TOPIC|FILE.jsonl", required=True, help="Where the answers go.")
@shared_options
def replay(call: Call, begin: str, end: str, file: Path, out: str) -> None:
    """Answer questions over a stretch of the past; live topics and offsets stay as they are.

    \b
    streamproc replay --queries q.toml --out answers.jsonl
    streamproc replay --from @2021-01-08 --to @2021-01-09 --queries q.toml --out answers.bt.run1

    Positions: start end 100 -100 @2026-01-15 @-1h. Queries that are triggered every N records give the same answers
    as the live run, byte for byte; one that is published on change starts afresh at --from.
    """
    from streamproc.queryfile import load_queries
    from streamproc.replay.run import check_triggers

    queries = load_queries(file)
    check_triggers(queries)
    check_name(call, out)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        done, seconds = answer(call, (begin, end), out, queries)
    except KeyboardInterrupt:
        call.note(f"interrupted: {out} " + ("is not written" if out.endswith(FILE) else "has a part of the answers"))
        raise Exit(INTERRUPTED) from None
    if done.dead:
        call.note(f"warning: {done.dead} bad record{'s' * (done.dead > 1)} left out")
    call.emit(
        {**asdict(done), "seconds": seconds, "out": out},
        f"{done.answers} answers over {done.records} records of {done.sessions} sessions in {seconds:.1f} s -> {out}",
    )


def answer(call: Call, ends: tuple[str, str], out: str, queries: "list[Query]") -> "tuple[Replayed, float]":
    """Everything opened, run and closed again -> what was done, and in how many seconds once all was ready."""
    from streamproc.engine.build import build_engine
    from streamproc.replay.run import Replay

    with ExitStack() as stack:
        stretch = stack.enter_context(closing(open_stretch(call, *ends)))
        engine = stack.enter_context(closing(build_engine(call.config)))
        output = stack.enter_context(closing(open_output(call, out)))
        call.note(f"replaying {len(stretch.starts)} partitions of topic {call.config.topics.records} into {out}")
        started = time.monotonic()
        done = Replay(call.config, engine, stretch, output, lambda text: call.note(f"warning: {text}")).run(queries)
        return done, round(time.monotonic() - started, 3)


def check_name(call: Call, out: str) -> None:
    """Raises Usage where the output is neither a file of JSON lines nor a topic of its own."""
    if not out.endswith(FILE) and ("/" in out or out.endswith(OTHER_FILES)):
        raise Usage(f"--out: {out!r} is no topic, and the name of a file ends in {FILE}")
    if out.endswith(FILE) and not Path(out).parent.is_dir():
        raise Usage(f"--out: there is no folder {Path(out).parent}")
    if out in asdict(call.config.topics).values():
        raise Usage(f"--out: {out} is a live topic; name another, such as answers.bt.run1")


def open_stretch(call: Call, begin: str, end: str) -> "Stretch":
    from streamproc.kafka.properties import check_reachable, client_properties
    from streamproc.kafka.stretch import Stretch
    from streamproc.positions import parse_position

    now_ms = time.time_ns() // 1_000_000
    first, last = parse_position(begin, now_ms), parse_position(end, now_ms)
    check_reachable(client_properties(call.config))
    stretch = Stretch(call.config, first, last)
    if any(stretch.starts.values()):
        call.note(
            f"warning: topic {call.config.topics.records} no longer holds its oldest records: sessions that began in "
            "them count fewer records and start later here, so their answers may differ from the live ones"
        )
    return stretch


def open_output(call: Call, out: str) -> "Output":
    """A file where the name ends in .jsonl, else a topic, made if it is missing."""
    from streamproc.replay.sink import FileOutput, TopicOutput

    if out.endswith(FILE):
        return FileOutput(Path(out))
    from streamproc.kafka.epoch import PlainSink
    from streamproc.kafka.properties import client_properties

    make_topic(call, out)
    properties = client_properties(call.config)
    return TopicOutput(
        PlainSink(properties, f"streamproc-replay-{out}", lambda text: call.note(f"warning: {text}")), out
    )


def make_topic(call: Call, out: str) -> None:
    """A topic like that of the live answers."""
    from streamproc.kafka.properties import client_properties, connect_admin
    from streamproc.kafka.topics import create, load_specs, partition_counts

    admin = connect_admin(client_properties(call.config))
    count = partition_counts(admin).get(call.config.topics.answers)
    specs = load_specs(replace(call.config.topics, answers=out))
    (finding,) = create(admin, [spec for spec in specs if spec.role == "answers"], count)
    if finding.state == "failed":
        raise Unavailable(f"--out: topic {out} cannot be made: {'; '.join(finding.problems)}")
    if finding.state != "created":
        call.note(f"warning: topic {out} exists: the answers are added to what is in it")
