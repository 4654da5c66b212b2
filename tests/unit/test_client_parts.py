"""What the client and its commands decide without a broker."""

import pytest
from click.testing import CliRunner

from streamproc.answers import NOW, PAST, STATE, AnswerStream, Received, Wanted, answer_in, timings_in
from streamproc.answertypes import AnswerType
from streamproc.cli.answers import row_of
from streamproc.cli.ask import parse_timeout_s
from streamproc.cli.main import cli
from streamproc.cli.query import answer_fields, doc_of, query_doc, read_schema
from streamproc.client import Client, Position, checked_query, checked_record, session_partition
from streamproc.config import Config
from streamproc.errors import BadQuery, BadRecord, Usage
from streamproc.kafka.tailing import Message
from streamproc.messages import Answer, AsOf, Query, parse_query
from streamproc.records import Trade
from streamproc.values import printable

NOW_NS = 1_700_000_000_000_000_000


def answer(session: str, query: str | None = "trend", text: str | None = "up", error: str | None = None) -> Answer:
    kind = "flash" if query else "ask"
    return Answer("1", kind, session, "Up?", AsOf("r", 3, 0, 7, 5), text, text, "m", query, None, error)


def message(offset: int, value: Answer | bytes | None, partition: int = 0) -> Message:
    raw = value.encode() if isinstance(value, Answer) else value
    return Message(partition, offset, 1000 + offset, b"key", raw, {"timings": b'{"queue_ms": 0.5}'})


class FakeTail:
    """Messages in batches; time passes by 0.1 s a poll."""

    def __init__(self, *batches: list[Message]) -> None:
        self.positions = {0: 0, 1: 0}
        self.batches = list(batches)
        self.now_s = 0.0
        self.closed = False

    def clock(self) -> float:
        return self.now_s

    def poll(self, timeout_s: float) -> list[Message]:
        self.now_s += 0.1
        batch = self.batches.pop(0) if self.batches else []
        for found in batch:
            self.positions[found.partition] = found.offset + 1
        return batch

    def read_to_end(self):
        while self.batches:
            yield from self.poll(0.1)

    def read_by_time(self):
        yield from sorted(self.read_to_end(), key=lambda message: message.timestamp_ms)

    def close(self) -> None:
        self.closed = True


def stream(tail: FakeTail, wanted: Wanted = Wanted(), start: str = PAST, timeout_s: float | None = 0, limit=None):  # noqa: B008
    return AnswerStream(tail, wanted, start, timeout_s, limit)


def sessions_in(answers: AnswerStream) -> list[str]:
    return [received.answer.session for received in answers]


def test_a_dict_in_any_feeds_words_is_a_record_and_happened_now():
    found = checked_record({"symbol": "BTC", "price": 45123.5, "size": 0.2}, lambda: NOW_NS)
    assert found == Trade("BTC", NOW_NS, "45123.5", "0.2")


def test_the_time_of_a_dict_is_kept():
    assert checked_record({"sym": "A", "px": "1", "sz": "2", "ts": 1610064000}, lambda: NOW_NS).ts_event_ns < NOW_NS
    wire = {"kind": "trade", "sym": "A", "px": "1", "sz": "2", "ts_event_ns": 5}
    assert checked_record(wire, lambda: NOW_NS) == Trade("A", 5, "1", "2")


def test_a_record_is_checked_and_its_numbers_become_text():
    assert checked_record(Trade("A", 5, 1.5, 2), lambda: NOW_NS) == Trade("A", 5, "1.5", "2")
    with pytest.raises(BadRecord, match="sz: -2 is negative"):
        checked_record(Trade("A", 5, "1.5", "-2"), lambda: NOW_NS)
    with pytest.raises(BadRecord, match="no kind has these columns"):
        checked_record({"symbol": "A"}, lambda: NOW_NS)


def test_a_query_is_checked_before_anybody_is_told():
    assert checked_query(Query("a", "Up?", "BTC*", 5)) == Query("a", "Up?", "BTC*", 5)
    for wrong in (Query("a b", "Up?"), Query("a", ""), Query("a", "\ud800"), Query("a", "Up?", emit="no")):
        with pytest.raises(BadQuery):
            checked_query(wrong)


