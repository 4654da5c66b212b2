"""A replay on fakes: the answers are the live run's, byte for byte, and nothing but answers comes out."""

import random
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FakeClock, FakeControl, FakeEngine, FakeRenderer, FakeRunner, FakeSink, FakeSource, Log

from streamproc.config import Config, Engine, Worker
from streamproc.errors import Unavailable, Usage
from streamproc.messages import Answer, Query, decode_answer
from streamproc.processor import StreamProcessor
from streamproc.records import Trade
from streamproc.replay.run import Replay, Replayed
from streamproc.replay.sink import MAX_TOLD, FileOutput, Output, TopicOutput, in_log_order, place
from streamproc.state.epoch import Epoch, Message, Outgoing
from streamproc.state.partition import Recovery

CONFIG = Config(
    engine=Engine(context_tokens=160, keep=0.5, step_tokens=48, block_size=4),
    worker=Worker(slot="test", commit_interval_ms=10, max_question_tokens=60, max_answer_tokens=12),
)
QUERIES = [
    Query("two", "Is {last} {count}?", every=2, max_tokens=5),
    Query("five", "{session} vwap {vwap} hi {high}", "S1*", every=5, max_tokens=9),
    Query("also-two", "up?", every=2, max_tokens=1),
]
NUM_RECORDS = 160


class Stretch:
    """Offsets `begin` to `end` of every partition of a Log, in batches of any size."""

    membership = None
    num_records = 0

    def __init__(self, log: Log, begin: int, end: int, batch: int) -> None:
        self.log, self.begin, self.batch = log, begin, batch
        self.positions = {0: 0, 1: 0}
        self.ends = {number: min(end, len(self._read(number))) for number in self.positions}
        self.held: set[int] = set()

    def _read(self, number: int) -> list[Message]:
        return self.log.read(self.log.config.topics.records, number)

    @property
    def now_ms(self) -> int:
        return max(self.positions.values()) * 7

    @property
    def is_read(self) -> bool:
        return self.positions == self.ends

    def recoveries(self) -> dict[int, Recovery]:
        return {number: Recovery(0, self.begin, {}, 0) for number in self.positions}

    def poll(self, timeout_s: float) -> list[Message]:
        found: list[Message] = []
        for number, position in self.positions.items():
            if number not in self.held:
                found += self._read(number)[position : min(position + self.batch, self.ends[number])]
        for message in found:
            self.positions[message.partition] = message.offset + 1
        self.num_records += sum(message.offset >= self.begin for message in found)
        return found

    def rewind(self, fallbacks: dict[int, int]) -> dict[int, Recovery]:
        raise AssertionError("not in a replay")

    def stamp(self, stamps: object) -> None:
        """Nobody comes after us."""

    def hold(self, numbers: Collection[int]) -> None:
        self.held = set(numbers)

    def close(self) -> None:
        pass


