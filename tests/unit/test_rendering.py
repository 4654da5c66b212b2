"""What a model's folder says of records and questions, and who wins over it."""

from dataclasses import replace
from pathlib import Path

import pytest

from streamproc.answertypes import AnswerType
from streamproc.config import Config, Prompts
from streamproc.errors import Usage
from streamproc.market.questions import KINDS
from streamproc.market.rendering import FILE, Rendering, market_model, read_rendering
from streamproc.settings import load_config

GOOD = """
[prompts]
system = "Feed"
trade = "{sym} {px}"
stop = ["~"]
[questions.last_price]
words = "price{of}?"
answer = "number"
[questions.move]
words = "where{of}?"
answer = ["up", "flat", "down"]
"""


def written(folder: Path, text: str) -> Path:
    (folder / FILE).write_text(text)
    return folder


def test_a_folder_without_the_file_changes_nothing(tmp_path: Path):
    rendering = read_rendering(tmp_path)
    assert rendering == Rendering()
    assert rendering.prompts_of(Config()) == Prompts()
    assert rendering.kinds == KINDS


def test_the_file_wins_over_the_defaults_and_the_user_over_the_file(tmp_path: Path):
    rendering = read_rendering(written(tmp_path, GOOD))
    assert rendering.prompts_of(Config()) == replace(Prompts(), system="Feed", trade="{sym} {px}", stop=("~",))
    own = Config(prompts=Prompts(trade="{px}"))
    assert rendering.prompts_of(own).trade == "{px}"
    assert rendering.prompts_of(own).system == "Feed"


def test_a_default_that_the_user_has_written_out_is_his_choice(tmp_path: Path):
    default = Prompts().trade
    config = load_config(overrides=[f"prompts.trade={default}"], environ={})
    assert read_rendering(written(tmp_path, GOOD)).prompts_of(config).trade == default


def test_questions_in_the_models_words_keep_the_oracle(tmp_path: Path):
    kinds = read_rendering(written(tmp_path, GOOD)).kinds
    assert list(kinds) == ["last_price", "move"]
    assert kinds["last_price"].question("A") == "price of A?"
    assert kinds["move"].answer == AnswerType("choice", ("up", "flat", "down"))
    assert kinds["move"].oracle is KINDS["move"].oracle


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[prompts", "Expected ']'"),
        ("[other]\n", r"unknown table \[other\]"),
        ("prompts = 1", "prompts is not a table"),
        ("[prompts]\nstops = 1", "unknown setting prompts.stops, use one of system"),
        ("[prompts]\nstop = 'x'", "is not a list of texts"),
        ("[prompts]\ntrade = 5", "is not a text"),
        ("[prompts]\nstop = ['x', 1]", "is not a list of texts"),
        ("[questions.x]\nwords = 'y'", "questions.x is unknown, use one of last_price"),
        ("[questions.move]\nanswer = 'text'", "is a table with words"),
        ("[questions.move]\nwords = 'a{b}'", "must hold {of} and nothing else"),
        ("[questions.move]\nwords = 'a{'", "questions.move: "),
        ("[questions.move]\nwords = 'a{of:d}'", "must hold {of} and nothing else"),
        ("[questions.move]\nwords = 'a{of!r}'", "must hold {of} and nothing else"),
        ("[questions.move]\nwords = 'a'", "must hold {of} and nothing else"),
        ("[questions.above]\nwords = 'over{of}?'", "must hold {of} and {level}"),
        ("[questions.move]\nwords = 'a{of}'\nanswer = ['rising', 'falling']", "the oracle says up, down, flat"),
        ("[questions.last_price]\nwords = 'a{of}'\nanswer = 'boolean'", "is a number"),
        ("[questions.move]\nwords = 'a{of}'\nanswer = []", "answer.choices"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_the_files_name(tmp_path: Path, text: str, reason: str):
    with pytest.raises(Usage, match=reason) as caught:
        read_rendering(written(tmp_path, text))
    assert str(tmp_path / FILE) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_said(tmp_path: Path):
    (tmp_path / FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(Usage, match="utf-8"):
        read_rendering(tmp_path)


def test_the_shipped_model_speaks_of_every_kind():
    assert read_rendering(market_model()).kinds == KINDS
