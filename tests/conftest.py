"""What tests share: a real Kafka, and topics of their own on it.

Where the Kafka comes from: STREAMPROC_TEST_BOOTSTRAP_SERVERS, else the embedded broker, else a container. Where none
can be had, tests that need one are skipped, or fail if STREAMPROC_REQUIRE_BROKER=1.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest

from streamproc.config import Topics
from streamproc.errors import StreamprocError
from streamproc.kafka.broker import HOST, Broker, free_port
from streamproc.kafka.server import SERVER_PROPERTIES

IMAGE = "apache/kafka:4.2.1"
os.environ.setdefault("TRITON_INTERPRET", "1")      # for tests/kernels; it counts when triton is imported, by whomever


@pytest.fixture(scope="session")
def bootstrap_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real Apache Kafka; one broker for the whole test run."""
    if given := os.environ.get("STREAMPROC_TEST_BOOTSTRAP_SERVERS"):
        yield given
        return
    with ExitStack() as stack:
        try:
            address = embedded(stack, tmp_path_factory.mktemp("broker"))
        except StreamprocError as problem:
            address = container(stack, str(problem))
        yield address


def embedded(stack: ExitStack, data_dir: Path) -> str:
    """Start the embedded broker -> its address; it stops with the stack."""
    broker = Broker(data_dir, free_port())
    stack.callback(shutil.rmtree, data_dir / "data", ignore_errors=True)
    stack.callback(broker.stop)
    return broker.start().address


def container(stack: ExitStack, reason: str) -> str:
    """Start Kafka in a container -> its address; without Docker the test is skipped or fails, as wanted."""
    try:
        from testcontainers.core.container import DockerContainer
        from testcontainers.core.waiting_utils import wait_for_logs

        port = free_port()
        kafka = DockerContainer(IMAGE).with_bind_ports(9092, port)
        for name, value in container_settings(port).items():
            kafka = kafka.with_env(name, value)
        wait_for_logs(stack.enter_context(kafka), "Kafka Server started", timeout=60)
    except Exception as problem:
        give_up = pytest.fail if os.environ.get("STREAMPROC_REQUIRE_BROKER") == "1" else pytest.skip
        give_up(f"no Kafka for tests: embedded: {reason}; container: {problem!r}")
    return f"{HOST}:{port}"


def container_settings(port: int) -> dict[str, str]:
    """Settings of the image: those of the embedded broker, reached through this port of the host."""
    listeners = {
        "listeners": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "controller.quorum.voters": "1@localhost:9093",
    }
    settings = {**SERVER_PROPERTIES, **listeners}
    return {f"KAFKA_{key.upper().replace('.', '_')}": value for key, value in settings.items()}


@pytest.fixture
def make_topics(bootstrap_servers: str) -> Callable[..., Topics]:
    """`make_topics(partitions=2)` -> names of six fresh topics that exist; names are unique to the call."""
    from confluent_kafka.admin import AdminClient

    from streamproc.kafka.topics import create, load_specs

    def make(partitions: int = 2) -> Topics:
        prefix = f"test-{uuid.uuid4().hex[:8]}"
        topics = Topics(**{name: f"{prefix}.{name}" for name in asdict(Topics())})
        outcomes = create(AdminClient({"bootstrap.servers": bootstrap_servers}), load_specs(topics), partitions)
        assert not [outcome for outcome in outcomes if outcome.error]
        return topics

    return make
