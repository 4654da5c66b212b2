"""librdkafka properties of a config, and clients made from them.

librdkafka's own log lines go to the Python logger `streamproc.librdkafka`, which is silent until the application
configures logging; a broker that cannot be reached is told by `check_reachable`.
"""

import logging
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, libversion
from confluent_kafka.admin import AdminClient

from streamproc.config import DEFAULT_BOOTSTRAP_SERVERS, Config
from streamproc.errors import Refused, Unavailable, Usage
from streamproc.kafka.translate import translate

Client = TypeVar("Client")
Address = tuple[str, int]

DEFAULT_PORT = 9092
LOGGER = logging.getLogger("streamproc.librdkafka")
LOGGER.addHandler(logging.NullHandler())
LOGIN_ERRORS = (KafkaError._AUTHENTICATION, KafkaError._SSL)


def client_properties(config: Config) -> dict[str, Any]:
    """The properties every client of this config starts from. Raises Usage for one that cannot be taken over."""
    given = translate(config.kafka).properties
    return {"bootstrap.servers": DEFAULT_BOOTSTRAP_SERVERS, "client.id": "streamproc", **given, "logger": LOGGER}


def connect(cls: Callable[[dict[str, Any]], Client], properties: Mapping[str, Any]) -> Client:
    """A Producer, Consumer or AdminClient. Raises Usage where librdkafka refuses a property."""
    try:
        return cls(dict(properties))
    except KafkaException as problem:
        reason = re.sub(r"^Failed to create \w+: ", "", problem.args[0].str())
        raise Usage(f"Kafka properties: {reason}") from None
    except (TypeError, ValueError) as problem:
        raise Usage(f"Kafka properties: {problem}") from None


@dataclass(frozen=True, slots=True)
class Cluster:
    """Who answered: the cluster's id, its controller's id, and the address that each broker is known by."""

    id: str
    controller_id: int
    brokers: dict[int, Address]


def connect_admin(properties: Mapping[str, Any]) -> AdminClient:
    """A client that manages topics. Raises Usage where librdkafka refuses a property."""
    return connect(AdminClient, properties)


def librdkafka_version() -> str:
    return str(libversion()[0])


def check_reachable(properties: Mapping[str, Any], timeout_s: float = 5.0) -> Cluster:
    """The cluster, once a broker answers. Raises Unavailable or Refused with one line; at once if nobody listens."""
    deadline = time.monotonic() + timeout_s
    servers = properties["bootstrap.servers"]
    if not any(open_port(address, timeout_s) is None for address in parse_servers(servers)):
        raise no_broker(servers)
    errors: list[KafkaError] = []
    admin = connect_admin({**properties, "error_cb": errors.append})
    while (cluster := ask_cluster(admin)) is None:
        if time.monotonic() > deadline or any(error.code() in LOGIN_ERRORS for error in errors):
            raise unreachable(servers, errors)
    return cluster


def ask_cluster(admin: AdminClient) -> Cluster | None:
    """The cluster, if a broker answers within a moment; errors met meanwhile go to the client's error_cb."""
    try:
        found = admin.list_topics(timeout=0.5)
    except KafkaException:
        admin.poll(0)
        return None
    brokers = {broker.id: (str(broker.host), int(broker.port)) for broker in found.brokers.values()}
    return Cluster(found.cluster_id or "", found.controller_id, brokers)


def unreachable(servers: str, errors: list[KafkaError]) -> Unavailable | Refused:
    """Why a broker that listens does not answer, from what the client told on the way."""
    login = [error for error in errors if error.code() in LOGIN_ERRORS]
    if login:
        return Refused(f"the broker at {servers} refuses the connection: {login[-1].str()}")
    if errors:
        return Unavailable(f"the broker at {servers} does not answer: {errors[0].str()}")
    return no_broker(servers)


def no_broker(servers: str) -> Unavailable:
    return Unavailable(f"no broker answers at {servers}: start one with `streamproc broker start` or pass -b")


def parse_servers(servers: str) -> list[Address]:
    """Hosts and ports of `bootstrap.servers`: `host`, `host:port`, `[v6]:port`, each with or without PROTOCOL://."""
    return [parse_address(part.strip()) for part in servers.split(",") if part.strip()]


def parse_address(text: str) -> Address:
    address = text.rpartition("://")[2]
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        return address.strip("[]"), DEFAULT_PORT
    if not port.isdecimal() or not 0 < int(port) < 65_536:
        raise Usage(f"bootstrap.servers: {text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def open_port(address: Address, timeout_s: float) -> str | None:
    """None where a TCP connection to the address can be made, else why not."""
    try:
        socket.create_connection(address, timeout=timeout_s).close()
    except socket.gaierror:
        return f"the name {address[0]} is not known"
    except TimeoutError:
        return "no answer"
    except OSError as problem:
        return (problem.strerror or str(problem)).lower()
    return None
