"""Transactions of one slot on a real Kafka."""

from collections.abc import Callable

import pytest

from streamproc.config import Topics
from streamproc.errors import EpochAborted, Fenced
from streamproc.kafka.epoch import EpochSink
from streamproc.state.epoch import Epoch, Outgoing

pytestmark = pytest.mark.broker


def test_two_workers_in_one_slot_are_told_so_at_the_first_epoch_that_fails(
    bootstrap_servers: str, make_topics: Callable[..., Topics]
) -> None:
    topics = make_topics(1)
    epoch, warnings = Epoch((Outgoing(topics.answers, b"key", b"{}"),), ()), []
    properties = {"bootstrap.servers": bootstrap_servers}
    first = EpochSink(properties, f"{topics.answers}-slot", warnings.append)
    first.commit(epoch, None)
    second = EpochSink(properties, f"{topics.answers}-slot", warnings.append)
    with pytest.raises(EpochAborted):
        first.commit(epoch, None)
    (said,) = warnings
    assert f"if another worker uses the transactional id '{topics.answers}-slot'" in said
    assert said.endswith("give each worker its own worker.slot")
    with pytest.raises(EpochAborted):
        second.commit(epoch, None)
    with pytest.raises(Fenced, match=r"give each worker its own worker\.slot"):
        first.commit(epoch, None)
    first.close()
    second.close()
