"""The entry of the command line: finds a command by name, imports only that one, and turns every error into one line.

Exit codes: 0 done, 1 failed, 2 wrong usage (nothing was done), 3 ran and the answer is "no", 130 interrupted.
"""

import difflib
import errno
import importlib
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import click
from click.exceptions import NoArgsIsHelpError

from streamproc.cli.common import COMMAND, command_name, envelope
from streamproc.errors import StreamprocError, Usage
from streamproc.values import printable

FAILED, INTERRUPTED = 1, 130
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# name: (module:attribute, help); the help stands here so that `--help` imports no command
COMMANDS = {
    "demo": ("streamproc.cli.demo:demo", "A real Kafka, a recorded feed, standing questions: see it work."),
    "broker": ("streamproc.cli.broker:broker", "Start, stop or look at the built-in Apache Kafka."),
    "topics": ("streamproc.cli.topics:topics", "Create or check the topics."),
    "produce": ("streamproc.cli.produce:produce", "Send trades, quotes or bars from a file."),
    "run": ("streamproc.cli.run:run", "Run a worker: records in, answers out."),
    "query": ("streamproc.cli.query:query", "Add, list or remove standing questions."),
    "answers": ("streamproc.cli.answers:answers", "Read the answers."),
    "ask": ("streamproc.cli.ask:ask", "Ask one question about a session now."),
    "replay": ("streamproc.cli.replay:replay", "Answer questions over a stretch of the past."),
    "eval": ("streamproc.cli.eval:evaluate", "Ask a model questions with known answers: how often is it right?"),
    "snapshots": ("streamproc.cli.snapshots:snapshots", "List, verify or prune the snapshots of the sessions' KV."),
    "config": ("streamproc.cli.settings:config", "Show the settings and where each came from."),
    "doctor": ("streamproc.cli.doctor:doctor", "Check the installation, the broker and the model."),
}


class Failed(click.ClickException):
    """A StreamprocError on its way out of the command that raised it."""

    def __init__(self, problem: StreamprocError, command: str) -> None:
        super().__init__(one_line(str(problem)) or type(problem).__name__)
        self.problem = problem
        self.command = command


class Failure(NamedTuple):
    """What a user is told."""

    command: str
    code: str
    message: str
    exit_code: int


class Root(click.Group):
    """The top level; commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except StreamprocError as problem:
            raise Failed(problem, ctx.meta.get(COMMAND, "")) from problem

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], names, 1)
            raise click.UsageError(f"no command {args[0]!r}" + (f", did you mean {near[0]!r}?" if near else ""), ctx)
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line and exit with its code; not `standalone_mode`: raise its errors instead."""
        args = list(sys.argv[1:] if args is None else args)
        try:
            self._main(args, prog_name, complete_var, standalone_mode, **extra)
        except OSError as problem:
            if problem.errno not in FULL:
                raise
            where = problem.filename or "the output"
            click.echo(f"streamproc: {where} cannot be written: {problem.strerror}", err=True)
            sys.exit(FAILED)

    def _main(
        self, args: list[str], prog_name: str | None, complete_var: str | None, standalone_mode: bool, **extra: Any
    ) -> None:
        extra |= {"color": False if os.environ.get("NO_COLOR") else None}
        try:
            status = super().main(args, prog_name or "streamproc", complete_var, False, **extra)
        except click.Abort:
            sys.exit(INTERRUPTED)
        except NoArgsIsHelpError as problem:
            click.echo(problem.format_message(), err=True)
            sys.exit(problem.exit_code)
        except click.ClickException as problem:
            if not standalone_mode:
                raise
            sys.exit(report(failure_of(problem), wants_json(args)))
        sys.exit(status if type(status) is int else 0)


def failure_of(problem: click.ClickException) -> Failure:
    """An error of a command, or of the line that called it."""
    if isinstance(problem, Failed):
        return Failure(problem.command, problem.problem.code, problem.message, problem.problem.exit_code)
    context = getattr(problem, "ctx", None)
    message = one_line(problem.format_message()).rstrip(".")
    if context is None:
        return Failure("", Usage.code, message, problem.exit_code)
    return Failure(
        command_name(context), Usage.code, f"{message}; see {context.command_path} --help", problem.exit_code
    )


def report(failure: Failure, as_json: bool) -> int:
    """One line on stderr, as JSON also one object on stdout -> the exit code."""
    click.echo(f"streamproc: {failure.message}", err=True)
    if as_json:
        click.echo(envelope(failure.command, {"error": failure.code, "message": failure.message}))
    return failure.exit_code


def one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def wants_json(args: Sequence[str]) -> bool:
    """Whether a command line asks for JSON, even one that cannot be parsed."""
    words = list(args[: args.index("--")] if "--" in args else args)
    pairs = itertools.pairwise(words)
    return "--json" in words or "--format=json" in words or ("--format", "json") in pairs


@click.command(
    "streamproc",
    cls=Root,
    no_args_is_help=True,
    context_settings={"max_content_width": 100},
    epilog="streamproc COMMAND --help shows a command's options.",
)
@click.version_option(package_name="streamproc", message="%(prog)s %(version)s")
def cli() -> None:
    """Kafka streams of market data in, answers to standing questions out.

    \b
    streamproc demo                          the whole thing on this machine
    streamproc produce trades.csv            send records
    streamproc query add move "Which way did the price move last?"
    streamproc answers --follow              watch the answers
    """


def main() -> None:
    """The console script."""
    cli.main()
