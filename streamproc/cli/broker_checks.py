"""What `streamproc doctor` asks Kafka: names, ports, the cluster, every advertised address, the topics.

Kafka's commonest failure is the second hop: the bootstrap address answers, and the address that the broker then
advertises does not. Every question has its deadline, so that a dead broker costs seconds.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from streamproc.cli.checks import FAIL, OK, WARN, Check
from streamproc.config import Config
from streamproc.errors import StreamprocError
from streamproc.kafka.properties import (
    Address,
    Cluster,
    check_reachable,
    client_properties,
    connect_admin,
    librdkafka_version,
    open_port,
    parse_servers,
)
from streamproc.kafka.release import transactions_at_risk
from streamproc.kafka.topics import Finding, check, load_specs

PORT_TIMEOUT_S = 3.0
CLUSTER_TIMEOUT_S = 4.0
TOPICS_TIMEOUT_S = 5.0
CREATE_TOPICS = "streamproc topics create"
NO_BROKER = "start one with `streamproc broker start` or pass -b"

Result = TypeVar("Result")


def check_kafka(config: Config) -> Iterable[Check]:
    """Everything about Kafka, from the client's library to the topics."""
    yield Check("librdkafka", OK, librdkafka_version())
    try:
        properties = client_properties(config)
        addresses = parse_servers(properties["bootstrap.servers"])
        connect_admin(properties)
    except StreamprocError as problem:
        yield Check("kafka", FAIL, str(problem), "`streamproc config show --kafka` shows what clients get")
        return
    bootstrap = list(check_bootstrap(addresses))
    yield from bootstrap
    if all(found.state != OK for found in bootstrap):
        yield Check("topics", WARN, "not checked: no broker answers")
        return
    yield from check_cluster(config, properties)


def check_bootstrap(addresses: list[Address]) -> Iterable[Check]:
    """One line for each address; it is a failure only if none answers."""
    refusals = ask_ports(addresses)
    state = FAIL if all(refusals.values()) else WARN
    for (host, port), reason in refusals.items():
        if reason:
            yield Check("bootstrap", state, f"{host}:{port}: {reason}", NO_BROKER)
        else:
            yield Check("bootstrap", OK, f"{host}:{port} listens")


def check_cluster(config: Config, properties: Mapping[str, Any]) -> Iterable[Check]:
    try:
        cluster = check_reachable(properties, CLUSTER_TIMEOUT_S)
    except StreamprocError as problem:
        yield Check("cluster", FAIL, str(problem), "see security.protocol and the broker's log")
        yield Check("topics", WARN, "not checked: no broker answers")
        return
    count = f"{len(cluster.brokers)} broker{'s' * (len(cluster.brokers) != 1)}"
    yield Check("cluster", OK, f"{cluster.id}, {count}, controller {cluster.controller_id}")
    if risk := transactions_at_risk(properties):
        yield Check("release", WARN, risk)
    advertised = list(check_advertised(cluster))
    yield from advertised
    if any(found.state == OK for found in advertised):
        yield from check_topics(config, properties)
    else:
        yield Check("topics", WARN, "not checked: no advertised address answers")


def check_advertised(cluster: Cluster) -> Iterable[Check]:
    """Whether this machine reaches every broker under the name that it gives itself."""
    refusals = ask_ports(list(cluster.brokers.values()))
    for broker_id, (host, port) in sorted(cluster.brokers.items()):
        if reason := refusals[host, port]:
            mend = f"set advertised.listeners of broker {broker_id} to an address that this machine reaches"
            yield Check("advertised", FAIL, f"broker {broker_id} at {host}:{port}: {reason}", mend)
        else:
            yield Check("advertised", OK, f"broker {broker_id} at {host}:{port} listens")


def check_topics(config: Config, properties: Mapping[str, Any]) -> Iterable[Check]:
    """How each of the six topics stands."""
    admin = connect_admin(properties)
    findings = within(TOPICS_TIMEOUT_S, lambda: check(admin, load_specs(config.topics)))
    if findings is None or isinstance(findings, Exception):
        detail = str(findings) if findings else f"no answer within {TOPICS_TIMEOUT_S:.0f} s"
        yield Check("topics", FAIL, detail, "see the broker's log")
        return
    yield from map(check_topic, findings)


def check_topic(found: Finding) -> Check:
    if found.state == "ok":
        return Check("topic", OK, f"{found.name}, {found.partitions} partitions")
    if found.state == "missing":
        return Check("topic", FAIL, f"{found.name} is missing", CREATE_TOPICS)
    detail = f"{found.name}: {'; '.join(found.problems) or found.state}"
    return Check("topic", FAIL, detail, "make it as `streamproc topics check` says, or name another in [topics]")


def ask_ports(addresses: list[Address]) -> dict[Address, str | None]:
    """Why each address does not accept a connection; None for those that do. All are asked at once."""
    refusals: dict[Address, str | None] = dict.fromkeys(addresses, "no answer")

    def ask(address: Address) -> None:
        refusals[address] = open_port(address, PORT_TIMEOUT_S)

    threads = [threading.Thread(target=ask, args=(address,), daemon=True) for address in refusals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PORT_TIMEOUT_S)
    return dict(refusals)


def within(timeout_s: float, question: Callable[[], Result]) -> Result | StreamprocError | None:
    """The answer or the error of a question that may hang; None where it did not come in time."""
    answers: list[Result | StreamprocError] = []

    def ask() -> None:
        try:
            answers.append(question())
        except StreamprocError as problem:
            answers.append(problem)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answers[0] if answers else None
