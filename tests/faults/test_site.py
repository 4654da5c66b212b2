"""What the driver of faults asks Kafka, while Kafka comes and goes."""

from typing import Any

import pytest
import workers
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from workers import Site, make_config

from streamproc.config import Topics


@pytest.mark.parametrize("code", workers.MOVING)
def test_committed_offsets_are_asked_for_until_the_coordinator_is_there(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Consumer:
        num_asked = 0

        def __init__(self, properties: dict[str, Any]) -> None:
            self.properties = properties

        def committed(self, wanted: list[TopicPartition], timeout_s: float) -> list[TopicPartition]:
            Consumer.num_asked += 1
            if Consumer.num_asked < 3:
                raise KafkaException(KafkaError(code))
            return [TopicPartition(each.topic, each.partition, 7) for each in wanted]

        def close(self) -> None:
            pass

    monkeypatch.setattr(workers, "Consumer", Consumer)
    site = Site(make_config(Topics(), "127.0.0.1:1"), 2)
    assert site.committed("records") == {0: (7, ""), 1: (7, "")}
    assert Consumer.num_asked == 3
