"""What an offset's metadata says beside deaths: the model, and how many partitions there were."""

import pytest

from streamproc.kafka.gaps import Found, find_gap
from streamproc.kafka.identity import Identity, not_as_many
from streamproc.state.origin import UNKNOWN, Origin, decode_origin
from streamproc.state.stamp import MAX_POISONED, Stamp, decode_stamp

LIMIT = 4_096  # bytes that Kafka takes as it comes
NOW = Origin("a" * 16, 4)


def test_the_stamp_and_the_origin_are_read_back_each_from_the_same_metadata() -> None:
    stamp = Stamp("epoch 1", "topic", poisoned={7: 3})
    metadata = NOW.sign(stamp)
    assert decode_origin(metadata) == NOW
    assert decode_stamp(metadata) == stamp
    assert UNKNOWN.sign(stamp) == stamp.encode()


@pytest.mark.parametrize(
    "metadata",
    [
        "", "7", "[]", '"text"', '{"partitions": "many"}', '{"partitions": 1e999}', '{"partitions": -1}',
        '{"model": 7}', Stamp("e", "t").encode(),
    ],
)  # fmt: skip
def test_what_others_or_older_versions_wrote_says_nothing(metadata: str) -> None:
    assert decode_origin(metadata) == UNKNOWN


def test_the_metadata_stays_far_below_what_kafka_takes() -> None:
    poisoned = {10**15 + i: 1_000 for i in range(MAX_POISONED)}
    longest = Stamp("worker-with-a-long-name" * 10, "a" * 22, poisoned=poisoned)
    assert len(Origin("a" * 500, 10**6).sign(longest)) < LIMIT * 3 / 4


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (NOW, None),
        (UNKNOWN, None),
        (Origin("", 4), None),
        (Origin("b" * 16, 4), "with model bbbbbbbbbbbbbbbb, this worker's is aaaaaaaaaaaaaaaa"),
        (Origin("a" * 16, 2), "the topic had 2 partitions when group group read it, it has 4 now"),
    ],
)
def test_another_model_and_added_partitions_are_gaps_after_which_nothing_starts_over(
    before: Origin, words: str | None
) -> None:
    gap = find_gap(Found("records", 1, "group", "id", 0, 10, 5, "id", {}, before, NOW))
    assert (gap is None) == (words is None)
    if gap:
        assert words in gap.line("fail")
        assert "set worker.on_gap = rebuild" in gap.line("fail")
        assert not gap.starts_over


@pytest.mark.parametrize(
    ("records", "asks", "sessions", "short"),
    [(2, 2, 2, []), (2, 2, 5, []), (2, 3, 3, ["r"]), (3, 2, 3, ["a"]), (3, 3, 2, ["s"]), (2, 3, 2, ["r", "s"])],
)
def test_records_and_asks_have_as_many_partitions_and_sessions_no_fewer(
    records: int, asks: int, sessions: int, short: list[str]
) -> None:
    found = {"r": Identity("", records), "a": Identity("", asks), "s": Identity("", sessions)}
    line = not_as_many(found, "r", "a") or ""
    assert [topic for topic in found if f"--topic {topic} --partitions {max(records, asks)}`" in line] == short
    assert bool(line) == bool(short)
