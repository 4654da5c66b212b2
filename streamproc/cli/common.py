"""What every command shares: the connection flags, the settings behind them, and the manners of its output.

Results go to stdout, as text or as JSON; everything else goes to stderr. JSON is the contract: a one-shot result is
one object `{"_command": "query add", "_version": 1, ...}`, a stream is one object a line. Whether a terminal listens
decides about colour only, never about the format.

    @click.command()
    @click.option("--count", type=int, help="How many.")
    @shared_options
    def verb(call: Call, count: int) -> None: ...

A command raises the errors of `streamproc.errors`; `raise click.exceptions.Exit(3)` is "it ran, and the answer is no".
"""

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click
import orjson

from streamproc.config import Config, check_config
from streamproc.kafka.translate import translate
from streamproc.settings import load_config, unknown_variables

VERSION = 1
COMMAND = "streamproc.command"

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Flags:
    """The shared flags as they were given."""

    bootstrap_servers: str | None = None
    command_config: Path | None = None
    overrides: tuple[str, ...] = ()
    config_file: Path | None = None
    json: bool = False
    model: str | None = None


class Call:
    """One run of one command: its settings, and where its output goes."""

    def __init__(self, command: str, flags: Flags, environ: Mapping[str, str] = os.environ) -> None:
        self.command = command
        self.flags = flags
        self.environ = environ

    @property
    def json(self) -> bool:
        """Whether the user asked for JSON."""
        return self.flags.json

    @functools.cached_property
    def config(self) -> Config:
        """All settings, read at the first use. Raises Usage with one line that names the setting."""
        flags = self.flags
        config = load_config(
            flags.config_file, flags.overrides, flags.bootstrap_servers, flags.command_config, self.environ
        )
        if flags.model is not None:
            config = with_model(config, flags.model)
        for text in (*unknown_variables(self.environ), *translate(config.kafka).notes):
            self.note(f"warning: {text}")
        return config

    def emit(self, doc: Mapping[str, Any], text: str) -> None:
        """The result of a one-shot command."""
        click.echo(envelope(self.command, doc) if self.json else text)

    def line(self, doc: Mapping[str, Any], text: str) -> None:
        """One item of a stream."""
        click.echo(to_json(doc) if self.json else text)

    def note(self, text: str) -> None:
        """A word to the user that is no result."""
        click.echo(text, err=True)


def with_model(config: Config, model: str) -> Config:
    """The same settings with another model; the flag outranks even -X. Raises Usage where it is no name."""
    sources = {**config.sources, "engine.model": "flag --model"}
    config = replace(config, engine=replace(config.engine, model=model), sources=sources)
    check_config(config)
    return config


def to_json(doc: Mapping[str, Any]) -> str:
    return orjson.dumps(doc, option=orjson.OPT_NON_STR_KEYS).decode()


def envelope(command: str, doc: Mapping[str, Any]) -> str:
    """The JSON of a one-shot command, results and errors alike."""
    return to_json({"_command": command, "_version": VERSION, **doc})


def command_name(context: click.Context) -> str:
    """The words after the program's name: `query add`."""
    return context.command_path.removeprefix(context.find_root().command_path).strip()


def model_option(function: Callable[..., Result]) -> Callable[..., Result]:
    """Give a command with `shared_options` a flag for its model; stands above them."""
    return click.option(
        "--model", "shared_model", metavar="NAME", help="Folder or hub name of a model, or market-tiny."
    )(function)


def shared_options(function: Callable[..., Result]) -> Callable[..., Result]:
    """Give a command the shared flags and hand it a `Call` first; stands closest to the function."""

    @click.option(
        "-b",
        "--bootstrap-server",
        "--bootstrap-servers",
        "shared_bootstrap",
        metavar="HOST:PORT,...",
        help="Kafka to talk to.",
    )
    @click.option(
        "-F",
        "--command-config",
        "shared_command_config",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Kafka client properties file.",
    )
    @click.option(
        "-X",
        "--command-property",
        "shared_overrides",
        metavar="KEY=VALUE",
        multiple=True,
        help="One setting or Kafka property; repeatable.",
    )
    @click.option(
        "--config",
        "shared_config",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Settings file.  [default: ./streamproc.toml if there]",
    )
    @click.option(
        "--format",
        "shared_format",
        type=click.Choice(["text", "json"]),
        default="text",
        help="What stdout carries.  [default: text]",
    )
    @click.option("--json", "shared_json", is_flag=True, help="Short for --format json.")
    @click.pass_context
    @functools.wraps(function)
    def with_call(context: click.Context, /, *args: Any, **kwargs: Any) -> Result:
        flags = Flags(
            bootstrap_servers=kwargs.pop("shared_bootstrap"),
            command_config=kwargs.pop("shared_command_config"),
            overrides=kwargs.pop("shared_overrides"),
            config_file=kwargs.pop("shared_config"),
            json=(kwargs.pop("shared_format") == "json") | kwargs.pop("shared_json"),
            model=kwargs.pop("shared_model", None),
        )
        context.meta[COMMAND] = command_name(context)
        return function(Call(context.meta[COMMAND], flags), *args, **kwargs)

    return with_call
