"""Answers beside the truth: which are judged, over which records, and how the board shows it."""

from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from streamproc.answers import Received
from streamproc.cli.demo import picture
from streamproc.demo.board import Board, rows
from streamproc.demo.judge import Accuracy, Judge, Seen
from streamproc.demo.plan import standing_questions
from streamproc.kafka.producing import Position
from streamproc.market.questions import KINDS
from streamproc.market.rendering import read_rendering
from streamproc.market.sample import sample_records
from streamproc.messages import Answer, AsOf
from streamproc.records import Quote, Record, Trade


def log_of(*records: Record) -> dict[str, list[Seen]]:
    """A log of one partition in this order, by session."""
    log: dict[str, list[Seen]] = {}
    for offset, record in enumerate(records):
        log.setdefault(record.sym, []).append(Seen(0, offset, record))
    return log


def trades(*prices: str, sym: str = "A") -> list[Record]:
    return [Trade(sym, n, px, "1", "buy") for n, px in enumerate(prices)]


def judgeable(question: str, text: str, from_offset: int, offset: int, session: str = "A") -> Answer:
    as_of = AsOf("demo.records", 0, from_offset, offset, 0)
    return Answer(f"{question}{session}{from_offset}-{offset}", "flash", session, question, as_of, text, None, "model")


def judged_of(log: dict[str, list[Seen]], *answers: Answer) -> Judge:
    judge = Judge(KINDS.values())
    for one in answers:
        judge.take(one)
        judge.settle(log)
    return judge


def test_answers_are_right_by_value_and_wrong_ones_are_counted():
    log = log_of(*trades("10.5", "9", "12.50"), Quote("Q", 9, "1.10", "1.2"))
    judge = judged_of(
        log,
        judgeable("What was the last price?", " 12.5", 0, 2),
        judgeable("What was the last price of A?", "12.51", 0, 2),
        judgeable("Which way did the price of A move last?", "down", 0, 1),
        judgeable("Is the price above 12.5?", "no", 0, 2),
        judgeable("How many of the last 5 trades were buys?", "two", 0, 2),
        judgeable("What is the spread of Q?", "0.10", 3, 3, "Q"),
    )
    assert [judged.is_right for judged in judge.judged.values()] == [True, False, True, True, False, True]
    found = judge.accuracy()
    assert (found.num_judged, found.num_right, found.share) == (6, 4, 0.6667)
    assert found.first_wrong == "last_price of A as of 0:2 is '12.51', true is '12.50'"


def test_after_a_hop_only_the_new_generation_counts_and_before_it_the_old_one_still_does():
    question = "What was the highest of the last 5 prices?"
    log = log_of(*trades("9", "3", "2", "5", "4"))
    judge = judged_of(
        log,
        judgeable(question, "9", 0, 1),
        judgeable(question, "9", 0, 3),
        judgeable(question, "5", 2, 4),
        judgeable(question, "9", 0, 2),
        judgeable(question, "2", 2, 2),
        judgeable("Which way did the price move last?", "flat", 2, 2),
    )
    assert judge.accuracy() == Accuracy(6, 6)


def test_what_the_records_cannot_tell_and_what_is_no_kind_is_not_judged():
    log = log_of(Trade("A", 0, "1", "1"), Quote("A", 1, "1", "2"))
    judge = judged_of(
        log,
        judgeable("What was the last price?", "unknown", 1, 1),
        judgeable("What was the last side?", "buy", 0, 0),
        judgeable("What is the bid?", "1", 0, 0),
        judgeable("What was the last price of B?", "1", 0, 0),
        judgeable("Is the price above unknown?", "no", 0, 0),
        judgeable("Who leads?", "buyers", 0, 0),
    )
    assert judge.accuracy() == Accuracy(0, 0)
    assert judge.accuracy().share is None


def test_an_answer_waits_for_its_records_and_counts_once():
    log = log_of(*trades("1", "2", "3"))
    behind, one = {"A": log["A"][:2]}, judgeable("What was the last price?", "3", 0, 2)
    judge = judged_of(behind, one, one)
    assert judge.accuracy().num_judged == 0
    judge.settle(log)
    judge.take(one)
    judge.settle(log)
    assert judge.accuracy() == Accuracy(1, 1)


def test_words_of_a_models_own_are_read_back(tmp_path):
    (tmp_path / "rendering.toml").write_text('[questions.above]\nwords = "{level}? (is it less?){of}"\n')
    judge = Judge(read_rendering(tmp_path).kinds.values())
    found = judge.inquiry("9.5? (is it less?) of B/C of D")
    assert found is not None
    assert (found.kind.name, found.sym, found.level) == ("above", "B/C of D", "9.5")


def test_the_board_shows_the_truth_and_marks_what_is_wrong_without_colour():
    log = log_of(*trades("1", "2"))
    right, wrong = (
        judgeable("What was the last price?", "2", 0, 1),
        judgeable("Which way did the price move last?", "[b]down", 0, 1),
    )
    other = judgeable("Who leads?", "buyers", 0, 1, "B")
    asked = {("A", "move"): wrong, ("A", "ask"): right, ("B", "x"): other}
    newest = {place: Received(one, Position(0, 0), 0, {}) for place, one in asked.items()}
    found = rows(SimpleNamespace(newest=newest, judge=judged_of(log, right, wrong)), 0)
    assert [(row.query, row.truth, row.is_right) for row in found] == [
        ("move", "up", False),
        ("x", "", None),
        ("ask last_price", "2", True),
    ]
    console = Console(width=100, no_color=True, file=StringIO())
    console.print(picture(Board("", found)))
    shown = [[cell.strip() for cell in line.split("│")[1:6]] for line in console.file.getvalue().splitlines()]
    assert ["A", "move", "[b]down", "up", "NO"] in shown
    assert ["A", "ask last_price", "2", "2", "yes"] in shown


@pytest.mark.parametrize("query", standing_questions(KINDS), ids=lambda query: query.id)
def test_every_question_has_a_true_answer_in_each_of_its_sessions(query):
    log = log_of(*sample_records())
    sessions = [session for session in log if query.matches(session)]
    asked = [(session, query.question.replace("{session}", session).replace("{vwap}", "10.5")) for session in sessions]
    judge = judged_of(log, *(judgeable(text, "?", 0, log[session][-1].offset, session) for session, text in asked))
    assert sessions
    assert [judged.is_right for judged in judge.judged.values()] == [False] * len(sessions)
