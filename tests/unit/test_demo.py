"""The parts of the demo that need no Kafka: what is due, what is played, what the settings file says, what is told."""

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from streamproc.answers import Received
from streamproc.cli.demo import every
from streamproc.config import Config, Prompts
from streamproc.demo.board import Board, header, rows
from streamproc.demo.cluster import DemoKafka
from streamproc.demo.judge import Accuracy, Judge, Seen
from streamproc.demo.plan import ASKS, TOPICS, Plan, demo_config, standing_questions, write_config
from streamproc.demo.summary import Numbers, Summary
from streamproc.demo.verify import Verdict, claims_of, difference, sample
from streamproc.demo.watch import Due, Watch
from streamproc.demo.worker import own_environment
from streamproc.kafka.producing import Position
from streamproc.market.questions import KINDS
from streamproc.market.rendering import market_model, read_rendering
from streamproc.messages import Answer, AsOf, Query, parse_query
from streamproc.records import Trade
from streamproc.settings import load_config

IDLE, EVERY_3 = Query("idle", "Now?"), Query("third", "And now?", every=3)
ON_CHANGE = Query("news", "Anything new?", every=1, emit="change")


def watch_of(log: dict[str, int], before: dict[str, int]) -> Watch:
    """A watch that has seen so many records of each session, some of them in earlier runs; no Kafka behind it."""
    watch = Watch.__new__(Watch)
    watch.log = {session: [seen(session, 10 * n) for n in range(count)] for session, count in log.items()}
    watch.before, watch.flash, watch.newest = before, [], {}
    watch.num_answers = watch.num_answer_tokens = 0
    watch._written_ms, watch.judge = {}, Judge(KINDS.values())
    return watch


def seen(session: str, offset: int) -> Seen:
    return Seen(0, offset, Trade(session, offset, "1.0", "1"))


def answer(query: Query = IDLE, session: str = "A", offset: int = 0, text: str = "up") -> Answer:
    as_of = AsOf("demo.records", 0, 0, offset, 0)
    return Answer("id", "flash", session, query.question, as_of, text, text, "model", query.id, query.version)


def received(found: Answer, timestamp_ms: int = 0) -> Received:
    return Received(found, Position(0, 0), timestamp_ms, {"num_tokens": 2})


def test_triggers_count_the_records_of_earlier_runs():
    watch = watch_of({"A": 7}, {"A": 2})
    assert watch.due([EVERY_3]) == {Due("third", "A", 20), Due("third", "A", 50)}


def test_an_idle_question_owes_an_answer_to_the_newest_record_of_each_session_that_moved():
    watch = watch_of({"A": 4, "B": 2, "C": 1}, {"B": 2})
    assert watch.due([IDLE]) == {Due("idle", "A", 30), Due("idle", "C", 0)}


def test_a_question_that_answers_on_change_owes_nothing_that_can_be_counted():
    assert watch_of({"A": 9}, {}).due([ON_CHANGE]) == set()


def test_what_has_come_is_not_missing():
    watch = watch_of({"A": 3, "B": 3}, {})
    watch.flash = [received(answer(EVERY_3, "A", 20))]
    assert watch.missing([EVERY_3]) == [Due("third", "B", 20)]


def test_freshness_counts_only_answers_about_records_of_this_run():
    watch = watch_of({"A": 2}, {"A": 1})
    watch._written_ms = {(0, 10): 1_000}
    watch.flash = [received(answer(offset=0), 9_000), received(answer(offset=10), 1_040)]
    assert watch.freshness_ms() == 40


def test_the_board_writes_out_what_a_terminal_would_act_on():
    watch = watch_of({"A": 1}, {})
    watch.newest = {("A", "idle"): received(answer(text="\x1b[2Jup\n"), 500)}
    (row,) = rows(watch, 2_000)
    assert (row.text, row.truth, row.is_right) == ("\\x1b[2Jup\\n", "", None)
    assert (row.as_of, row.age_s) == ("0:0", 1.5)
    assert header(watch, 2.0).startswith("1 records | 0.5 records/s | 1 sessions")
    assert header(watch, 2.0).endswith("freshness p50 -")
    watch.judge = SimpleNamespace(accuracy=lambda: Accuracy(2, 1))
    assert header(watch, 2.0).endswith("1 of 2 right")


def test_the_sample_starts_anew_where_it_ends():
    assert sum(1 for _ in Plan(5_000, 1.0).records()) == 5_000


@pytest.mark.parametrize(("num_records", "points"), [(500, [166, 333, 500]), (3, [1, 2, 3]), (1, [1])])
def test_questions_are_asked_on_the_way_and_at_the_end(num_records, points):
    assert list(Plan(num_records, 1.0).ask_points()) == points


@pytest.mark.parametrize("query", standing_questions(KINDS), ids=lambda query: query.id)
def test_the_questions_can_be_registered(query):
    assert parse_query(query.id, json.loads(query.encode())) == query


def test_every_ask_is_of_a_kind_that_a_session_with_trades_can_answer():
    assert not any(KINDS[name].is_about_quotes for name in ASKS)


