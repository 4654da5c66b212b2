"""Fakes with teeth. The fake model's KV is a rolling hash of every token id seen, and its answer is a hash of that KV:
one lost, repeated or reordered record, one wrong block, changes every later answer. No torch, no Kafka, milliseconds.
"""

import hashlib
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamproc.config import Config
from streamproc.errors import EpochAborted
from streamproc.messages import Head, decode_head
from streamproc.past import Past
from streamproc.ports import Clock
from streamproc.records import Record, encode_record
from streamproc.schedule.plan import Plan, num_equal, told, verified
from streamproc.state.epoch import Epoch, Message, Outgoing, Position
from streamproc.state.partition import Recovery
from streamproc.state.publish import head_key
from streamproc.state.registrar import OWNER
from streamproc.state.stamp import Stamp, decode_stamp

VOCABULARY = 128
MASK = 2**61 - 1
MOST_FORCED = 8


def next_kv(kv: int, token_id: int) -> int:
    """One cell's content: a hash of the cell before it and the token."""
    return (kv * 1_000_003 + token_id + 1) * 6_364_136_223_846_793_005 % MASK


def greedy(kv: int) -> int:
    """The token that follows a cell: printable, so that texts differ."""
    return 33 + kv // 7 % 90


def check_apart(plan: Plan, block_size: int) -> None:
    """Chunks may be computed side by side: none holds a block that another one writes, but for those it comes after."""
    before: dict[int, set[int]] = {}  # a sequence and all that it comes after
    for chunk in plan.chunks:
        before[chunk.seq_id] = {chunk.seq_id} | (set() if chunk.after is None else before[chunk.after])
    for chunk in plan.chunks:
        first, last = chunk.start // block_size, (chunk.start + len(chunk.token_ids) - 1) // block_size
        written = set(chunk.block_table[first : last + 1])
        for other in plan.chunks:
            knows = chunk.seq_id in before[other.seq_id]
            assert knows or not written & set(other.block_table), "a chunk holds a block that another writes"


