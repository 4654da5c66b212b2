"""Topics of a run: made, deleted, and where they end."""

import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from streamproc.config import Topics
from streamproc.kafka.topics import create, load_specs


def admin_properties(address: str) -> dict[str, Any]:
    return {"bootstrap.servers": address, "log_level": 0}


def make_topics(admin: AdminClient, name: str, counts: Mapping[str, int]) -> Topics:
    """Fresh topics of a run, with so many partitions by role."""
    prefix = f"{name.lower()}-{uuid.uuid4().hex[:8]}"
    topics = Topics(**{role: f"{prefix}.{role}" for role in asdict(Topics())})
    specs = [replace(spec, partitions=counts[spec.role]) for spec in load_specs(topics)]
    failed = [made for made in create(admin, specs) if made.error]
    assert not failed, failed
    return topics


def delete_topics(admin: AdminClient, topics: Topics) -> None:
    for deletion in admin.delete_topics(list(asdict(topics).values())).values():
        deletion.exception()


def offsets_at_end(address: str, topic: str, num_partitions: int, committed: bool) -> dict[int, int]:
    """End of every partition: of what readers of committed messages can see, or of the log."""
    admin = AdminClient(admin_properties(address))  # afresh: a client does not ask again where it knows old leaders
    level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
    wanted = {TopicPartition(topic, number): OffsetSpec.latest() for number in range(num_partitions)}
    found = admin.list_offsets(wanted, isolation_level=level, request_timeout=10.0)
    return {tp.partition: future.result().offset for tp, future in found.items()}
