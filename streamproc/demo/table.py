"""The live table: on a terminal redrawn in place, elsewhere a line every few seconds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

from streamproc.demo.play import Show

DRAW_EVERY_S = 0.2
LINE_EVERY_S = 5.0
MAX_ROWS = 16


@contextmanager
def drawing(show: Show, note: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """A function to call often; it draws when it is time. Always on stderr: stdout is for the result."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield every(LINE_EVERY_S, lambda: note(headline(show)))
        return
    with Live(table(show), console=console, auto_refresh=False) as live:
        yield every(DRAW_EVERY_S, lambda: live.update(table(show), refresh=True))


def every(seconds: float, draw: Callable[[], None]) -> Callable[[], None]:
    last = time.monotonic()

    def maybe() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            draw()

    return maybe


def headline(show: Show) -> str:
    seconds = max(time.monotonic() - show.started, 1e-9)
    sessions = {session for _, session in show.newest}
    tokens = sum(received.timings.get("num_tokens", 0) for received in show.answers)
    return (
        f"{show.records} records ({show.records / seconds:.0f}/s), {len(sessions)} sessions, "
        f"{len(show.answers)} answers, {tokens} answer tokens, {show.asks} asks"
    )


def table(show: Show) -> Table:
    drawn = Table(title=headline(show), title_justify="left", expand=True)
    for name in ("SESSION", "QUERY", "ANSWER", "AS-OF", "AGE"):
        drawn.add_column(name, no_wrap=True, ratio=3 if name == "ANSWER" else 1)
    now_ms = time.time_ns() // 1_000_000
    for (query, session), received in sorted(show.newest.items(), key=lambda item: item[0][::-1])[:MAX_ROWS]:
        as_of = received.answer.as_of
        where = f"{as_of.partition}:{as_of.offset}" if as_of else "-"
        age = f"{(now_ms - received.timestamp_ms) / 1e3:.1f}s"
        drawn.add_row(session, query, ascii(received.answer.text or "-")[1:-1], where, age)
    return drawn
