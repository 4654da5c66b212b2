"""`streamproc eval`: how often a model is right. Exits 3 where --min was not reached."""

import contextlib
import math
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.exceptions import Exit

from streamproc.cli.common import Call, model_option, shared_options, to_json
from streamproc.errors import Unavailable, Usage

if TYPE_CHECKING:
    from streamproc.evaluate import Outcome

ANSWER_IS_NO = 3
FILE = ".jsonl"
NUMBER = click.IntRange(1, 1_000_000)


class Share(click.FloatRange):
    """A number from 0 to 1, which NaN is not."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        found: float = super().convert(value, param, context)
        return found if not math.isnan(found) else self.fail(f"{value} is no share from 0 to 1", param, context)


@click.command("eval")
@model_option
@click.option("--feed", metavar="synthetic|sample|FILE", default="synthetic", help="Records.  [default: synthetic]")
@click.option(
    "--session-by",
    type=click.Choice(["key", "partition"]),
    help="What owns a session.  [default: partition if synthetic, else key]",
)
@click.option("--asks", metavar="N", type=NUMBER, default=1000, help="Questions.  [default: 1000]")
@click.option("--seed", metavar="N", type=int, default=0, help="Another number, other questions.  [default: 0]")
@click.option("--min", "least", metavar="SHARE", type=Share(0, 1), help="Exit with 3 if fewer are right.")
@click.option("--out", metavar="FILE.jsonl", type=click.Path(path_type=Path), help="Write every answer and its truth.")
@shared_options
def evaluate(call: Call, least: float | None, out: Path | None, session_by: str | None, **drawing: Any) -> None:
    """Ask a model questions whose answers are known, and tell how many it gets right.

    \b
    streamproc eval --model market-tiny
    streamproc eval --model Qwen/Qwen3-0.6B --feed trades.csv.gz --asks 200 --min 0.9

    Records and questions go through the real worker, with a Kafka in memory. Every kind of question is asked in
    contexts of all sizes up to engine.context_tokens (here 2048 unless set), before and after hops.
    """
    check_out(out)
    from streamproc.engine.build import build_engine
    from streamproc.evaluate import Settings
    from streamproc.evaluate import evaluate as run

    report = run(build_engine, call.config, Settings(session_by=session_by or "", **drawing), call.note)
    problem = write(out, report.outcomes) if out else None
    doc = {**report.doc(), "out": str(out) if out and not problem else None, "min": least}
    call.emit(doc | ({"error": problem.code, "message": str(problem)} if problem else {}), report.text())
    if problem:
        call.note(f"streamproc: {problem}")
        raise Exit(problem.exit_code)
    if least is not None and not report.reaches(least):
        call.note(f"below --min: {report.overall} < {least}")
        raise Exit(ANSWER_IS_NO)


def check_out(out: Path | None) -> None:
    """Raises Usage where the answers cannot be written, before they are asked for."""
    if out is None:
        return
    if out.suffix != FILE or out.is_dir():
        raise Usage(f"--out: {str(out)!r} is no name of a file that ends in {FILE}")
    if not os.access(out.parent, os.W_OK):
        raise Usage(f"--out: cannot write in the folder {out.parent}")


def write(out: Path, outcomes: "Iterable[Outcome]") -> Unavailable | None:
    """One outcome a line -> what went wrong: the file appears whole, or not at all."""
    new = out.with_name(f".{out.name}.new")
    try:
        new.write_text("".join(to_json(asdict(outcome)) + "\n" for outcome in outcomes), encoding="utf-8")
        new.replace(out)
    except OSError as problem:
        with contextlib.suppress(OSError):
            new.unlink()
        return Unavailable(f"--out: {out} cannot be written: {problem.strerror}")
    return None
