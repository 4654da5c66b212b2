"""One frozen set of settings; `streamproc.settings` reads it from flags, environment, file and defaults.

A setting has one spelling everywhere: `engine.context_tokens` in `-X engine.context_tokens=4096`,
`STREAMPROC_ENGINE_CONTEXT_TOKENS` in the environment, `context_tokens` in the file's `[engine]` table.
Kafka's own properties keep their names and live in `[kafka]`.

Every setting carries a Rule: one line of documentation and the values it takes. `check_config` holds a whole
config to its rules and to what the settings mean together.
"""

import functools
import os
import re
import string
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from streamproc.errors import Usage
from streamproc.records import FIELDS

DEFAULT_BOOTSTRAP_SERVERS = "127.0.0.1:9092"
SECTIONS = ("topics", "engine", "prompts", "worker", "snapshots")
NAME = r"[A-Za-z0-9._-]{1,249}"
NAME_HINT = "a name of letters, digits, '.', '_' and '-'"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a setting means and takes. `unit` decides how a text is read: bytes, ms, s, or a plain number."""

    doc: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()
    pattern: str = ""
    hint: str = ""  # says in words what `pattern` takes

    @property
    def takes(self) -> str:
        """The values that would do, in words; empty where any text does."""
        if self.choices:
            return ", ".join(str(choice) for choice in self.choices)
        if self.low is not None and self.high is not None:
            return f"{self.low:_} to {self.high:_}".replace("_", "") + (f" {self.unit}" if self.unit else "")
        return self.hint

    def allows(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if self.low is not None and self.high is not None:
            return bool(self.low <= value <= self.high)
        return not self.pattern or re.fullmatch(self.pattern, value) is not None


def setting(default: Any, doc: str, **rule: Any) -> Any:
    """A dataclass field with its Rule."""
    return field(default=default, metadata={"rule": Rule(doc, **rule)})


def topic(default: str, doc: str) -> Any:
    return setting(default, doc, pattern=NAME, hint=NAME_HINT)


@dataclass(frozen=True, slots=True)
class Topics:
    """Names of the six topics."""

    records: str = topic("streamproc.records", "Topic of market data.")
    control: str = topic("streamproc.control", "Topic of standing questions (compacted).")
    asks: str = topic("streamproc.asks", "Topic of ad-hoc questions; as many partitions as records.")
    answers: str = topic("streamproc.answers", "Topic of answers.")
    sessions: str = topic("streamproc.sessions", "Topic of where sessions start (compacted).")
    dead: str = topic("streamproc.dead", "Topic of input that could not be processed, with the reason.")


@dataclass(frozen=True, slots=True)
class Engine:
    """The model and its memory."""

    model: str = setting(
        "market-tiny",
        "Folder or hub name of a causal LM; built in: `market-tiny`, and `random-tiny` whose words are noise.",
        pattern=r".*\S.*",
        hint="a folder, a hub name or market-tiny",
    )
    dtype: str = setting(
        "auto",
        "Number format of weights and KV; auto: as the model was saved. float16: on a GPU.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    kv_dtype: str = setting(
        "auto",
        "Number format of the KV pool alone; fp8 (e4m3) and int8, on a GPU, hold twice as many tokens, less exactly.",
        choices=("auto", "fp8", "int8"),
    )
    deterministic: bool = setting(
        True, "On a GPU: an answer's bits never depend on what else is computed; false: faster products."
    )
    device: str = setting(
        "auto",
        "Where the model runs; auto: the GPU if there is one.",
        pattern=r"auto|cpu|cuda(:\d+)?",
        hint="auto, cpu, cuda or cuda:0",
    )
    threads: int = setting(
        0, "CPU threads of the model; 0: torch's own choice, as a rule one a core.", low=0, high=1024
    )
    kv_bytes: int = setting(
        0,
        "Size of the KV pool that all sessions share; 0: what the model leaves free on a GPU, 256 MiB on a CPU.",
        unit="bytes",
        low=0,
        high=2**44,
    )
    block_size: int = setting(16, "Tokens in one block of the KV pool.", choices=(1, 2, 4, 8, 16, 32, 64, 128, 256))
    host_bytes: int = setting(
        0,
        "Memory for blocks that had to leave the KV pool, so that they are not computed again.",
        unit="bytes",
        low=0,
        high=2**44,
    )
    context_tokens: int = setting(
        1024, "Tokens after which a session hops to a new generation; whole blocks.", unit="tokens", low=32, high=2**24
    )
    keep: float = setting(0.25, "Share of the context that a new generation starts from.", low=0, high=0.9)
    step_tokens: int = setting(512, "Most tokens that one step computes.", unit="tokens", low=1, high=2**20)
    step_ms: int = setting(
        50, "How long a step should last: what comes in waits no longer to be looked at.", unit="ms", low=1, high=60_000
    )


@dataclass(frozen=True, slots=True)
class Prompts:
    """How records and questions become text. Templates use {field} of the record."""

    system: str = setting(
        "You watch a market feed. Answer with as few words as you can.\n", "Text that every session starts with."
    )
    trade: str = setting("{sym} {side} {sz} @ {px}\n", "A trade as text; {field} of the record.")
    quote: str = setting("{sym} bid {bid_px} x {bid_sz} ask {ask_px} x {ask_sz}\n", "A quote as text.")
    bar: str = setting("{sym} open {open} high {high} low {low} close {close} volume {volume}\n", "A bar as text.")
    question: str = setting("Q: {question}\nA:", "The tail of a question; {question} is its text.")
    stop: tuple[str, ...] = setting(("\n",), "Texts that end an answer, unless its question has its own.")


@dataclass(frozen=True, slots=True)
class Worker:
    """The loop: what it consumes, how it commits, what it refuses."""

    group: str = setting(
        "streamproc", "Consumer group; workers of one group share the partitions.", pattern=NAME, hint=NAME_HINT
    )
    slot: str = setting(
        "",
        "Name of this worker in its group, which keeps its partitions for it while it restarts; empty: one is made.",
        pattern=f"({NAME})?",
        hint=f"{NAME_HINT}, or nothing",
    )
    session_by: str = setting("key", "What owns a session: each key, or each partition.", choices=("key", "partition"))
    start: str = setting("earliest", "Where a group without committed offsets starts.", choices=("earliest", "latest"))
    commit_interval_ms: int = setting(100, "Longest time between two commits.", unit="ms", low=1, high=60_000)
    commit_bytes: int = setting(
        4 * 2**20, "Most bytes of records taken in between two commits.", unit="bytes", low=1, high=2**40
    )
    commit_answers: int = setting(
        1_000, "Most answers finished between two commits.", unit="answers", low=1, high=10**9
    )
    revoke_ms: int = setting(
        5_000,
        "How long a worker may finish and commit what it has begun of partitions that go to another one.",
        unit="ms",
        low=0,
        high=60_000,
    )
    stall_s: int = setting(
        60,
        "Seconds without a record while there are some to read: then the consumer is made anew.",
        unit="s",
        low=1,
        high=86_400,
    )
    on_gap: str = setting(
        "fail",
        "Where the log no longer fits what was committed: stop, or go on with what there is.",
        choices=("fail", "rebuild"),
    )
    poison_after: int = setting(
        3, "Deaths of the worker at one record after which it goes to the dead topic.", unit="deaths", low=2, high=1_000
    )
    max_record_bytes: int = setting(65_536, "Larger records go to the dead topic.", unit="bytes", low=64, high=2**24)
    max_question_tokens: int = setting(512, "Longer questions are refused.", unit="tokens", low=1, high=2**20)
    max_answer_tokens: int = setting(
        64, "Most tokens of an answer; a question may ask for fewer.", unit="tokens", low=1, high=4096
    )
    backlog_tokens: int = setting(
        65_536, "Tokens waiting for the engine at which no more records are taken in.", unit="tokens", low=1, high=2**30
    )


@dataclass(frozen=True, slots=True)
class Snapshots:
    """KV of the partitions on disk or in an object store, so that a restart need not compute it again."""

    url: str = setting(
        "",
        "Where snapshots are kept, shared by all workers of the group; empty: there are none.",
        hint="a folder, file:///path, s3://bucket/prefix, or nothing",
    )
    interval_s: int = setting(30, "Time between two snapshots of a partition.", unit="s", low=1, high=86_400)
    keep: int = setting(2, "Newest snapshots of a partition that are kept.", low=1, high=1000)
    max_age_s: int = setting(0, "Younger snapshots are kept too; 0: no others.", unit="s", low=0, high=10**9)
    pending_bytes: int = setting(
        256 * 2**20, "Memory for blocks on their way to the store.", unit="bytes", low=2**20, high=2**40
    )
    standby: bool = setting(
        False,
        "Follow the snapshots of partitions that others own, their blocks in what `engine.host_bytes` leaves.",
        hint="true or false",
    )


@dataclass(frozen=True, slots=True)
class Config:
    """All settings. `kafka` holds Kafka client properties; `sources` says where each setting came from."""

    topics: Topics = field(default_factory=Topics)
    engine: Engine = field(default_factory=Engine)
    prompts: Prompts = field(default_factory=Prompts)
    worker: Worker = field(default_factory=Worker)
    snapshots: Snapshots = field(default_factory=Snapshots)
    kafka: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def value(self, key: str) -> Any:
        """The value of a setting by its full name, such as `engine.keep`."""
        section, _, name = key.partition(".")
        return getattr(getattr(self, section), name)


@dataclass(frozen=True, slots=True)
class Setting:
    """One known setting. `kind` is str, int, float, bool or tuple."""

    key: str
    kind: type
    default: Any
    rule: Rule

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return "STREAMPROC_" + self.key.upper().replace(".", "_")


@functools.cache
def known_settings() -> dict[str, Setting]:
    """Every setting by its full name, in the order of this file."""
    found = {}
    for section in (Topics, Engine, Prompts, Worker, Snapshots):
        for item in fields(section):
            key = f"{section.__name__.lower()}.{item.name}"
            found[key] = Setting(key, type(item.default), item.default, item.metadata["rule"])
    return found


def check_config(config: Config) -> None:
    """Raises Usage with one line for the first setting that is wrong, alone or beside the others."""
    for known in known_settings().values():
        if not known.rule.allows(config.value(known.key)):
            raise wrong(config, known.key, "out of range" if known.rule.high else "not possible", known.rule.takes)
    check_topics(config)
    check_context(config)
    if config.snapshots.standby and not config.snapshots.url:
        raise wrong(config, "snapshots.standby", "there are no snapshots to follow", "it with snapshots.url")
    for kind, names in FIELDS.items():
        check_template(config, f"prompts.{kind}", names)
    check_template(config, "prompts.question", ("question",))
    if "{question}" not in config.prompts.question:
        raise wrong(config, "prompts.question", "does not contain {question}", "put {question} where its text goes")


def check_topics(config: Config) -> None:
    """No topic serves two purposes."""
    seen: dict[str, str] = {}
    for item in fields(config.topics):
        name, key = getattr(config.topics, item.name), f"topics.{item.name}"
        if name in seen:
            raise wrong(config, key, f"is also {seen[name]}", "a name of its own")
        seen[name] = key


def check_context(config: Config) -> None:
    """A context is made of whole blocks."""
    tokens, size = config.engine.context_tokens, config.engine.block_size
    if tokens % size:
        near = f"{max(tokens // size, 1) * size} or {(tokens // size + 1) * size}"
        raise wrong(config, "engine.context_tokens", f"is not a multiple of engine.block_size = {size}", near)


def check_template(config: Config, key: str, known: tuple[str, ...]) -> None:
    """Every placeholder of a template is a field it will be given."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(config.value(key)) if name is not None]
    except ValueError as problem:
        raise wrong(config, key, str(problem).lower(), "write {{ and }} for braces") from None
    for name in names:
        if name not in known:
            raise wrong(config, key, f"has the unknown placeholder {{{name}}}", "one of " + ", ".join(known))


def wrong(config: Config, key: str, problem: str, takes: str) -> Usage:
    return wrong_value(key, config.value(key), config.sources.get(key, "default"), problem, takes)


def wrong_value(key: str, value: Any, source: str, problem: str, takes: str) -> Usage:
    """The one line of every wrong setting: its name, value and source, what is wrong, what would do."""
    return Usage(f"{key} = {value!r} ({source}): {problem}" + (f"; use {takes}" if takes else ""))


def state_dir() -> Path:
    """Where this user's broker data, downloads and built-in models lie."""
    if given := os.environ.get("STREAMPROC_STATE_DIR"):
        return Path(given)
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "streamproc"
