"""Kafka's protocol as far as it takes to tell a client that there are no brokers.

A cluster whose last broker is shutting down answers so for a moment: its topics, and nobody who leads them.
"""

import struct

from streamproc.kafka.release import varint

METADATA = 3  # API key
FLEXIBLE = 9  # version of its responses from which lengths are varints
REQUEST_HEAD, RESPONSE_HEAD = 12, 8  # bytes: length, API key, version, correlation id; length, correlation id


class Requests:
    """What a client asks on one connection, noted on the way."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._to_skip = 0
        self.metadata: set[int] = set()  # correlation ids

    def note(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            skipped = min(self._to_skip, len(data) - at)
            self._to_skip -= skipped
            at += skipped
            taken = data[at : at + REQUEST_HEAD - len(self._head)]
            self._head += taken
            at += len(taken)
            if len(self._head) == REQUEST_HEAD:
                length, key, version, correlation = struct.unpack(">ihhi", self._head)
                if key == METADATA and version >= FLEXIBLE:
                    self.metadata.add(correlation)
                self._to_skip = length - (REQUEST_HEAD - 4)
                self._head.clear()


class Responses:
    """What comes back on it. Pieces go on as they come, but for those of responses that are to be changed."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._held = bytearray()  # the beginning of a response that may have to be changed
        self._head = bytearray()  # of one that goes on as it comes
        self._to_pass = 0
        self.has_forgotten = False  # one was changed

    def through(self, data: bytes, forget: bool) -> bytes:
        """What may go on to the client."""
        out, rest = bytearray(), bytes(self._held) + data
        self._held.clear()
        while rest:
            if self._to_pass or self._head or not self._requests.metadata:
                num_passed = self._pass(rest)
                out += rest[:num_passed]
                rest = rest[num_passed:]
                continue
            whole = self._whole(rest, forget)
            if whole is None:
                self._held += rest
                break
            if whole:
                out += without_brokers(rest[:whole])
                self.has_forgotten = True
            rest = rest[whole:]
        return bytes(out)

    def _pass(self, data: bytes) -> int:
        """How many bytes belong to a response, or to the head of one, that goes on as it comes."""
        if self._to_pass:
            num_passed = min(self._to_pass, len(data))
            self._to_pass -= num_passed
            return num_passed
        taken = data[: RESPONSE_HEAD - len(self._head)]
        self._head += taken
        if len(self._head) == RESPONSE_HEAD:
            (length,) = struct.unpack_from(">i", self._head)
            self._to_pass = length + 4 - RESPONSE_HEAD
            self._head.clear()
        return len(taken)

    def _whole(self, data: bytes, forget: bool) -> int | None:
        """Bytes of the response to be changed; 0: this is none, it may pass; None: not known yet, or not all there."""
        if len(data) < RESPONSE_HEAD:
            return None
        length, correlation = struct.unpack_from(">ii", data)
        if correlation in self._requests.metadata and forget:
            if len(data) < length + 4:
                return None
            self._requests.metadata.discard(correlation)
            return int(length + 4)
        self._requests.metadata.discard(correlation)
        self._to_pass = length + 4
        return 0


def without_brokers(response: bytes) -> bytes:
    """A response to a metadata request, its brokers left out."""
    begin = RESPONSE_HEAD + 1 + 4  # no tags, how long the client is throttled
    count, at = varint(response, begin)
    for _ in range(count - 1):  # a compact array's length is one more than it holds
        at += 4  # id
        length, at = varint(response, at)
        at += length - 1 + 4  # host, port
        length, at = varint(response, at)
        at += max(length - 1, 0) + 1  # rack, no tags
    body = response[4:begin] + b"\x01" + response[at:]
    return struct.pack(">i", len(body)) + body

