"""An evaluation on a model that answers from what it reads: what is right and wrong is told, and nothing else."""

import gzip
import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from reading import PlainRenderer, ReadingEngine, ReadingRunner

from streamproc.config import Config, Engine, Worker
from streamproc.errors import BadRecord, StreamprocError, Usage
from streamproc.evaluate import Outcome, Report, Settings, evaluate, evaluate_engine
from streamproc.evaluate.feeds import MOST_RECORDS, Synthetic, open_feeds
from streamproc.evaluate.plan import Point, bound_of, bounds_of, draw_points
from streamproc.evaluate.play import Play
from streamproc.evaluate.run import CONTEXT_TOKENS
from streamproc.market.questions import KINDS
from streamproc.market.rendering import Rendering
from streamproc.market.synthetic import feed, instruments
from streamproc.messages import AnswerType
from streamproc.records import SIDES, Record

CONTEXT = 1024
CONFIG = Config(
    engine=Engine(context_tokens=CONTEXT, step_tokens=256, block_size=16),
    worker=Worker(slot="test", max_question_tokens=200, max_answer_tokens=40),
    sources={"engine.context_tokens": "test"},
)
SETTINGS = Settings(asks=320, seed=7)


def engine(alter: Callable[[str, str], str] = lambda kind, truth: truth, forgets: int = 0) -> ReadingEngine:
    return ReadingEngine(ReadingRunner(alter, forgets), PlainRenderer())


@pytest.fixture(scope="module")
def report() -> Report:
    """Of a model that is always right."""
    return evaluate_engine(engine(), CONFIG, SETTINGS)


def test_a_model_that_is_always_right_is_told_to_be(report):
    wrong = [outcome for outcome in report.outcomes if not outcome.is_right]
    assert not wrong
    doc = report.doc()
    assert (doc["overall"], doc["asked"], doc["right"], doc["unparsed"], doc["errors"]) == (1.0, 320, 320, 0, 0)
    assert doc["by_question"] == dict.fromkeys(KINDS, 1.0)
    assert doc["by_context"] == dict.fromkeys(["256", "512", "1024"], 1.0)
    assert doc["after_hop"]["share"] == 1.0
    assert (doc["model"], doc["feed"], doc["fingerprint"]) == (CONFIG.engine.model, "synthetic", "fake")


def test_what_a_model_gets_wrong_shows_in_that_question_and_nowhere_else():
    flipped = {"yes": "no", "no": "yes"}
    found = evaluate_engine(engine(lambda kind, truth: flipped[truth] if kind == "above" else truth), CONFIG, SETTINGS)
    assert found.doc()["by_question"] == {**dict.fromkeys(KINDS, 1.0), "above": 0.0}
    assert found.doc()["unparsed"] == 0
    assert {outcome.kind for outcome in found.outcomes if not outcome.is_right} == {"above"}


def test_an_answer_of_the_wrong_type_is_wrong_and_counted():
    found = evaluate_engine(engine(lambda kind, truth: "about 5" if kind == "bid" else truth), CONFIG, SETTINGS)
    asked = sum(outcome.kind == "bid" for outcome in found.outcomes)
    assert found.doc()["by_question"]["bid"] == 0.0
    assert found.doc()["unparsed"] == asked > 0


def test_one_record_too_few_in_what_a_model_has_seen_shows():
    """Truth is computed over all records up to the as-of offset: who has missed the newest one is caught."""
    found = evaluate_engine(engine(forgets=1), CONFIG, SETTINGS)
    assert 0.3 < found.overall < 0.9


def test_kinds_and_contexts_are_asked_about_equally_often(report):
    of_kind = Counter(outcome.kind for outcome in report.outcomes)
    of_size = Counter(bound_of(outcome.context_tokens) for outcome in report.outcomes)
    both = Counter((outcome.kind, bound_of(outcome.context_tokens)) for outcome in report.outcomes)
    assert of_kind.keys() == KINDS.keys()
    assert max(of_kind.values()) - min(of_kind.values()) <= 6
    assert of_size.keys() == {256, 512, 1024}
    assert max(of_size.values()) - min(of_size.values()) <= SETTINGS.per_point
    assert min(both[kind, size] for kind in KINDS for size in of_size) >= 5


