import pytest

from streamproc.answertypes import AnswerType
from streamproc.errors import Usage
from streamproc.messages import Query
from streamproc.queryfile import load_queries

GOOD = """
[query.trend]
question = "Is {session} rising?"
sessions = "BTC*"
trigger = "every 10 records"
emit = "change"
answer = { type = "choice", choices = ["up", "down"] }
max_tokens = 4
stop = ["."]

[query.last]
question = "Last?"
answer = "number"
"""


def test_a_file_of_questions_is_read_in_its_order(tmp_path):
    path = tmp_path / "q.toml"
    path.write_text(GOOD)
    assert load_queries(path) == [
        Query("trend", "Is {session} rising?", "BTC*", 10, "change", AnswerType("choice", ("up", "down")), 4, (".",)),
        Query("last", "Last?", answer=AnswerType("number")),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no question in it"),
        ("query = 5", "no question in it"),
        ("[query.a]\n[question]", "question: unknown"),
        ("[query.a]\nquestion = ''", "[query.a]: question: empty"),
        ("[query]\na = 'Up?'", "[query.a]: a query is an object"),
        ("[query.'a b']\nquestion = 'Up?'", "is not a query id"),
        ("[query.a\n", "not TOML"),
        ("[query.a]\nquestion = 'x'\n[query.a]\n", "not TOML"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_name_and_the_field(tmp_path, text, reason):
    path = tmp_path / "q.toml"
    path.write_text(text)
    with pytest.raises(Usage) as caught:
        load_queries(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(Usage, match=r"none.toml: cannot be read: No such file"):
        load_queries(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(Usage, match="not TOML"):
        load_queries(tmp_path / "bytes.toml")
