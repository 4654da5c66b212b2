"""An evaluation asks about every kind and context equally often, over feeds that no training has drawn."""

import gzip
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from evaluating import CONFIG, CONTEXT, SETTINGS, engine, report_of_a_right_model
from reading import PlainRenderer

from streamproc.errors import BadRecord, Usage
from streamproc.evaluate import Outcome, Report, Settings, evaluate, evaluate_engine
from streamproc.evaluate.feeds import MOST_RECORDS, Synthetic, open_feeds
from streamproc.evaluate.plan import bound_of, bounds_of
from streamproc.market.questions import KINDS
from streamproc.market.synthetic import feed, instruments
from streamproc.records import SIDES, Record


@pytest.fixture(scope="module")
def report() -> Report:
    """Of a model that is always right."""
    return report_of_a_right_model()


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


def test_the_same_seed_asks_the_same_and_another_does_not(report):
    def asked(found: Report) -> set[tuple[int, int, str, str]]:
        return {(item.partition, item.offset, item.question, item.truth) for item in found.outcomes}

    assert asked(evaluate_engine(engine(), CONFIG, SETTINGS)) == asked(report)
    other = evaluate_engine(engine(), CONFIG, replace(SETTINGS, seed=8))
    assert len(asked(other) & asked(report)) < len(asked(report)) / 10


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


def test_context_sizes_double_until_one_holds_the_whole_context():
    assert bounds_of(2048) == (256, 512, 1024, 2048)
    assert bounds_of(800) == (256, 512, 1024)
    assert [bound_of(num) for num in (1, 256, 257, 2048, 2049)] == [256, 256, 512, 2048, 4096]


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
