"""Which release of Kafka answers, as far as it matters here: whether its transactions survive the start of a broker.

The client library does not tell what a broker can do, so one is asked in Kafka's own protocol (KIP-584: the features
in the response to ApiVersions), where that can be done without logging in.
"""

import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from streamproc.kafka.properties import Address, parse_servers

API_VERSIONS, VERSION = 18, 3
SUPPORTED_FEATURES = 0  # tag
FEATURE = "metadata.version"
AT_RISK = range(30, 34)  # newest metadata.version of 4.3.0 to 4.4.0
TIMEOUT_S = 2.0
MOST_BYTES = 1 << 20


def transactions_at_risk(properties: Mapping[str, Any]) -> str | None:
    """What is wrong with this Kafka, in one line; None where nothing is known to be."""
    servers = properties["bootstrap.servers"]
    if str(properties.get("security.protocol", "plaintext")).lower() != "plaintext":
        return None
    for address in parse_servers(servers):
        level = newest_level(address)
        if level is not None:
            return _line(servers) if level in AT_RISK else None
    return None


def _line(servers: str) -> str:
    return (
        f"the Kafka at {servers} is a 4.3 or 4.4: up to 4.4.0 these may publish answers of an aborted epoch where a "
        "broker starts again (KAFKA-20734); use 4.2, or a release in which that is mended"
    )


def newest_level(address: Address) -> int | None:
    """The newest metadata.version that the broker there supports; None where it does not say."""
    client = b"\x0bstreamproc\x020"  # name and version, compact strings
    head = struct.pack(">hhi", API_VERSIONS, VERSION, 0) + b"\xff\xff\x00"  # no client id, no tags
    request = head + client + b"\x00"
    try:
        with socket.create_connection(address, timeout=TIMEOUT_S) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            (length,) = struct.unpack(">i", _read(connection, 4))
            return dict(_features(_read(connection, min(length, MOST_BYTES)))).get(FEATURE)
    except (OSError, struct.error, IndexError, UnicodeDecodeError):
        return None


def _read(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise OSError("the connection has ended")
        data += more
    return data


def _features(response: bytes) -> Iterator[tuple[str, int]]:
    """Supported features and their newest levels."""
    (error,) = struct.unpack_from(">h", response, 4)
    if error:
        return
    count, at = varint(response, 6)
    for _ in range(count - 1):  # a compact array's length is one more than it holds
        at = _skip_tags(response, at + 6)
    num_tags, at = varint(response, at + 4)
    for _ in range(num_tags):
        tag, at = varint(response, at)
        size, at = varint(response, at)
        if tag == SUPPORTED_FEATURES:
            count, begin = varint(response, at)
            for _ in range(count - 1):
                length, begin = varint(response, begin)
                name = response[begin : begin + length - 1].decode()
                (newest,) = struct.unpack_from(">h", response, begin + length - 1 + 2)
                yield name, newest
                begin = _skip_tags(response, begin + length - 1 + 4)
        at += size


def _skip_tags(data: bytes, at: int) -> int:
    count, at = varint(data, at)
    for _ in range(count):
        _, at = varint(data, at)
        size, at = varint(data, at)
        at += size
    return at


def varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned varint -> its value, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
