"""What the demo shows: its questions, its settings, and the records it plays. Values only; nothing here runs."""

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from streamproc.config import Config, Prompts, Topics, Worker
from streamproc.market.questions import KINDS, Kind
from streamproc.market.rendering import Rendering
from streamproc.market.sample import sample_records
from streamproc.messages import Query
from streamproc.records import Record
from streamproc.settings import BOOTSTRAP
from streamproc.settings_text import toml

GROUP = "demo"
TOPICS = Topics(**{item.name: f"demo.{item.name}" for item in fields(Topics)})
PARTITIONS = 4
NOISE = "random-tiny"

MAX_TOKENS = 24  # room for any price, digit by digit
TRADES, QUOTES = "*USDT", "USDJPY"  # the sample's sessions, by what they hold


class Standing(NamedTuple):
    """A kind of question, of which sessions, and when; {vwap} and the like may be its level."""

    kind: str
    sessions: str
    every: int | None = None
    emit: str = "always"
    level: str = ""

    def query(self, kind: Kind) -> Query:
        question = kind.question("{session}", self.level)
        return Query(self.kind, question, self.sessions, self.every, self.emit, kind.answer, MAX_TOKENS)


STANDING = (
    Standing("last_price", TRADES),
    Standing("move", TRADES, every=5),
    Standing("high5", TRADES, every=10),
    Standing("low5", TRADES, every=10),
    Standing("buys5", TRADES, every=10),
    Standing("above", TRADES, every=5, emit="change", level="{vwap}"),
    Standing("bid", QUOTES),
    Standing("spread", QUOTES),
)
ASKS = ("last_price", "above", "last_side")  # of a session with trades; above: the price it opened at


def kinds_of(rendering: Rendering) -> dict[str, Kind]:
    """Every kind of question, in the model's own words where it has them."""
    return {**KINDS, **rendering.kinds}


def standing_questions(kinds: Mapping[str, Kind]) -> tuple[Query, ...]:
    return tuple(item.query(kinds[item.kind]) for item in STANDING)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to play, how fast, and on which Kafka."""

    num_records: int
    rate: float  # records a second
    clean: bool = False
    port: int | None = None  # of the built-in broker

    def records(self) -> Iterator[Record]:
        """The sample, which starts anew where it ends."""
        return itertools.islice(itertools.cycle(sample_records()), self.num_records)

    def ask_points(self) -> dict[int, str]:
        """Kinds of the ad-hoc questions by the number of records after which each comes; few records, fewer of them."""
        return {max(1, self.num_records * nth // len(ASKS)): ask for nth, ask in enumerate(ASKS, 1)}


def demo_config(config: Config, address: str) -> Config:
    """The user's model, prompts and Kafka properties, with topics and a group of the demo's own."""
    kafka = {**config.kafka, BOOTSTRAP: address}
    return replace(config, topics=TOPICS, worker=Worker(group=GROUP), kafka=kafka)


def config_toml(config: Config) -> str:
    """The settings as a file that `streamproc run --config` takes; secrets of [kafka] in the clear."""
    sections = {
        "topics": asdict(config.topics),
        "engine": asdict(config.engine),
        "prompts": own_prompts(config),
        "worker": {"group": config.worker.group},
        "kafka": config.kafka,
    }
    blocks = ("\n".join([f"[{name}]", *map(_line, values.items())]) for name, values in sections.items() if values)
    return "# Written by `streamproc demo` at every start.\n" + "\n\n".join(blocks) + "\n"


def own_prompts(config: Config) -> dict[str, Any]:
    """The prompts that the user has set; a default that is written down would overrule those of the model's folder."""
    default = asdict(Prompts())
    return {
        name: value
        for name, value in asdict(config.prompts).items()
        if f"prompts.{name}" in config.sources or value != default[name]
    }


def _line(item: tuple[str, object]) -> str:
    return f"{toml(item[0])} = {toml(item[1])}"


def write_config(config: Config, file: Path) -> None:
    """Readable by its owner alone: it may hold a password."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(config_toml(config))