def test_questions_are_asked_after_hops_over_the_new_generation(report):
    hopped = [outcome for outcome in report.outcomes if outcome.has_hopped]
    assert len(hopped) >= 0.1 * len(report.outcomes)
    assert all(outcome.from_offset > 0 for outcome in hopped)
    assert all(outcome.from_offset == 0 for outcome in report.outcomes if not outcome.has_hopped)


def test_the_context_that_is_reported_is_the_one_that_was_read(report):
    """Tokens counted from the answer's own as-of are those of the plan, and never more than a context."""
    assert all(len(PlainRenderer().prefix_ids) < outcome.context_tokens <= CONTEXT for outcome in report.outcomes)
    for outcome in report.outcomes[:20]:
        records = stretch_of(outcome)
        texts = [PlainRenderer.text(record) for record in records[outcome.from_offset : outcome.offset + 1]]
        assert outcome.context_tokens == len(PlainRenderer().prefix_ids) + sum(map(len, texts))


def stretch_of(outcome: Outcome) -> list[Record]:
    source = Synthetic(SETTINGS.seed).stretch(outcome.partition, True, 0)
    return [next(source) for _ in range(outcome.offset + 1)]


def test_records_that_read_differently_after_a_hop_are_counted_as_they_read():
    made = engine()
    made.renderer = PlainRenderer(looks_back=True)
    found = evaluate_engine(made, CONFIG, SETTINGS)
    assert found.overall == 1.0
    assert sum(item.has_hopped for item in found.outcomes) > 20
    assert max(item.context_tokens for item in found.outcomes) <= CONTEXT


def test_the_same_seed_asks_the_same_and_another_does_not(report):
    def asked(found: Report) -> set[tuple[int, int, str, str]]:
        return {(item.partition, item.offset, item.question, item.truth) for item in found.outcomes}

    assert asked(evaluate_engine(engine(), CONFIG, SETTINGS)) == asked(report)
    other = evaluate_engine(engine(), CONFIG, replace(SETTINGS, seed=8))
    assert not asked(other) & asked(report)


def test_no_question_is_asked_twice_at_one_place(report):
    asked = Counter((item.partition, item.offset, item.session, item.kind, item.symbol) for item in report.outcomes)
    assert set(asked.values()) == {1}


def test_a_session_of_several_symbols_names_them_and_one_of_one_in_half_of_the_cases(report):
    named = Counter[tuple[bool, bool]]()
    for item in report.outcomes:
        symbols = {record.sym for record in stretch_of(item)[item.from_offset :]}
        named[len(symbols) > 1, f" of {item.symbol}" in item.question] += 1
    assert named[True, True] > 50
    assert not named[True, False]
    assert 0.3 < named[False, True] / (named[False, True] + named[False, False]) < 0.7


def test_synthetic_feeds_are_none_that_a_training_could_have_drawn():
    def first(rng: random.Random) -> tuple[Record, ...]:
        source = feed(rng, instruments(rng, 6))
        return tuple(next(source) for _ in range(3))

    trained = {first(random.Random(seed)) for seed in range(1_000)}
    ours = [Synthetic(seed).stretch(number, True, 0) for seed in range(10) for number in range(10)]
    held_out = {tuple(next(source) for _ in range(3)) for source in ours}
    assert len(held_out) == 100
    assert not held_out & trained


def test_sessions_by_key_see_only_their_own_records():
    found = evaluate_engine(engine(), CONFIG, replace(SETTINGS, session_by="key", asks=200))
    assert found.overall == 1.0
    assert found.facts.session_by == "key"
    assert all(item.session == item.symbol for item in found.outcomes)
    assert max(Counter(p for p, _ in {(i.partition, i.session) for i in found.outcomes}).values()) > 1


