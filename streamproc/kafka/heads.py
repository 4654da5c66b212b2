"""Session heads, from the compacted sessions topic."""

from collections.abc import Collection

from streamproc.config import Config
from streamproc.kafka.properties import client_properties
from streamproc.kafka.tailing import Tail
from streamproc.messages import Head, decode_head
from streamproc.state.publish import head_key


def read_heads(config: Config, numbers: Collection[int]) -> dict[int, dict[str, Head]]:
    """The newest committed head of every session of this group, by partition of the records topic and session."""
    prefix = head_key(config.worker.group, config.topics.records, "")
    values: dict[int, dict[bytes, bytes | None]] = {number: {} for number in numbers}
    tail = Tail(client_properties(config), config.topics.sessions, max(numbers) + 1)
    try:
        starts = tail.starts()
        tail.start({number: starts[number] for number in numbers})
        for message in tail.read_to_end():
            if message.key and message.key.startswith(prefix):
                values[message.partition][message.key] = message.value
    finally:
        tail.close()
    heads = {number: [decode_head(value) for value in values[number].values() if value] for number in numbers}
    return {number: {head.session: head for head in heads[number]} for number in numbers}
