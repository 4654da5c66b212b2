"""What a broker says of its release: read from its own answer, and from nothing else that may listen there."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from streamproc.kafka.release import newest_level, transactions_at_risk

HOST = "127.0.0.1"


def response(*features: tuple[str, int], error: int = 0) -> bytes:
    """As a broker answers ApiVersions of version 3: two APIs, and the features that it supports."""
    apis = b"\x03" + struct.pack(">hhh", 0, 3, 13) + b"\x00" + struct.pack(">hhh", 18, 0, 4) + b"\x00"
    listed = bytes([len(features) + 1])
    for name, newest in features:
        listed += bytes([len(name) + 1]) + name.encode() + struct.pack(">hh", 1, newest) + b"\x00"
    epoch = struct.pack(">q", 7)
    tags = b"\x02" + b"\x01" + bytes([len(epoch)]) + epoch + b"\x00" + bytes([len(listed)]) + listed
    body = struct.pack(">ih", 0, error) + apis + struct.pack(">i", 0) + tags
    return struct.pack(">i", len(body)) + body


@contextmanager
def listening(answer: bytes) -> Iterator[tuple[str, int]]:
    """Somebody who answers everybody with this, and hangs up."""
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(1_000)
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()


@pytest.mark.parametrize(
    ("level", "is_at_risk"), [(25, False), (29, False), (30, True), (31, True), (33, True), (34, False)]
)
def test_only_4_3_and_4_4_are_warned_of(level: int, is_at_risk: bool) -> None:
    with listening(response(("group.version", 1), ("metadata.version", level))) as (host, port):
        line = transactions_at_risk({"bootstrap.servers": f"{host}:{port}"})
    assert (line is not None) is is_at_risk
    assert line is None or ("KAFKA-20734" in line and "\n" not in line)


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", response(), response(error=35), response(("metadata.version", 30))[:-3],
     struct.pack(">i", 2**31 - 1) + b"x", struct.pack(">i", 5) + b"\xff" * 5],
)  # fmt: skip
def test_who_does_not_say_is_not_warned_of(answer: bytes) -> None:
    with listening(answer) as address:
        assert newest_level(address) is None


def test_who_needs_a_login_or_is_away_is_not_asked() -> None:
    assert transactions_at_risk({"bootstrap.servers": f"{HOST}:1", "security.protocol": "SASL_SSL"}) is None
    assert transactions_at_risk({"bootstrap.servers": f"{HOST}:1"}) is None