def test_the_sample_has_a_session_for_each_symbol():
    found = evaluate_engine(engine(), CONFIG, Settings(feed="sample", asks=200))
    assert found.overall == 1.0
    assert {item.session for item in found.outcomes} == {"BTCUSDT", "XBTUSDT", "USDJPY"}
    assert set(found.by_question) == set(KINDS)
    assert any(item.has_hopped for item in found.outcomes)


def write_trades(path: Path, num: int, sym: str = "AB{C}") -> Path:
    rows = [(1_700_000_000 + i, sym, f"{100 + i * 37 % 50}.{i % 10}", 1 + i % 7, SIDES[i % 2]) for i in range(num)]
    lines = ["ts,symbol,price,size,side", *(",".join(map(str, row)) for row in rows)]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def test_a_file_is_played_and_what_it_cannot_answer_is_not_asked(tmp_path):
    found = evaluate_engine(engine(), CONFIG, Settings(feed=str(write_trades(tmp_path / "t.csv.gz", 400)), asks=100))
    assert found.overall == 1.0
    assert set(found.by_question) == {name for name, kind in KINDS.items() if not kind.is_about_quotes}


def test_a_file_too_short_for_all_questions_gives_as_many_as_it_can(tmp_path):
    path = write_trades(tmp_path / "t.csv.gz", 3)
    found = evaluate_engine(engine(), CONFIG, Settings(feed=str(path), asks=100_000, per_point=100))
    assert 0 < len(found.outcomes) < 100_000
    assert found.overall == 1.0


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("ts,symbol,price,size\n", Usage, "has no records"),
        ("ts,symbol,price,size\nx,A,1,2\n", BadRecord, "t.csv:2: "),
        (None, Usage, "no such file"),
    ],
)
def test_a_feed_that_is_none_is_told_in_one_line_before_a_model_is_loaded(tmp_path, text, error, said):
    path = tmp_path / "t.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=re.escape(said)):
        evaluate(lambda config: pytest.fail("built an engine"), CONFIG, Settings(feed=str(path)))


def test_only_the_first_records_of_a_huge_file_are_played(monkeypatch, tmp_path):
    monkeypatch.setattr("streamproc.evaluate.feeds.MOST_RECORDS", 50)
    notes: list[str] = []
    feeds = open_feeds(Settings(feed=str(write_trades(tmp_path / "t.csv.gz", 60))), notes.append)
    assert len(feeds.records) == 50 < MOST_RECORDS
    assert "only the first 50 records" in notes[0]


def test_a_record_that_does_not_fit_the_context_is_told():
    with pytest.raises(Usage, match=r"a record of \S+ has \d+ tokens"):
        evaluate_engine(engine(), replace(CONFIG, engine=replace(CONFIG.engine, context_tokens=16)), SETTINGS)


def test_a_question_that_the_worker_refuses_is_wrong_and_says_why():
    config = replace(CONFIG, worker=replace(CONFIG.worker, max_question_tokens=5))
    found = evaluate_engine(engine(), config, replace(SETTINGS, asks=16))
    doc = found.doc()
    assert (doc["overall"], doc["errors"], doc["unparsed"]) == (0.0, 16, 0)
    assert "worker.max_question_tokens" in found.text()


def test_a_worker_that_refuses_the_records_ends_the_evaluation():
    config = replace(CONFIG, worker=replace(CONFIG.worker, max_record_bytes=64))
    with pytest.raises(StreamprocError, match="the limit is 64"):
        evaluate_engine(engine(), config, replace(SETTINGS, asks=16))


def test_an_answer_as_of_another_offset_ends_the_evaluation(monkeypatch):
    """A source that gives one record too many is not passed over."""
    records = Play._records
    monkeypatch.setattr(Play, "_records", lambda self, lane, last: records(self, lane, last + 1))
    with pytest.raises(StreamprocError, match=r"asked over offsets 0 to \d+ of partition \d+, answered over 0 to"):
        evaluate_engine(engine(), CONFIG, replace(SETTINGS, asks=16))


