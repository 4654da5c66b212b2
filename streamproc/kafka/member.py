"""How a worker is a member of its group: what its consumer is told."""

from collections.abc import Mapping
from typing import Any

PROPERTIES = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "isolation.level": "read_committed",
    "auto.offset.reset": "error",
    "fetch.wait.max.ms": 10,
    "fetch.queue.backoff.ms": 20,
    "queued.max.messages.kbytes": 16_384,
    # What is fetched ahead of a partition is thrown away when no more of it is to come for now (state/waiting.py).
    "queued.min.messages": 2_000,
    "fetch.message.max.bytes": 262_144,
    "topic.metadata.refresh.interval.ms": 10_000,
}


def is_incremental(properties: Mapping[str, Any]) -> bool:
    """Whether partitions come and go one by one (KIP-848), not all together as in classic groups."""
    return str(properties.get("group.protocol", "consumer")) == "consumer"


def member_properties(properties: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Of the consumer of a client with these properties. Records and asks go together: range in either protocol."""
    protocol = (
        {"group.protocol": "consumer", "group.remote.assignor": "range"}
        if is_incremental(properties)
        else {"partition.assignment.strategy": "range"}
    )
    return {**PROPERTIES, **protocol, **properties, "group.id": group}