class FakeRunner:
    """Carries out plans on hash cells. Reads and writes only what the plan names."""

    fingerprint = "fake"

    def __init__(self, num_blocks: int = 64, block_size: int = 4) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.cells: list[int | None] = [None] * (num_blocks * block_size)
        self.num_steps = self.num_tokens = 0
        self.saved: dict[bytes, bytes] = {}  # of the newest plan
        self.sampled: dict[int, tuple[int, ...]] = {}  # likewise
        self.looks: Callable[[], int] = lambda: 0  # how often the loop looks in vain whether a step is done

    def launch(self, plan: Plan) -> "FakeFlight":
        return FakeFlight(self, plan, self.looks() if plan.chunks else 0)

    def carry_out(self, plan: Plan) -> dict[int, tuple[int, ...]]:
        """With the tokens that the plan before it has sampled."""
        self.sampled = self.run(told(plan, self.sampled))
        return self.sampled

    def run(self, plan: Plan) -> dict[int, tuple[int, ...]]:
        size = self.block_size
        self.num_steps += bool(plan.chunks)
        self.saved = {name: self._bytes_of(block) for block, name in plan.saves}
        for block, data in plan.loads:
            self.cells[block * size : (block + 1) * size] = array("q", bytes(data))
        for source, target in plan.copies:
            self.cells[target * size : (target + 1) * size] = self.cells[source * size : (source + 1) * size]
        check_apart(plan, size)
        self.num_tokens += plan.num_tokens
        written: set[int] = set()
        sampled = {}
        for chunk in plan.chunks:
            kv = self._cell(chunk.block_table, chunk.start - 1) if chunk.start else 0
            follows: list[int] = []
            for position, token_id in enumerate(chunk.token_ids, chunk.start):
                assert kv is not None, "read a cell that nobody wrote"
                kv = next_kv(kv, token_id)
                slot = chunk.block_table[position // size] * size + position % size
                assert slot not in written, "two chunks write one cell"
                written.add(slot)
                self.cells[slot] = kv
                follows.append(greedy(kv))
            if chunk.num_samples:
                sampled[chunk.seq_id] = verified(chunk.draft, follows[-chunk.num_samples :])
        return sampled

    @property
    def block_bytes(self) -> int:
        return 8 * self.block_size

    def _bytes_of(self, block: int) -> bytes:
        cells = self.cells[block * self.block_size : (block + 1) * self.block_size]
        assert None not in cells, "a block is saved that nobody has written"
        return array("q", [cell or 0 for cell in cells]).tobytes()

    def _cell(self, block_table: Sequence[int], position: int) -> int | None:
        return self.cells[block_table[position // self.block_size] * self.block_size + position % self.block_size]


class ForcingRunner(FakeRunner):
    """After a token that `mod` divides there is no choice about the next one: it comes with it, like a type's."""

    mod = 3

    def run(self, plan: Plan) -> dict[int, tuple[int, ...]]:
        sampled = super().run(plan)
        for chunk in plan.chunks:
            if chunk.num_samples:
                tokens = list(sampled[chunk.seq_id])
                certain = chunk.start + len(chunk.token_ids) - len(chunk.draft) + num_equal(chunk.draft, tokens)
                kv = self._cell(chunk.block_table, certain - 1) or 0
                while tokens[-1] % self.mod == 0 and len(tokens) < MOST_FORCED:
                    kv = next_kv(kv, tokens[-1])
                    tokens.append(greedy(kv))
                sampled[chunk.seq_id] = tuple(tokens)
        return sampled


@dataclass
class FakeFlight:
    """Computes when it is waited for, as late as a device may."""

    runner: FakeRunner
    plan: Plan
    looks: int = 0
    seconds: float = 0.0
    queued_at: float = 0.0
    ended_at: float = 0.0
    saved: dict[bytes, Any] = field(default_factory=dict)

    def is_done(self, timeout_s: float) -> bool:
        self.looks -= 1
        return self.looks < 0

    def wait(self) -> dict[int, tuple[int, ...]]:
        sampled = self.runner.carry_out(self.plan)
        self.saved = self.runner.saved
        return sampled


class FakeRenderer:
    """One token a character. With `looks_back` a record's text, and its length, depend on the trades before it."""

    stop: tuple[str, ...] = ("!",)
    eos_ids = frozenset({126})

    def __init__(self, prefix: str = "PREFIX\n", looks_back: bool = False) -> None:
        self.prefix_ids = tuple(map(ord, prefix))
        self.looks_back = looks_back

    @staticmethod
    def text(record: Record) -> str:
        return " ".join(str(value) for value in record if value is not None)[:24] + "\n"

    def record_ids(self, records: Sequence[Record]) -> list[tuple[int, ...]]:
        past, found = Past(), []
        for record in records:
            found.append(self.ids_after(past, record))
            past.add(record)
        return found

    def ids_after(self, past: Past, record: Record) -> tuple[int, ...]:
        number, tick = past.marks(record) if self.looks_back else ("", "")
        return tuple(map(ord, tick + "n" * int(number or 0) + self.text(record)))

    def prompt_ids(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def tail_ids(self, question: str) -> tuple[int, ...]:
        return tuple(ord(c) % VOCABULARY for c in f"Q{question}A")

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


@dataclass
class FakeEngine:
    runner: FakeRunner
    renderer: FakeRenderer
    fingerprint: str = "fake"
    why_not: Callable[[str], str | None] = lambda grammar: None  # the fake model's answers are held to nothing
    model: str = "fake-model"


@dataclass
class FakeClock:
    """Stands still until it is moved."""

    now_s: float = 1_000.0

    def clock(self) -> Clock:
        return Clock(lambda: self.now_s, lambda: int(self.now_s * 1e3))


@dataclass
class Log:
    """A Kafka cluster's memory: topics, and a group's committed offsets with their metadata."""

    config: Config
    topics: dict[tuple[str, int], list[Message]] = field(default_factory=dict)
    committed: dict[tuple[str, int], tuple[int, str]] = field(default_factory=dict)
    headers: list[tuple[Outgoing, dict[str, bytes]]] = field(default_factory=list)
    topic_id: str = "first"
    lows: dict[int, int] = field(default_factory=dict)  # first offset that retention has left, by partition of records

    def append(self, topic: str, partition: int, key: bytes | None, value: bytes | None) -> int:
        messages = self.topics.setdefault((topic, partition), [])
        messages.append(Message(topic, partition, len(messages), key, value, 0))
        return len(messages) - 1

    def produce(self, partition: int, record: Record) -> int:
        return self.append(self.config.topics.records, partition, record.sym.encode(), encode_record(record))

    def commit(self, epoch: Epoch) -> None:
        """A transaction: all of it, or nothing."""
        for message in epoch.messages:
            self.headers.append((message, dict(message.headers)))
            self.append(message.topic, message.partition or 0, message.key, message.value)
        for position in epoch.positions:
            self.committed[(position.topic, position.partition)] = (position.offset, position.metadata)

    def read(self, topic: str, partition: int = 0) -> list[Message]:
        return self.topics.get((topic, partition), [])

    def heads(self, number: int) -> dict[str, Head]:
        prefix = head_key(self.config.worker.group, self.config.topics.records, "")
        messages = self.read(self.config.topics.sessions, number)
        newest = {m.key: m.value for m in messages if m.key and m.key.startswith(prefix)}
        heads = [decode_head(value) for value in newest.values() if value]
        return {head.session: head for head in heads}


class FakeSource:
    """Reads a Log, `batch` messages at a time."""

    membership = None

    def __init__(self, log: Log, batch: int = 7) -> None:
        self.log, self.batch = log, batch
        self.positions: dict[tuple[str, int], int] = {}
        self.listener: Any = None
        self.held: set[int] = set()
        self.rebalances: list[int] = []  # partitions that go and come back at the next poll

    def assign(self, numbers: Sequence[int]) -> None:
        recoveries = {number: self.recover(number) for number in numbers}
        for number, recovery in recoveries.items():
            self.positions[(self.log.config.topics.records, number)] = recovery.rebuild_from
            self.positions[(self.log.config.topics.asks, number)] = recovery.asks_from
        self.listener.assigned(recoveries)

    def recover(self, number: int) -> Recovery:
        topics = self.log.config.topics
        offset, stamp = self.log.committed.get((topics.records, number), (0, ""))
        asks_from, metadata = self.log.committed.get((topics.asks, number), (0, ""))
        control_from, _ = self.log.committed.get((topics.control, 0), (0, ""))
        heads = self.log.heads(number)
        low = self.log.lows.get(number, 0)
        rebuild_from = max(low, min([offset, *(head.start_offset for head in heads.values())]))
        cut = frozenset(key for key, head in heads.items() if head.start_offset < low)
        control_from = control_from if number == OWNER else 0
        end = len(self.log.read(topics.records, number))
        return Recovery(
            rebuild_from, offset, heads, asks_from, metadata, control_from, decode_stamp(stamp), self.log.topic_id, end,
            cut=cut,
        )  # fmt: skip

    def poll(self, timeout_s: float) -> list[Message]:
        if self.rebalances:
            numbers, self.rebalances = self.rebalances, []
            self.listener.revoked(numbers)
            self.positions = {where: at for where, at in self.positions.items() if where[1] not in numbers}
            self.assign(numbers)
        found: list[Message] = []
        for (topic, number), position in self.positions.items():
            if number in self.held and topic == self.log.config.topics.records:
                continue
            batch = self.log.read(topic, number)[position : position + self.batch]
            self.positions[(topic, number)] += len(batch)
            found += batch
        return found

    def rewind(self, fallbacks: dict[int, int]) -> dict[int, Recovery]:
        recoveries = {}
        topics = self.log.config.topics
        for number, fallback in fallbacks.items():
            offset, epoch = self.log.committed.get((topics.records, number), (fallback, ""))
            asks_from, metadata = self.log.committed.get((topics.asks, number), (0, ""))
            recoveries[number] = Recovery(offset, offset, {}, asks_from, metadata, stamp=decode_stamp(epoch))
            self.positions[(topics.records, number)] = offset
            self.positions[(topics.asks, number)] = asks_from
        return recoveries

    def stamp(self, stamps: Mapping[int, tuple[int, Stamp]]) -> None:
        topic = self.log.config.topics.records
        positions = [Position(topic, number, offset, stamp.encode()) for number, (offset, stamp) in stamps.items()]
        self.log.commit(Epoch((), tuple(positions)))

    def hold(self, numbers: Collection[int]) -> None:
        self.held = set(numbers)

    def close(self) -> None:
        self.listener.revoked(sorted({number for _, number in self.positions}))
        self.positions.clear()

    def abandon(self) -> None:
        self.positions.clear()

    @property
    def is_drained(self) -> bool:
        return all(position >= len(self.log.read(*where)) for where, position in self.positions.items())


class FakeSink:
    """Commits an epoch to the Log whole, or as `fate` says: "abort" loses it, "lost reply" commits and says abort."""

    def __init__(self, log: Log, fate: Callable[[], str] = lambda: "ok") -> None:
        self.log, self.fate = log, fate
        self.num_epochs = 0

    def commit(self, epoch: Epoch, membership: Any, timeout_s: float | None = None) -> None:
        fate = self.fate()
        if fate != "abort":
            self.log.commit(epoch)
        if fate != "ok":
            raise EpochAborted(fate)
        self.num_epochs += 1

    def close(self) -> None:
        pass


class FakeControl:
    """Reads the control topic of a Log."""

    def __init__(self, log: Log) -> None:
        self.log, self.position = log, 0

    def poll(self) -> list[Message]:
        messages = self.log.read(self.log.config.topics.control)[self.position :]
        self.position += len(messages)
        return messages


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
