"""`streamproc answers`: the answers topic, one line an answer; Ctrl-C says where to go on and exits 130."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from click.exceptions import Exit

from streamproc.cli.common import Call, shared_options
from streamproc.cli.query import open_client
from streamproc.values import printable

if TYPE_CHECKING:
    from streamproc.answers import AnswerStream, Received

INTERRUPTED = 130
ROW = "{:<24} {:<12} {:<20} {:<12} {}"
HEADER = ROW.format("TIME", "SESSION", "QUERY", "AS-OF", "TEXT")


@click.command()
@click.option("--follow", is_flag=True, help="Go on with new answers as they come.")
@click.option("--query", metavar="ID", help="Answers of one query only.")
@click.option("--session", metavar="GLOB", help="Answers of these sessions only.")
@click.option("--from", "from_", metavar="WHERE", help="now, start, state, position.  [default: start, --follow: now]")
@click.option("-n", "--count", metavar="N", type=click.IntRange(min=1), help="Stop after N answers.")
@shared_options
def answers(call: Call, follow: bool, from_: str | None, count: int | None, **which: str | None) -> None:
    """Read the answers: all so far, oldest first, or with --follow the new ones.

    `state` is the newest answer of every query and session, then what follows. A position is one of 0:10482,1:99
    (as Ctrl-C prints it), 100, -100, @2026-01-15T10:00Z or @-1h.

    \b
    streamproc answers --follow --query move
    streamproc answers --from state --json
    streamproc answers --from @-1h --session 'BTC*'
    """
    with open_client(call) as client:
        stream = client.answers(
            **which, from_=from_ or ("now" if follow else "start"), timeout_s=None if follow else 0, limit=count
        )
        try:
            show(call, stream)
        except KeyboardInterrupt:
            call.note(f"stopped at {stream.position}; continue with --from {stream.position}")
            raise Exit(INTERRUPTED) from None


def show(call: Call, stream: "AnswerStream") -> None:
    if not call.json:
        click.echo(HEADER)
    for received in stream:
        call.line(doc_of(received), row_of(received))


def doc_of(received: "Received") -> dict[str, Any]:
    where = received.position
    return {
        **asdict(received.answer),
        "partition": where.partition,
        "offset": where.offset,
        "timestamp_ms": received.timestamp_ms,
        "timings": received.timings,
    }


def row_of(received: "Received") -> str:
    """Time, session, query, partition:offset that was seen, and the text on one line."""
    answer = received.answer
    when = datetime.fromtimestamp(received.timestamp_ms / 1000, UTC).isoformat(timespec="milliseconds")
    as_of = f"{answer.as_of.partition}:{answer.as_of.offset}" if answer.as_of else "-"
    text = answer.text if answer.error is None else f"error: {answer.error}"
    row = (when.replace("+00:00", "Z"), answer.session, answer.query_id or "-", as_of, printable(text or "-"))
    return ROW.format(*row)
