import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.answertypes import AnswerType
from streamproc.errors import BadAsk, BadInput, BadQuery, StreamprocError
from streamproc.messages import (
    MAX_QUESTION_CHARS,
    PLACEHOLDERS,
    Answer,
    Ask,
    AsOf,
    Head,
    Mark,
    Query,
    decode_answer,
    decode_ask,
    decode_head,
    decode_query,
    flash_answer_id,
    parse_query,
    text_digest,
)

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
plain = st.text("abcXYZ ?!.,é", min_size=1, max_size=40).filter(str.strip)
questions = st.builds(lambda text, name: f"{text} {{{name}}}", plain, st.sampled_from(PLACEHOLDERS)) | plain
ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
choices = words.filter(lambda word: word.strip() and word.isprintable())
schemas = st.dictionaries(words, st.none() | st.integers(0, 9) | st.dictionaries(words, words, max_size=3), max_size=3)
answer_types = (
    st.sampled_from(["text", "number", "boolean"]).map(AnswerType)
    | st.lists(choices, min_size=1, max_size=4, unique_by=str.strip).map(lambda found: AnswerType("choice", (*found,)))
    | words.filter(str.isprintable).map(lambda pattern: AnswerType("regex", pattern=pattern))
    | schemas.map(lambda schema: AnswerType("json", schema=orjson.dumps(schema).decode()))
)
stops = st.none() | st.lists(words, max_size=8).map(tuple)
counts = st.integers(0, 2**62)
queries = st.builds(
    Query,
    ids,
    questions,
    words,
    st.none() | st.integers(1, 10**9),
    st.sampled_from(["always", "change"]),
    answer_types,
    st.integers(1, 4096),
    stops,
)
asks = st.builds(
    Ask, words, words, questions, st.none() | counts, st.none() | counts, answer_types, st.integers(1, 4096), stops
)
as_ofs = st.builds(AsOf, words, counts, counts, counts, counts)
numbers = st.floats(allow_nan=False, allow_infinity=False)
values = st.none() | st.text(st.characters(codec="utf-8")) | numbers | st.booleans()
optional = st.none() | words
answers = st.builds(
    Answer,
    words,
    st.sampled_from(["flash", "ask"]),
    words,
    words,
    st.none() | as_ofs,
    optional,
    values,
    words,
    optional,
    optional,
    optional,
)
marks = st.builds(Mark, words, counts, words)
heads = st.builds(Head, words, counts, counts, st.dictionaries(ids, marks, max_size=3), words, counts)


@given(queries)
def test_every_query_comes_back_from_its_wire_form(query):
    found = decode_query(query.id.encode(), query.encode())
    assert found == query
    assert found.version == query.version


@given(asks)
def test_every_ask_comes_back_from_its_wire_form(ask):
    assert decode_ask(ask.encode()) == ask


@given(answers)
def test_every_answer_comes_back_from_its_wire_form(answer):
    assert decode_answer(answer.encode()) == answer


@given(heads)
def test_every_head_comes_back_from_its_wire_form(head):
    assert decode_head(head.encode()) == head


@given(st.binary(max_size=60) | st.sampled_from([b"[]", b"{}", b"null", b"1", b'{"marks": 1}', b'{"as_of": {"a": 1}}']))
def test_bytes_that_are_no_message_are_refused_in_our_own_words(value):
    for decode in (decode_ask, decode_answer, decode_head, lambda value: decode_query(b"id", value)):
        with pytest.raises(StreamprocError):
            decode(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["v", "question", "sessions", "trigger", "emit", "answer", "max_tokens", "stop", "id", "other"]


@given(st.sampled_from(FIELDS), json_values)
def test_any_value_in_any_field_of_a_query_is_taken_or_refused(field, value):
    try:
        query = parse_query("q", {"question": "Up?", field: value})
    except BadQuery:
        return
    assert decode_query("q", query.encode()) == query


@given(st.text(max_size=200))
def test_any_text_has_a_value_that_survives_json_or_none(text):
    choice, regex, json = AnswerType("choice", ("up", "down")), AnswerType("regex", pattern="a"), AnswerType("json")
    for kind in (AnswerType("number"), AnswerType("boolean"), choice, regex, json, AnswerType()):
        value = kind.value_of(text)
        assert orjson.loads(orjson.dumps(value)) == value


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (AnswerType(), " rising \n", "rising"),
        (AnswerType("number"), "about 39,432.48 USD", 39432.48),
        (AnswerType("number"), "-5", -5.0),
        (AnswerType("number"), "none", None),
        (AnswerType("number"), "9" * 400, None),
        (AnswerType("boolean"), "Yes, it is", True),
        (AnswerType("boolean"), "false", False),
        (AnswerType("boolean"), "perhaps", None),
        (AnswerType("boolean"), "", None),
        (AnswerType("choice", ("up", "up a lot")), "Up a lot.", "up a lot"),
        (AnswerType("choice", ("up", "down")), "flat", None),
        (AnswerType("choice", ("UP", "up", "Up")), "up", "up"),
        (AnswerType("choice", (" up ", "down")), " up", " up "),
        (AnswerType("number"), "unknown", None),
        (AnswerType("number"), "39.", 39.0),
        (AnswerType("boolean"), "unknown", None),
        (AnswerType("regex", pattern="a+"), " aa\n", "aa"),
        (AnswerType("json", schema="{}"), ' {"a": [1, 2.5, "x", null]}', {"a": [1, 2.5, "x", None]}),
        (AnswerType("json", schema="{}"), '{"a": 1, "b', None),
        (AnswerType("json", schema="{}"), "1e400", None),
        (AnswerType("json", schema="{}"), "[" * 31 + "]" * 31, orjson.loads("[" * 31 + "]" * 31)),
        (AnswerType("json", schema="{}"), "[" * 33 + "]" * 33, None),
    ],
)
def test_an_answer_has_the_value_of_its_type(kind, text, value):
    assert kind.value_of(text) == value


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        (AnswerType(), "393949b7d9ae"),
        (AnswerType("number"), "792225c5133b"),
        (AnswerType("boolean"), "35af56b247ac"),
        (AnswerType("choice", ("up", "down")), "8518fede3010"),
    ],
)
def test_a_version_is_for_ever(kind, version):
    assert Query("a", "Up?", answer=kind).version == version


