"""Kafka's errors in our words, by fate: what is not there, and what was refused."""

from confluent_kafka import KafkaError

from streamproc.errors import Refused, StreamprocError, Unavailable

MISSING = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}
SILENT = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
}


def failure(error: KafkaError, topic: str) -> StreamprocError:
    """What to raise for an error of a produce to, or a fetch from, a topic."""
    if error.code() in MISSING:
        return missing_topic(topic)
    if error.code() in SILENT:
        return Unavailable(f"topic {topic}: no Kafka answers: {error.str()}; is it running, and is -b right?")
    return Refused(f"topic {topic}: {error.name()}: {error.str()}")


def missing_topic(topic: str) -> Unavailable:
    return Unavailable(f"topic {topic} does not exist: create it with `streamproc topics create`")
