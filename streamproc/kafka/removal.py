"""Deletes topics and groups, and waits until they are gone; what is not there is as good as deleted."""

from collections.abc import Iterable

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from streamproc.errors import Refused, Unavailable
from streamproc.kafka.process import wait_until
from streamproc.kafka.topics import partition_counts

TIMEOUT_S = 10.0


def delete_topics(admin: AdminClient, names: Iterable[str]) -> None:
    """Delete topics with all that is in them. Raises Refused, or Unavailable where they are still there after 10 s."""
    there = [name for name in names if name in partition_counts(admin)]
    futures = admin.delete_topics(there, operation_timeout=TIMEOUT_S) if there else {}
    for name, future in futures.items():
        try:
            future.result()
        except KafkaException as problem:
            if problem.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise Refused(f"topic {name} cannot be deleted: {problem.args[0].str()}") from None
    if not wait_until(lambda: not partition_counts(admin).keys() & set(there), TIMEOUT_S):
        raise Unavailable(f"topics {', '.join(there)} are still there {TIMEOUT_S:.0f} s after they were deleted")


def delete_group(admin: AdminClient, group: str) -> None:
    """Delete a consumer group with its offsets. Raises Refused where it has members."""
    try:
        admin.delete_consumer_groups([group], request_timeout=TIMEOUT_S)[group].result()
    except KafkaException as problem:
        error: KafkaError = problem.args[0]
        if error.code() == KafkaError.NON_EMPTY_GROUP:
            raise Refused(f"group {group} still has a worker: stop it first") from None
        if error.code() != KafkaError.GROUP_ID_NOT_FOUND:
            raise Refused(f"group {group} cannot be deleted: {error.str()}") from None