def test_sessions_that_are_partitions_go_to_their_partition():
    assert session_partition("partition-3", 4) == 3
    for wrong in ("partition-4", "BTCUSDT", "partition--1", "partition-"):
        with pytest.raises(Usage, match="sessions are partition-0 to partition-3"):
            session_partition(wrong, 4)


def test_the_address_that_is_given_wins_over_the_config():
    config = Config(kafka={"bootstrap.servers": "elsewhere:9092", "client.id": "me"})
    kafka = Client("127.0.0.1:1", config).config.kafka
    assert kafka == {"bootstrap.servers": "127.0.0.1:1", "client.id": "me"}


def test_a_stream_ends_at_the_present_end_and_says_where_it_is():
    tail = FakeTail([message(0, answer("A")), message(3, answer("B"), 1)], [message(1, answer("C"))])
    answers = stream(tail)
    first = next(answers)
    assert (first.position, first.timestamp_ms, first.timings) == (Position(0, 0), 1000, {"queue_ms": 0.5})
    assert answers.position == "0:1,1:0"
    assert sessions_in(answers) == ["C", "B"]
    assert answers.position == "0:2,1:4"
    assert tail.closed


def test_a_stream_can_be_read_on_from_its_position_without_loss():
    tail = FakeTail([message(offset, answer(str(offset))) for offset in range(5)])
    answers = stream(tail, limit=2)
    assert sessions_in(answers) == ["0", "1"]
    assert answers.position == "0:2,1:0"


def test_a_stream_holds_only_what_is_wanted():
    batch = [message(0, answer("BTC")), message(1, answer("ETH")), message(2, answer("BTC", "other"))]
    assert sessions_in(stream(FakeTail(batch), Wanted("trend", "B*"))) == ["BTC"]
    assert sessions_in(stream(FakeTail(batch), Wanted(None, "E*"))) == ["ETH"]
    assert sessions_in(stream(FakeTail(batch), Wanted("other"))) == ["BTC"]


def test_state_is_the_newest_answer_of_every_query_and_session():
    tail = FakeTail(
        [message(0, answer("A", text="old")), message(1, answer("B")), message(2, answer("Q", None))],
        [message(3, answer("A", text="new")), message(4, answer("A", "other"))],
    )
    found = [(r.answer.session, r.answer.query_id, r.answer.text) for r in stream(tail, start=STATE)]
    assert found == [("B", "trend", "up"), ("A", "trend", "new"), ("A", "other", "up")]


def test_a_live_stream_ends_after_so_long_without_an_answer():
    tail = FakeTail([], [message(0, answer("A"))], [], [message(1, answer("other"))])
    assert sessions_in(stream(tail, Wanted(None, "A"), NOW, timeout_s=0.45)) == ["A"]
    assert 0.6 <= tail.now_s <= 0.8


def test_a_stream_from_the_past_is_in_order_of_time_up_to_now_and_then_live():
    past = [message(5, answer("late")), message(2, answer("early"), 1)]
    tail = FakeTail(past, [message(3, answer("middle"), 1)])
    answers = stream(tail, timeout_s=1.0)
    assert next(answers).answer.session == "early"
    assert answers.position == "0:0,1:3"
    assert next(answers).answer.session == "middle"
    tail.batches = [[message(6, answer("new"))], [message(4, answer("newer, of an older clock"), 1)]]
    assert sessions_in(answers) == ["late", "new", "newer, of an older clock"]


def test_a_closed_stream_has_no_more_answers():
    tail = FakeTail([message(0, answer("A"))])
    with stream(tail) as answers:
        pass
    assert tail.closed
    assert list(answers) == []


def test_what_is_no_answer_is_left_out_with_a_word(caplog):
    tail = FakeTail([message(0, b"{"), message(1, None), message(2, answer("A"))])
    assert sessions_in(stream(tail)) == ["A"]
    assert [record.getMessage().split(" is left out")[0] for record in caplog.records] == [
        "answers topic: 0:0",
        "answers topic: 0:1",
    ]


@pytest.mark.parametrize("header", [None, b"", b"{", b"[]", b"\xff"])
def test_timings_that_cannot_be_read_are_none(header):
    assert timings_in(header) == {}