def test_the_order_of_a_schema_is_kept_on_the_wire():
    doc = {"question": "Up?", "answer": {"type": "json", "schema": {"z": 1, "a": {"y": 2, "b": 3}}}}
    query = parse_query("a", doc)
    assert query.answer.schema == '{"z":1,"a":{"y":2,"b":3}}'
    assert decode_query("a", query.encode()) == query
    assert orjson.loads(query.encode())["answer"] == doc["answer"]


def test_a_grammar_says_what_may_be_written_and_where_it_ends():
    assert AnswerType().grammar(("\n",)) is None
    assert AnswerType("number").grammar(()) == '{"type":"number","stop":[]}'
    assert AnswerType("json", schema='{"z":1,"a":2}').grammar(("\n",)) == (
        '{"type":"json","schema":{"z":1,"a":2},"stop":["\\n"]}'
    )


def test_the_same_question_has_the_same_version_whatever_its_id():
    assert Query("a", "Up?").version == Query("b", "Up?").version
    assert Query("a", "Up?").version != Query("a", "Up?", every=1).version


def test_a_trigger_reads_as_it_is_written():
    for query in (Query("a", "Up?"), Query("a", "Up?", every=1), Query("a", "Up?", every=10)):
        assert parse_query("a", {"question": "Up?", "trigger": query.trigger}).every == query.every


@pytest.mark.parametrize(("glob", "hit"), [("*", True), ("BTC*", True), ("btc*", False), ("ETH*", False)])
def test_sessions_match_by_glob_and_case(glob, hit):
    assert Query("a", "Up?", glob).matches("BTCUSDT") is hit


@pytest.mark.parametrize(
    ("doc", "reason"),
    [
        ({}, "question: empty"),
        ({"question": " \n"}, "question: empty"),
        ({"question": 5}, "question: empty"),
        ({"question": "x" * (MAX_QUESTION_CHARS + 1)}, "the limit is 4000"),
        ({"question": "{price}"}, "unknown placeholder {price}, known are session, last"),
        ({"question": "{}"}, "unknown placeholder {}"),
        ({"question": "{last.__class__}"}, "unknown placeholder"),
        ({"question": "{last:.2f}"}, "{last} takes no format"),
        ({"question": "{last:{high}}"}, "{last} takes no format"),
        ({"question": "{last!r}"}, "{last} takes no format"),
        ({"question": "{last"}, "write {{ and }} for braces"),
        ({"question": "a } b"}, "write {{ and }} for braces"),
        ({"question": "x", "sessions": ""}, "sessions: "),
        ({"question": "x", "trigger": "every 0 records"}, "trigger: "),
        ({"question": "x", "trigger": "every 5 minutes"}, "trigger: "),
        ({"question": "x", "trigger": 5}, "trigger: "),
        ({"question": "x", "emit": "sometimes"}, "emit: "),
        ({"question": "x", "answer": "integer"}, "answer: 'integer' is unknown"),
        ({"question": "x", "answer": []}, ""),
        ({"question": "x", "answer": "choice"}, "answer.choices: "),
        ({"question": "x", "answer": {"type": "choice", "choices": "up"}}, "answer.choices: must be a list"),
        ({"question": "x", "answer": {"type": "text", "choices": ["up"]}}, "answer.choices: "),
        ({"question": "x", "answer": "regex"}, "answer.pattern: a regex needs its pattern"),
        ({"question": "x", "answer": {"type": "regex", "pattern": ["a"]}}, "answer.pattern: a regex needs its pattern"),
        ({"question": "x", "answer": {"type": "text", "pattern": "a"}}, "answer.pattern: a regex needs its pattern"),
        ({"question": "x", "answer": {"type": "regex", "pattern": "a" * 1001}}, "1001 characters, the limit is 1000"),
        ({"question": "x", "answer": {"type": "regex", "pattern": "a\n"}}, "answer.pattern: holds a control character"),
        ({"question": "x", "answer": "json"}, "answer.schema: json needs its schema, an object"),
        ({"question": "x", "answer": {"type": "json", "schema": True}}, "answer.schema: json needs its schema"),
        ({"question": "x", "answer": {"type": "text", "schema": {}}}, "answer.schema: json needs its schema"),
        ({"question": "x", "answer": {"type": "json", "schema": {"a": "x" * 16000}}}, "the limit is 16000"),
        ({"question": "x", "max_tokens": 0}, "max_tokens: "),
        ({"question": "x", "max_tokens": True}, "max_tokens: "),
        ({"question": "x", "stop": "."}, "stop: "),
        ({"question": "x", "stop": [""]}, "stop: "),
        ({"question": "x", "stop": ["."] * 9}, "stop: "),
        ({"question": "x", "v": 2}, "v: 2 is unknown"),
        ({"question": "x", "ttl": 5}, "ttl: unknown field"),
    ],
)
def test_a_bad_field_of_a_query_is_named_with_its_reason(doc, reason):
    if not reason:  # an empty answer type is the default one
        assert parse_query("q", doc).answer == AnswerType()
        return
    with pytest.raises(BadQuery) as caught:
        parse_query("q", doc)
    assert reason in str(caught.value)


