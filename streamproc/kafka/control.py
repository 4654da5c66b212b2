"""The control topic: every worker reads all of it, from the start, outside of any group."""

from streamproc.config import Config
from streamproc.kafka.properties import client_properties
from streamproc.kafka.tailing import Tail
from streamproc.state.epoch import Message


class ControlTopic:
    """Messages of the control topic; the first poll returns all that there are."""

    def __init__(self, config: Config) -> None:
        self._topic = config.topics.control
        self._tail = Tail(client_properties(config), self._topic, 1)
        self._tail.start(self._tail.starts())
        self._is_loaded = False

    def poll(self) -> list[Message]:
        found = self._tail.poll(0) if self._is_loaded else list(self._tail.read_to_end())
        self._is_loaded = True
        return [Message(self._topic, m.partition, m.offset, m.key, m.value, m.timestamp_ms) for m in found]

    def close(self) -> None:
        self._tail.close()