def test_a_typed_query_is_the_control_messages_fields():
    options = {"sessions": None, "emit": "change", "max_tokens": None, "answer": None, "choices": ("a", "b"),
               "pattern": None, "schema": None}
    options["stop"] = ()
    assert query_doc("Up?", 10, None, **options) == {
        "question": "Up?",
        "trigger": "every 10 records",
        "emit": "change",
        "answer": {"type": "choice", "choices": ["a", "b"]},
    }
    with pytest.raises(Usage, match="choose one"):
        query_doc("Up?", 10, "idle", **options)


def test_a_typed_pattern_or_schema_is_an_answers_type(tmp_path):
    path = tmp_path / "signal.json"
    path.write_text('{"type": "object"}')
    typed = {"answer": None, "choices": (), "pattern": None, "schema": None}
    assert answer_fields(typed) is None
    assert answer_fields({**typed, "answer": "number"}) == {"type": "number"}
    assert answer_fields({**typed, "pattern": "a+"}) == {"type": "regex", "pattern": "a+"}
    assert answer_fields({**typed, "schema": path}) == {"type": "json", "schema": {"type": "object"}}
    both = answer_fields({**typed, "answer": "text", "pattern": "a+"})
    with pytest.raises(BadQuery, match=r"answer\.pattern: a regex needs"):
        parse_query("q", {"question": "Up?", "answer": both})
    path.write_text("{")
    with pytest.raises(Usage, match=r"signal\.json: not JSON"):
        read_schema(path)
    with pytest.raises(Usage, match="nothing: cannot be read"):
        read_schema(tmp_path / "nothing")


def test_a_query_is_shown_with_what_its_answers_type_has():
    shown = doc_of(Query("q", "Up?", answer=AnswerType("json", schema='{"type":"object"}')))
    assert shown["answer"] == {"type": "json", "schema": {"type": "object"}}
    assert doc_of(Query("q", "Up?"))["answer"] == {"type": "text"}


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("500ms", 0.5), ("2m30s", 150)])
def test_timeouts_are_spans(text, seconds):
    assert parse_timeout_s(text) == seconds


@pytest.mark.parametrize("text", ["0s", "soon", "-5s", "2d"])
def test_timeouts_that_are_none_are_refused(text):
    with pytest.raises(Usage, match="--timeout"):
        parse_timeout_s(text)


def test_an_answer_is_one_line_whose_columns_awk_can_split():
    received = Received(answer("BTC", text="up\nor \x1b[1mdown"), Position(0, 4), 1610064000278)
    assert row_of(received).split() == [
        "2021-01-08T00:00:00.278Z", "BTC", "trend", "3:7", "up\\nor", "\\x1b[1mdown"
    ]  # fmt: skip
    failed = Received(answer("BTC", None, None, "no such session"), Position(0, 4), 1610064000278)
    assert row_of(failed).split(maxsplit=4)[2:] == ["-", "3:7", "error: no such session"]


def test_printable_text_stays_as_it_is():
    assert printable("über €5 ✓") == "über €5 ✓"


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["produce", "none.csv"], "none.csv: no such file"),
        (["produce", "sample", "--rate", "1", "--speed", "2"], "choose one"),
        (["produce", "sample", "--kind", "bar"], "leave --kind and --symbol out"),
        (["produce", "sample", "--rate", "fast"], "use N/s such as 100/s"),
        (["query", "add", "a"], "needs an id and a question"),
        (["query", "add", "a", "{x}"], "unknown placeholder {x}"),
        (["query", "add", "a", "Up?", "--every", "0"], "trigger: 'every 0 records' is unknown"),
        (["query", "add", "a", "--file", "q.toml"], "the file says everything"),
        (["query", "add", "--file", "none.toml"], "none.toml: cannot be read"),
        (["ask", "Up?", "--session", "A", "--timeout", "soon"], "--timeout 'soon'"),
        (["ask", "Up?", "--session", "A", "--answer", "choice"], "a choice needs its words"),
        (["ask", "Up?"], "Missing option '--session'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_2(args, reason):
    result = CliRunner().invoke(cli, [*args, "-b", "127.0.0.1:1"])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("streamproc: ")
    assert result.stderr.count("\n") == 1
    assert reason in result.stderr


def test_a_message_becomes_what_was_received_or_nothing():
    assert answer_in(message(0, answer("A"))).answer == answer("A")
    assert answer_in(message(0, b"[]")) is None
