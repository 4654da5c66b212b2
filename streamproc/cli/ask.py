"""`streamproc ask`: one question about one session, answered now; exits 1 where nobody answers."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from streamproc.answertypes import ANSWER_TYPES, parse_answer_type
from streamproc.cli.common import Call, shared_options
from streamproc.cli.query import answer_fields, open_client
from streamproc.errors import BadAsk, Usage
from streamproc.values import parse_span_ms


@click.command()
@click.argument("question")
@click.option("--session", metavar="S", required=True, help="Whom to ask: a symbol, or partition-N.")
@click.option("--min-offset", metavar="N", type=click.IntRange(min=0), help="Answer once this record has been seen.")
@click.option("--timeout", metavar="SPAN", default="30s", show_default=True, help="How long to wait, such as 5s.")
@click.option("--answer", type=click.Choice(ANSWER_TYPES), help="What an answer may be.  [default: text]")
@click.option("--choice", "choices", metavar="WORD", multiple=True, help="A word to choose from; repeatable.")
@click.option("--pattern", metavar="REGEX", help="What an answer looks like, as a regular expression.")
@click.option("--schema", metavar="FILE", type=click.Path(path_type=Path), help="What it holds: a JSON schema.")
@click.option("--max-tokens", metavar="N", type=int, default=32, show_default=True, help="Longest answer.")
@shared_options
def ask(call: Call, question: str, session: str, timeout: str, **options: Any) -> None:
    """Ask one question about a session now.

    \b
    streamproc ask "What was the last price?" --session BTCUSDT
    streamproc ask "Which way?" --session BTCUSDT --choice up --choice down --timeout 5s
    """
    with open_client(call) as client:
        found = client.ask(
            session,
            question,
            min_offset=options["min_offset"],
            timeout_s=parse_timeout_s(timeout),
            answer=parse_answer_type(answer_fields(options), BadAsk),
            max_tokens=options["max_tokens"],
        )
    call.emit(asdict(found), found.text or "")


def parse_timeout_s(text: str) -> float:
    """Seconds in a span such as 5s or 500ms. Raises Usage."""
    try:
        span_ms = parse_span_ms(text)
    except ValueError as problem:
        raise Usage(f"--timeout {text!r}: {problem}") from None
    if not 0 < span_ms <= 86_400_000:
        raise Usage(f"--timeout {text!r}: use more than 0 and at most 1d")
    return span_ms / 1000
