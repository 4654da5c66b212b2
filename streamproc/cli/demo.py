"""`streamproc demo`: the whole thing on this machine, with real data; ends with an account of what happened.

Exits 0 when every answer that was due has come and the recomputed ones are equal, 1 when not, 130 when it was cut
short. With --json the last line of stdout is one object: `{"broker", "records", "answers", "sessions", "asks",
"seconds", "exact", "checked", "accuracy", "judged", ...}`; `accuracy` is the share of answers that say what the records
say, of all that could be judged, and changes no exit code: it is the model's.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from click.exceptions import Exit

from streamproc.cli.broker import download_progress
from streamproc.cli.common import Call, model_option, shared_options, to_json
from streamproc.cli.produce import parse_rate

if TYPE_CHECKING:
    from rich.console import Group

    from streamproc.demo.board import Board
    from streamproc.demo.play import Draw
    from streamproc.demo.summary import Summary

FAILED, INTERRUPTED = 1, 130
LINE_EVERY_S = 5.0
DRAWS_PER_S = 5
MARKS = {True: "yes", False: "NO", None: ""}
STYLES = {True: "green", False: "bold red", None: ""}
END_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option(
    "--records", metavar="N", type=click.IntRange(min=1), default=500, show_default=True, help="How many to play."
)
@click.option("--rate", metavar="N/s", default="25/s", show_default=True, help="How fast to play them.")
@click.option("--clean", is_flag=True, help="Delete what earlier demos left in Kafka, and start anew.")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Where the built-in Kafka listens.  [default: 9092 or a free one]"
)
@model_option
@shared_options
def demo(call: Call, records: int, rate: str, clean: bool, port: int | None) -> None:
    """A real Kafka, a recorded feed, standing questions: see it work.

    \b
    streamproc demo
    streamproc demo --records 2000 --rate 100/s
    streamproc demo -b localhost:9092 --clean

    Starts Apache Kafka unless one is given or runs already, and a worker; plays real trades and quotes; shows the
    answers as they come, each beside the truth; recomputes some of them from the log; and stops what it started.
    Ctrl-C ends the play early.
    """
    per_second = parse_rate(rate) or 0.0
    from streamproc.demo.plan import Plan
    from streamproc.demo.show import Stage, run_demo

    plan = Plan(records, per_second, clean, port)
    with end_like_ctrl_c():
        summary = run_demo(call.config, plan, Stage(call.note, download_progress, lambda: screen(call)))
    report(call, summary)


def report(call: Call, summary: "Summary") -> None:
    """The account, and the exit code."""
    for difference in summary.verdict.differences:
        call.note(f"streamproc: not exact: {difference}")
    if summary.accuracy.first_wrong:
        call.note(f"first wrong answer: {summary.accuracy.first_wrong}")
    click.echo(to_json(summary.doc()) if call.json else summary.text())
    if not summary.verdict.exact and summary.verdict.can_be_exact:
        raise Exit(FAILED)
    if summary.numbers.interrupted:
        raise Exit(INTERRUPTED)


@contextmanager
def end_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the demo as Ctrl-C does, so that it cleans up."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in END_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def screen(call: Call) -> "Iterator[Draw]":
    """On stderr: a live table on a terminal, else a line every few seconds."""
    if not sys.stderr.isatty():
        yield every(LINE_EVERY_S, lambda board: call.note(board.header))
        return
    from rich.console import Console
    from rich.live import Live

    from streamproc.demo.board import Board

    boards = [Board("", ())]
    with Live(console=Console(stderr=True), get_renderable=lambda: picture(boards[-1]), refresh_per_second=DRAWS_PER_S):
        yield lambda board: boards.__setitem__(-1, board)


def every(seconds: float, show: "Draw", clock: Callable[[], float] = time.monotonic) -> "Draw":
    """`show`, but at most once in so many seconds."""
    next_s = clock() + seconds

    def draw(board: "Board") -> None:
        nonlocal next_s
        if clock() >= next_s:
            next_s = clock() + seconds
            show(board)

    return draw


def picture(board: "Board") -> "Group":
    """Header and table; texts of the model are not markup."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("session", "query", "answer", "true", "right", "as-of", "age", expand=True)
    for row in board.rows:
        style = STYLES[row.is_right]
        said, truth = (Text(text, style, overflow="ellipsis", no_wrap=True) for text in (row.text, row.truth))
        mark = Text(MARKS[row.is_right], style)
        table.add_row(row.session, row.query, said, truth, mark, row.as_of, f"{row.age_s:.1f} s")
    return Group(Text(board.header), table)
