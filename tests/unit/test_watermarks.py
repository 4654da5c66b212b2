"""Offsets are asked for again while a partition's leader moves, and for nothing else."""

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streamproc.kafka.positions import watermarks


class Moving:
    """A consumer whose first answers are errors."""

    def __init__(self, *codes: int) -> None:
        self.codes = list(codes)

    def get_watermark_offsets(self, where, timeout):
        if self.codes:
            raise KafkaException(KafkaError(self.codes.pop(0)))
        return 3, 9


def test_a_moving_leader_is_waited_for():
    moving = Moving(KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
    assert watermarks(moving, TopicPartition("t", 0), 5.0, sleep=lambda seconds: None) == (3, 9)


@pytest.mark.parametrize(
    ("code", "patience_s"), [(KafkaError.UNKNOWN_TOPIC_OR_PART, 5.0), (KafkaError.NOT_LEADER_FOR_PARTITION, -1.0)]
)
def test_other_errors_and_an_end_of_patience_are_raised(code, patience_s):
    with pytest.raises(KafkaException):
        watermarks(Moving(code), TopicPartition("t", 0), patience_s, sleep=lambda seconds: None)
