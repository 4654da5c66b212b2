"""Session heads of one partition, from the compacted sessions topic."""

from streamproc.config import Config
from streamproc.kafka.properties import client_properties
from streamproc.kafka.tailing import Tail
from streamproc.messages import Head, decode_head
from streamproc.state.publish import head_key


def read_heads(config: Config, number: int) -> dict[str, Head]:
    """The newest committed head of every session of this group in a partition of the records topic."""
    prefix = head_key(config.worker.group, config.topics.records, "")
    values: dict[bytes, bytes | None] = {}
    tail = Tail(client_properties(config), config.topics.sessions, number + 1)
    try:
        tail.start({number: tail.starts()[number]})
        for message in tail.read_to_end():
            if message.key and message.key.startswith(prefix):
                values[message.key] = message.value
    finally:
        tail.close()
    heads = (decode_head(value) for value in values.values() if value)
    return {head.session: head for head in heads}