class Kept:
    """An output in memory."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.is_published = False

    def write(self, answers: Sequence[tuple[Answer, Outgoing]]) -> None:
        self.values += [message.value or b"" for _, message in answers]

    def publish(self) -> None:
        self.is_published = True

    def close(self) -> None:
        pass


def engine() -> FakeEngine:
    return FakeEngine(FakeRunner(200, 4), FakeRenderer())


@pytest.fixture
def log() -> Log:
    """Two partitions with three symbols, and what a live worker has made of them."""
    log, rng = Log(CONFIG), random.Random(7)
    for _ in range(NUM_RECORDS):
        number = rng.randrange(3)
        log.produce(number % 2, Trade(f"S{number}", rng.randrange(10**6), f"{rng.randrange(90, 110)}.5", "1"))
    for query in QUERIES:
        log.append(CONFIG.topics.control, 0, query.id.encode(), query.encode())
    run_live(log)
    return log


def run_live(log: Log) -> None:
    clock = FakeClock()
    processor = StreamProcessor(CONFIG, engine(), FakeSink(log), FakeControl(log), clock.clock())
    source = FakeSource(log)
    source.listener = processor
    processor.connect(source)
    source.assign((0, 1))
    while not (source.is_drained and processor.is_at_rest):
        clock.now_s += 0.02
        processor.step()
    processor.close()


def live_values(log: Log, begin: int = 0, end: int = NUM_RECORDS) -> list[bytes]:
    """Answers of the live run whose as-of offset is in [begin, end), by partition, offset and query."""
    values = [message.value or b"" for message in log.read(CONFIG.topics.answers)]
    return sorted(
        (value for value in values if begin <= place(decode_answer(value))[1] < end),
        key=lambda value: place(decode_answer(value)),
    )


def replayed(log: Log, output: Output, begin: int = 0, end: int = NUM_RECORDS, batch: int = 7) -> Replayed:
    return Replay(CONFIG, engine(), Stretch(log, begin, end, batch), output, pytest.fail).run(QUERIES)


@pytest.mark.parametrize("batch", [1, 7, 500])
@pytest.mark.parametrize(("begin", "end"), [(0, NUM_RECORDS), (31, NUM_RECORDS), (31, 49), (0, 1)])
def test_a_replay_gives_the_bytes_of_the_live_run_whatever_its_batches(log: Log, begin: int, end: int, batch: int):
    output = Kept()
    done = replayed(log, output, begin, end, batch)
    assert sorted(output.values, key=lambda value: place(decode_answer(value))) == live_values(log, begin, end)
    assert done.answers == len(output.values)
    assert done.records == sum(min(end, len(log.read(CONFIG.topics.records, n))) - begin for n in (0, 1))
    assert output.is_published


def test_a_replay_leaves_the_live_topics_and_offsets_alone(log: Log):
    before = {where: list(messages) for where, messages in log.topics.items()}, dict(log.committed)
    replayed(log, Kept())
    assert (log.topics, log.committed) == before


def test_two_replays_write_the_same_file_whatever_their_batches(log: Log, tmp_path: Path):
    contents = []
    for batch in (1, 50):
        path = tmp_path / f"{batch}.jsonl"
        output = FileOutput(path)
        replayed(log, output, batch=batch)
        output.close()
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] == b"".join(value + b"\n" for value in live_values(log))
    assert sorted(item.name for item in tmp_path.iterdir()) == ["1.jsonl", "50.jsonl"]


def test_a_file_that_is_not_published_leaves_nothing_and_spares_the_old_one(log: Log, tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text("old")
    output = FileOutput(path)
    (value, *_) = live_values(log)
    output.write([(decode_answer(value), Outgoing("a", None, value))])
    output.close()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_refused_with_one_line(tmp_path: Path):
    with pytest.raises(Usage, match="cannot write in the folder"):
        FileOutput(tmp_path / "none" / "a.jsonl")


def test_a_topic_gets_the_answers_only_under_their_own_keys(log: Log):
    sink = FakeSink(Log(CONFIG))
    replayed(log, TopicOutput(sink, "answers.bt"))
    assert {topic for topic, _ in sink.log.topics} == {"answers.bt"}
    assert not sink.log.committed
    found = {(message.key, message.value) for message in sink.log.read("answers.bt")}
    assert found == {(message.key, message.value) for message in log.read(CONFIG.topics.answers)}


def test_an_epoch_in_doubt_ends_the_replay_because_a_second_try_could_write_twice(log: Log):
    output = TopicOutput(FakeSink(Log(CONFIG), lambda: "lost reply"), "answers.bt")
    with pytest.raises(Unavailable, match=r"answers\.bt has a part of the answers"):
        replayed(log, output)


def test_bad_records_are_told_and_counted_and_the_replay_goes_on():
    log, told = Log(CONFIG), list[str]()
    for _ in range(MAX_TOLD + 5):
        log.append(CONFIG.topics.records, 0, b"A", b"{not json")
    for _ in range(2):
        log.produce(0, Trade("A", 5, "1.5", "2"))
    done = Replay(CONFIG, engine(), Stretch(log, 0, NUM_RECORDS, 7), Kept(), told.append).run(QUERIES)
    assert (done.dead, done.answers) == (MAX_TOLD + 5, 2)
    assert len(told) == MAX_TOLD
    assert told[0].startswith(f"{CONFIG.topics.records} partition 0 offset 0: not JSON")


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (replace(QUERIES[0], every=None), "trigger idle depends on idle time"),
        (replace(QUERIES[0], question="x" * 100), r"worker\.max_question_tokens"),
        (replace(QUERIES[0], max_tokens=13), r"worker\.max_answer_tokens"),
    ],
)
def test_a_question_that_would_not_be_answered_is_refused_before_the_first_record(query: Query, reason: str):
    with pytest.raises(Usage, match=reason):
        Replay(CONFIG, engine(), Stretch(Log(CONFIG), 0, 9, 1), Kept(), pytest.fail).run([query])


def test_answers_of_one_offset_are_ordered_by_query(log: Log):
    shuffled = live_values(log)
    random.Random(1).shuffle(shuffled)
    epoch = Epoch(tuple(Outgoing("a", None, value) for value in shuffled), ())
    assert [message.value for _, message in in_log_order(epoch.messages)] == live_values(log)