def test_doubled_braces_are_braces():
    assert parse_query("q", {"question": "{{last}} is {last}?"}).question == "{{last}} is {last}?"


@pytest.mark.parametrize("query_id", [None, "", "a b", "-a", "a" * 65, "a/b", "a\n"])
def test_a_query_id_is_one_plain_word(query_id):
    with pytest.raises(BadQuery, match="is not a query id"):
        parse_query(query_id, {"question": "x"})


@pytest.mark.parametrize(("key", "value"), [(b"\xff", b"{}"), (b"q", b"{"), (b"q", b"[]"), (None, b"{}")])
def test_a_control_message_that_is_no_query_is_refused(key, value):
    with pytest.raises(BadQuery):
        decode_query(key, value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": ""}, "id: "),
        ({"id": 5}, "id: "),
        ({"session": None}, "session: "),
        ({"session": "s" * 129}, "session: "),
        ({"min_offset": -1}, "min_offset: "),
        ({"min_offset": 1.5}, "min_offset: "),
        ({"deadline_ms": "soon"}, "deadline_ms: "),
        ({"question": "{nope}"}, "unknown placeholder"),
        ({"max_tokens": 10**6}, "max_tokens: "),
    ],
)
def test_a_bad_field_of_an_ask_is_named_with_its_reason(change, reason):
    with pytest.raises(BadAsk) as caught:
        decode_ask(orjson.dumps({"id": "a", "session": "BTC", "question": "Up?", **change}))
    assert reason in str(caught.value)


def test_no_value_is_no_ask():
    with pytest.raises(BadInput):
        decode_ask(None)


def test_a_flash_answer_has_one_id_per_input():
    query = Query("a", "Up?")
    same = [flash_answer_id(query, "BTC", "records", 0, 7) for _ in range(2)]
    others = [
        flash_answer_id(Query("b", "Up?"), "BTC", "records", 0, 7),
        flash_answer_id(Query("a", "Down?"), "BTC", "records", 0, 7),
        flash_answer_id(query, "ETH", "records", 0, 7),
        flash_answer_id(query, "BTC", "other", 0, 7),
        flash_answer_id(query, "BTC", "records", 1, 7),
        flash_answer_id(query, "BTC", "records", 0, 8),
    ]
    assert len({*same, *others}) == 1 + len(others)


def test_ids_and_digests_are_the_same_in_every_process():
    assert flash_answer_id(Query("a", "Up?"), "BTC", "records", 0, 7) == "f094b23f993ed137d0a2ea6b"
    assert text_digest("up") == "75a288c0d6898c5f"


@pytest.mark.parametrize("trigger", ["every " + "9" * 5_000 + " records", "every ٣ records", "every 0 records"])
def test_a_trigger_that_is_no_number_of_records_is_refused_in_a_short_line(trigger):
    with pytest.raises(BadQuery, match="trigger") as caught:
        parse_query("q", {"question": "Q?", "trigger": trigger})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("choices", "reason"), [(["up", "up "], "twice"), (["a\x01b", "c"], "control character")])
def test_choices_that_cannot_be_told_apart_or_written_are_refused(choices, reason):
    with pytest.raises(BadQuery, match=reason):
        parse_query("q", {"question": "Q?", "answer": {"type": "choice", "choices": choices}})
