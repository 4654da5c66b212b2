"""What the demo shows: its questions, its settings, and the records it plays. Values only; nothing here runs."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from streamproc.config import Config, Topics, Worker
from streamproc.market.sample import sample_records
from streamproc.messages import AnswerType, Query
from streamproc.records import Record
from streamproc.settings import BOOTSTRAP
from streamproc.settings_text import toml

GROUP = "demo"
TOPICS = Topics(**{item.name: f"demo.{item.name}" for item in fields(Topics)})
PARTITIONS = 4
NOISE = "random-tiny"

QUESTIONS = (
    Query("direction", "Is {session} going up, going down or going nowhere?", max_tokens=12),
    Query("tape", "What happened in {session} over the last ten records?", every=10, max_tokens=16),
    Query(
        "pressure",
        "Who leads in {session}: buyers or sellers?",
        every=25,
        emit="change",
        answer=AnswerType("choice", ("buyers", "sellers")),
        max_tokens=8,
    ),
    Query(
        "fair",
        "{session}: last {last}, high {high}, low {low}, vwap {vwap}, bid {bid}, ask {ask}. Which price is fair?",
        every=10,
        answer=AnswerType("number"),
        max_tokens=12,
    ),
)
ASKS = (
    "What was the last price of {session}?",
    "What is unusual about the last {count} records?",
    "In a few words: what now?",
)


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
        """The ad-hoc questions by the number of records after which each is asked; few records, fewer questions."""
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
        "prompts": asdict(config.prompts),
        "worker": {"group": config.worker.group},
        "kafka": config.kafka,
    }
    blocks = ("\n".join([f"[{name}]", *map(_line, values.items())]) for name, values in sections.items())
    return "# Written by `streamproc demo` at every start.\n" + "\n\n".join(blocks) + "\n"


def _line(item: tuple[str, object]) -> str:
    return f"{toml(item[0])} = {toml(item[1])}"


def write_config(config: Config, file: Path) -> None:
    """Readable by its owner alone: it may hold a password."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(config_toml(config))
