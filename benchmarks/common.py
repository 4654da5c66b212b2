"""What benchmarks share: a Kafka of their own, topics of their own, and how results are told."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from confluent_kafka.admin import AdminClient
from telling import last_line, show

from streamproc.config import Topics
from streamproc.kafka.broker import Broker, free_port
from streamproc.kafka.topics import create, load_specs

__all__ = ["fresh_topics", "kafka", "last_line", "show"]


@contextmanager
def kafka() -> Iterator[tuple[str, str]]:
    """Address and name of a Kafka: STREAMPROC_TEST_BOOTSTRAP_SERVERS, else an embedded broker of our own."""
    if given := os.environ.get("STREAMPROC_TEST_BOOTSTRAP_SERVERS"):
        yield given, "given"
        return
    folder = Path(tempfile.mkdtemp(prefix="streamproc-bench-"))
    broker = Broker(folder, free_port())
    try:
        started = broker.start()
        yield started.address, f"apache-kafka {started.version}"
    finally:
        broker.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def fresh_topics(address: str, num_partitions: int) -> Iterator[Topics]:
    """Six topics that nobody has used; gone afterwards."""
    prefix = f"bench-{uuid.uuid4().hex[:8]}"
    topics = Topics(**{name: f"{prefix}.{name}" for name in asdict(Topics())})
    admin = AdminClient({"bootstrap.servers": address})
    failed = [outcome for outcome in create(admin, load_specs(topics), num_partitions) if outcome.error]
    assert not failed, failed
    try:
        yield topics
    finally:
        for deletion in admin.delete_topics(list(asdict(topics).values())).values():
            deletion.exception()

