"""What `topics/*.toml` promise: names from the settings, rules that fit together, examples that our own code reads."""

from dataclasses import fields

import orjson
import pytest

from streamproc.config import Topics
from streamproc.errors import BadRecord
from streamproc.kafka.topics import TopicSpec, compare, load_specs, with_partitions
from streamproc.messages import decode_answer, decode_ask, decode_head, decode_query
from streamproc.records import decode_record

OF_SOME = {"deaths", "key_bytes", "key_sha256", "value_bytes", "value_sha256"}  # headers that not every letter has
SPECS = {spec.role: spec for spec in load_specs(Topics())}
COMPACT, DELETE = frozenset({"compact"}), frozenset({"delete"})


def test_there_is_one_specification_for_every_topic_of_the_settings():
    assert list(SPECS) == [field.name for field in fields(Topics)]
    assert [spec.name for spec in load_specs(Topics(asks="mine"))][2] == "mine"


def test_the_topics_that_are_read_back_by_key_are_compacted():
    assert {role for role, spec in SPECS.items() if spec.config["cleanup.policy"] == "compact"} == {
        "control",
        "sessions",
    }


def test_asks_and_sessions_share_the_partition_numbers_of_records():
    assert {role for role, spec in SPECS.items() if spec.follows == "records"} == {"asks", "sessions"}
    assert len({SPECS[role].partitions for role in ("records", "asks", "sessions")}) == 1


def test_a_wanted_number_of_partitions_leaves_fixed_topics_alone():
    assert {spec.role: spec.partitions for spec in with_partitions(SPECS.values(), 7)} == {
        "records": 7, "control": 1, "asks": 7, "answers": 7, "sessions": 7, "dead": 7,
    }  # fmt: skip


def test_the_example_of_records_is_a_record():
    example = SPECS["records"].example
    assert decode_record(example.value, example.key.encode()).kind == "trade"


def test_the_example_of_control_is_a_query():
    example = SPECS["control"].example
    assert decode_query(example.key, example.value).every == 100


def test_the_example_of_asks_is_an_ask_keyed_by_its_session():
    example = SPECS["asks"].example
    assert decode_ask(example.value).session == example.key


def test_the_example_of_answers_is_an_answer_keyed_by_query_and_session():
    example = SPECS["answers"].example
    answer = decode_answer(example.value)
    assert example.key == f"{answer.query_id}/{answer.session}"
    assert answer.as_of is not None
    assert decode_answer(answer.encode()) == answer


def test_the_example_of_sessions_is_a_head_keyed_by_its_session():
    example = SPECS["sessions"].example
    head = decode_head(example.value)
    assert head.session == example.key
    assert decode_head(head.encode()) == head


def test_the_example_of_dead_is_bad_for_the_reason_it_gives():
    example = SPECS["dead"].example
    assert set(example.headers) == set(SPECS["dead"].schema["headers"]) - OF_SOME
    with pytest.raises(BadRecord) as problem:
        decode_record(example.value, example.key.encode())
    assert str(problem.value) == example.headers["reason"]
    assert problem.value.code == example.headers["code"]


@pytest.mark.parametrize("role", ["records", "control", "asks", "answers", "sessions"])
def test_an_example_has_what_its_schema_requires_and_nothing_it_does_not_know(role: str):
    spec = SPECS[role]
    value = orjson.loads(spec.example.value)
    assert set(spec.schema["required"]) <= set(value) <= set(spec.schema["properties"])


def standing(spec: TopicSpec, counts: dict[str, int], policy: frozenset[str]) -> tuple[str, tuple[str, ...]]:
    finding = compare(spec, counts, {spec.name: policy}, {s.role: s.name for s in SPECS.values()})
    return finding.state, finding.problems


def test_any_number_of_partitions_is_right_for_records():
    assert standing(SPECS["records"], {"streamproc.records": 12}, DELETE) == ("ok", ())


def test_asks_must_have_as_many_partitions_as_records():
    counts = {"streamproc.records": 12, "streamproc.asks": 4}
    assert standing(SPECS["asks"], counts, DELETE) == (
        "differs",
        ("has 4 partitions, needs 12: as many as streamproc.records",),
    )
    assert standing(SPECS["asks"], {**counts, "streamproc.asks": 12}, DELETE) == ("ok", ())


def test_control_must_have_one_partition_and_be_compacted():
    assert standing(SPECS["control"], {"streamproc.control": 3}, DELETE) == (
        "differs",
        ("has 3 partitions, needs 1: no other number will do", "cleanup.policy is delete, needs compact"),
    )


def test_a_topic_that_is_not_there_is_missing():
    assert standing(SPECS["dead"], {}, DELETE) == ("missing", ())