def test_the_worker_gets_the_users_model_and_kafka_and_the_demos_topics(tmp_path):
    given = load_config(None, ("engine.step_tokens=128", "sasl.password=s\"e'c", 'prompts.stop=["\\n"]'), environ={})
    config = demo_config(given, "127.0.0.1:1")
    file = tmp_path / "streamproc.toml"
    write_config(config, file)
    assert file.stat().st_mode & 0o077 == 0
    assert tomllib.loads(file.read_text())["topics"]["records"] == "demo.records"
    read = load_config(file, environ={})
    assert (read.topics, read.engine, read.prompts, read.worker) == (
        TOPICS,
        config.engine,
        config.prompts,
        config.worker,
    )
    assert read.kafka == {"sasl.password": "s\"e'c", "bootstrap.servers": "127.0.0.1:1"}


def test_the_folders_own_rendering_is_left_in_force(tmp_path):
    given = load_config(None, ("prompts.trade={px}\n", 'prompts.stop=["\\n"]'), environ={})
    config = demo_config(given, "127.0.0.1:1")
    file = tmp_path / "streamproc.toml"
    write_config(config, file)
    read, own = load_config(file, environ={}), read_rendering(market_model())
    assert tomllib.loads(file.read_text())["prompts"] == {"trade": "{px}\n", "stop": ["\n"]}
    assert own.prompts_of(read) == own.prompts_of(config)
    assert own.prompts_of(read).trade == "{px}\n"
    assert own.prompts_of(read).question == own.prompts["question"] != Prompts().question


def test_settings_of_the_environment_do_not_overrule_the_demos_own():
    environ = {"STREAMPROC_TOPICS_RECORDS": "mine", "STREAMPROC_STATE_DIR": "/s", "PATH": "/bin"}
    assert own_environment(environ) == {"STREAMPROC_STATE_DIR": "/s", "PATH": "/bin"}


def test_the_sample_of_answers_is_the_same_every_time_and_holds_an_ask():
    watch = watch_of({"A": 40}, {})
    watch.flash = [received(answer(offset=10 * n)) for n in range(40)]
    asked = [SimpleNamespace(ask="ask", answer=answer())]
    claims = claims_of(watch, [], [IDLE])
    assert len(claims) == 40
    assert sample(claims) == sample(claims)
    assert len(sample(claims)) == 16
    assert claims_of(watch, asked, [IDLE])[-1].source == "ask"


def test_answers_to_questions_of_other_people_are_not_checked():
    watch = watch_of({"A": 1}, {})
    watch.flash = [received(answer(EVERY_3))]
    assert claims_of(watch, [], [IDLE]) == []


@pytest.mark.parametrize(("said", "shown"), [("up", None), ("down", "idle of A as of 0:0: its text is 'down'")])
def test_a_difference_says_which_answer_and_what(monkeypatch, said, shown):
    def recompute(engine, source, session, records, num_records):
        assert (len(records), num_records) == (1, 1)
        return SimpleNamespace(question="Now?", text="up")

    monkeypatch.setattr("streamproc.demo.verify.recompute", recompute)
    watch = watch_of({"A": 3}, {})
    (claim,) = claims_of(SimpleNamespace(flash=[received(answer(text=said))]), [], [IDLE])
    found = difference(SimpleNamespace(fingerprint="model"), claim, watch.log)
    assert found is shown if shown is None else found.startswith(shown)


def summary(verdict: Verdict, **kafka: object) -> Summary:
    numbers = Numbers(500, 190, ("A", "B", "C"), 3, 31.2, 25.0, 80.0, 60_000)
    broker = DemoKafka("127.0.0.1:9092", "apache-kafka 4.2.1", **kafka)
    return Summary(broker, numbers, verdict, Accuracy(193, 190), Path("/state/demo"))


def test_the_summary_starts_with_the_promised_keys():
    doc = summary(Verdict(16, (), True)).doc()
    assert list(doc)[:7] == ["broker", "records", "answers", "sessions", "asks", "seconds", "exact"]
    assert (doc["broker"], doc["sessions"], doc["exact"]) == ("apache-kafka 4.2.1", 3, True)
    assert (doc["accuracy"], doc["judged"]) == (0.9845, 193)


@pytest.mark.parametrize("verdict", [Verdict(0, (), True), Verdict(16, ("idle of A",), True)])
def test_nothing_checked_or_any_difference_is_not_exact(verdict):
    assert summary(verdict).doc()["exact"] is False


def test_the_text_says_what_to_type_next_and_how_to_stop():
    text = summary(Verdict(16, (), True), started=True).text()
    assert "export STREAMPROC_BOOTSTRAP_SERVERS=127.0.0.1:9092" in text
    assert "accuracy   0.9845: 190 of 193 answers" in text
    for line in ("streamproc broker start", "streamproc run --config", "streamproc ask", "streamproc broker stop"):
        assert line in text


def test_lines_come_only_every_few_seconds():
    now, shown = [0.0], []
    draw = every(5.0, shown.append, lambda: now[0])
    for second in range(12):
        now[0] = second
        draw(Board(str(second), ()))
    assert [board.header for board in shown] == ["5", "10"]


def test_the_default_config_keeps_a_users_topics_out_of_it():
    assert demo_config(Config(), "x:1").topics != Config().topics
