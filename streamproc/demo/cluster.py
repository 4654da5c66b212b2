"""The demo's Kafka: the one that the user names, else the built-in one, else a mock that is none."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass

from streamproc.config import Config, state_dir
from streamproc.demo.plan import PARTITIONS
from streamproc.demo.worker import uninterrupted
from streamproc.errors import Refused, Unavailable, Usage
from streamproc.kafka.broker import DEFAULT_PORT, Broker, BrokerInfo, free_port, is_free
from streamproc.kafka.jars import Report, kafka_version, pinned_jars
from streamproc.kafka.java import find_java
from streamproc.kafka.mock import MockKafka, start_mock
from streamproc.kafka.properties import check_reachable, client_properties, connect_admin
from streamproc.kafka.removal import delete_group, delete_topics
from streamproc.kafka.topics import create, load_specs
from streamproc.settings import BOOTSTRAP

Say = Callable[[str], None]
Progress = Callable[[], AbstractContextManager[Report]]


@dataclass(frozen=True, slots=True)
class DemoKafka:
    """A Kafka that answers. `built_in` is the broker of this machine, if it is that one."""

    address: str
    name: str  # "apache-kafka 4.2.1"; "kafka" where its version is not known
    built_in: BrokerInfo | None = None
    started: bool = False  # by this demo, which stops it
    mock: MockKafka | None = None


def open_kafka(stack: ExitStack, config: Config, port: int | None, say: Say, progress: Progress) -> DemoKafka:
    """A Kafka; what was started for it ends with the stack. Raises Unavailable, Refused or Usage."""
    broker = Broker(state_dir() / "broker", port or DEFAULT_PORT)
    if BOOTSTRAP in config.kafka:
        if port is not None:
            raise Usage("--port is the built-in broker's: leave it out, or leave out -b")
        return named_kafka(config, broker.status())
    try:
        return built_in_kafka(stack, broker, say, progress)
    except Unavailable as problem:
        if is_installed():
            raise
        return mock_kafka(stack, str(problem), say)


def named_kafka(config: Config, ours: BrokerInfo | None) -> DemoKafka:
    """The Kafka that the settings name, once it answers."""
    properties = client_properties(config)
    check_reachable(properties)
    address = str(properties["bootstrap.servers"])
    if ours and ours.address == address:
        return DemoKafka(address, f"apache-kafka {ours.version}", ours)
    return DemoKafka(address, "kafka")


def built_in_kafka(stack: ExitStack, broker: Broker, say: Say, progress: Progress) -> DemoKafka:
    """The built-in Kafka: as it runs, or started until the stack ends."""
    running = broker.status()
    if running is None and not is_free(broker.port):
        taken, broker.port = broker.port, free_port()
        say(f"port {taken} is taken, the broker listens on {broker.port}")
    elif running is not None and broker.port == DEFAULT_PORT:
        broker.port = int(running.address.rpartition(":")[2])
    if running is None:
        stack.callback(stop_quietly, broker)
    with progress() as report:
        info = broker.start(report)
    return DemoKafka(info.address, f"apache-kafka {info.version}", info, running is None)


def stop_quietly(broker: Broker) -> None:
    with uninterrupted():
        broker.stop()


def is_installed() -> bool:
    """Whether Java and Kafka's jars are there, so that whatever went wrong is not their absence."""
    try:
        find_java()
    except Unavailable:
        return False
    jars = pinned_jars()
    folder = state_dir() / "kafka" / kafka_version(jars)
    return all((folder / jar.filename).exists() for jar in jars)


def mock_kafka(stack: ExitStack, reason: str, say: Say) -> DemoKafka:
    """librdkafka's mock, in this process."""
    say(f"no Kafka here ({reason}): this runs on librdkafka's mock, where none of the guarantees holds")
    mock = start_mock()
    stack.callback(mock.close)
    return DemoKafka(mock.bootstrap_servers, "librdkafka mock", mock=mock)


def prepare_topics(config: Config, kafka: DemoKafka, clean: bool, say: Say) -> int:
    """The demo's topics, new ones if `clean` -> partitions of the records topic. Raises Refused or Unavailable."""
    if kafka.mock:
        kafka.mock.create_topics(asdict(config.topics).values())
        return PARTITIONS
    admin = connect_admin(client_properties(config))
    if clean:
        delete_group(admin, config.worker.group)
        delete_topics(admin, asdict(config.topics).values())
    partitions = PARTITIONS
    for finding in create(admin, load_specs(config.topics), PARTITIONS):
        if finding.state == "failed":
            raise Refused(f"topic {finding.name}: {finding.error}: {'; '.join(finding.problems)}")
        for problem in finding.problems:
            say(f"warning: topic {finding.name}: {problem}; `streamproc demo --clean` makes it anew")
        if finding.role == "records":
            partitions = finding.partitions or PARTITIONS
    return partitions