def test_a_context_that_starts_elsewhere_ends_the_evaluation(monkeypatch):
    """A hop that comes too late is not passed over."""
    monkeypatch.setattr("streamproc.evaluate.run.draw_points", late_hops)
    with pytest.raises(StreamprocError, match=r"answered over [1-9]\d* to"):
        evaluate_engine(engine(), CONFIG, SETTINGS)


def late_hops(*args):
    """The points, as if no session had ever hopped."""
    return [
        Point(place, tuple(replace(inquiry, place=place) for inquiry in point.inquiries))
        for point in draw_points(*args)
        for place in [replace(point.place, from_offset=0)]
    ]


def test_contexts_are_long_unless_the_user_or_the_model_says_otherwise():
    built: list[int] = []
    made = engine()

    def build(config: Config) -> ReadingEngine:
        built.append(config.engine.context_tokens)
        if limit and config.engine.context_tokens > limit:
            raise Usage("has 1500 positions")
        return made

    notes: list[str] = []
    limit, few = 0, replace(SETTINGS, asks=16)
    unset = replace(CONFIG, sources={})
    assert evaluate(build, unset, few).facts.context_tokens == CONTEXT_TOKENS
    assert made.is_closed
    assert evaluate(build, CONFIG, few).facts.context_tokens == CONTEXT
    limit = 1500
    assert evaluate(build, unset, few, notes.append).facts.context_tokens == CONTEXT
    assert built == [CONTEXT_TOKENS, CONTEXT, CONTEXT_TOKENS, CONTEXT]
    assert notes == ["contexts of 1024 tokens, not 2048: has 1500 positions"]


def test_the_models_own_words_and_kinds_are_asked():
    kinds = {"last_side": replace(KINDS["last_side"], words="Side{of}?", answer=AnswerType("choice", ("buy", "sell")))}
    made = engine()
    made.rendering = Rendering(kinds=kinds)
    made.runner.next_token = lambda text: ord("buy\n"[len(text.rpartition("= ")[2])])
    found = evaluate_engine(made, CONFIG, replace(SETTINGS, asks=40))
    assert set(found.by_question) == {"last_side"}
    assert all(item.question in ("Side?", f"Side of {item.symbol}?") for item in found.outcomes)
    assert all(item.is_right == (item.truth == "buy") for item in found.outcomes)


def test_the_settings_of_the_worker_count_unless_the_flag_says_otherwise():
    config = replace(CONFIG, worker=replace(CONFIG.worker, session_by="key"), sources={"worker.session_by": "file"})
    few = replace(SETTINGS, asks=8)
    assert evaluate_engine(engine(), config, few).facts.session_by == "key"
    assert evaluate_engine(engine(), config, replace(few, session_by="partition")).facts.session_by == "partition"


def test_context_sizes_double_until_one_holds_the_whole_context():
    assert bounds_of(2048) == (256, 512, 1024, 2048)
    assert bounds_of(800) == (256, 512, 1024)
    assert [bound_of(num) for num in (1, 256, 257, 2048, 2049)] == [256, 256, 512, 2048, 4096]


def test_the_table_has_a_row_for_each_question_and_a_column_for_each_context(report):
    head, *rows = report.text().splitlines()
    assert head.split() == ["%", "right", "<=256", "<=512", "<=1024", "all", "n"]
    assert [row.split()[0] for row in rows[: len(KINDS) + 2]] == [*KINDS, "all", "n"]
    assert rows[0].split()[1:-1] == ["100.0"] * 4
    json.dumps(report.doc())


def test_nothing_heavy_is_imported_before_a_model_is_built():
    code = "import sys, streamproc.cli.eval, streamproc.evaluate\nprint({*sys.modules} & {'torch', 'transformers'})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
