"""An evaluation on a model that answers from what it reads: what is right and wrong is told, and nothing else."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from evaluating import CONFIG, CONTEXT, SETTINGS, engine, report_of_a_right_model
from reading import PlainRenderer, ReadingEngine

from streamproc.answertypes import AnswerType
from streamproc.config import Config
from streamproc.errors import StreamprocError, Usage
from streamproc.evaluate import Report, evaluate, evaluate_engine
from streamproc.evaluate.plan import Point, draw_points
from streamproc.evaluate.play import Play
from streamproc.evaluate.run import CONTEXT_TOKENS
from streamproc.market.questions import KINDS
from streamproc.market.rendering import Rendering


@pytest.fixture(scope="module")
def report() -> Report:
    """Of a model that is always right."""
    return report_of_a_right_model()


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


def test_records_that_read_differently_after_a_hop_are_counted_as_they_read():
    made = engine()
    made.renderer = PlainRenderer(looks_back=True)
    found = evaluate_engine(made, CONFIG, SETTINGS)
    assert found.overall == 1.0
    assert sum(item.has_hopped for item in found.outcomes) > 20
    assert max(item.context_tokens for item in found.outcomes) <= CONTEXT


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


def test_the_table_has_a_row_for_each_question_and_a_column_for_each_context(report):
    head, *rows = report.text().splitlines()
    assert head.split() == ["%", "right", "<=256", "<=512", "<=1024", "all", "n"]
    assert [row.split()[0] for row in rows[: len(KINDS) + 2]] == [*KINDS, "all", "n"]
    assert rows[0].split()[1:-1] == ["100.0"] * 4
    json.dumps(report.doc())


def test_nothing_heavy_is_imported_before_a_model_is_built():
    code = "import sys, streamproc.cli.eval, streamproc.evaluate\nprint({*sys.modules} & {'torch', 'transformers'})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
