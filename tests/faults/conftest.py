"""One Kafka behind the proxy for all tests of a file."""

import os
from collections.abc import Iterator

import pytest
from harness.cluster import Cluster

from streamproc.errors import StreamprocError

SEED = 7


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Whoever spoils it leaves it running."""
    found = Cluster(tmp_path_factory.mktemp("faults"), SEED)
    try:
        found.start()
    except StreamprocError as problem:
        give_up = pytest.fail if os.environ.get("STREAMPROC_REQUIRE_BROKER") == "1" else pytest.skip
        give_up(f"no Kafka to spoil: {problem}")
    yield found
    found.close()
