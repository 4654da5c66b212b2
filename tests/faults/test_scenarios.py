"""Every scenario in a short form, on a Kafka of its own behind the proxy: no violation, and something to violate."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.cluster import Cluster
from harness.scenarios import SCENARIOS, Setting

from streamproc.errors import StreamprocError

SHORT = ("T0", "T1", "T2", "T3", "T4", "T5", "T6", "T8", "T9", "T10", "NET")
SEED = 7


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One broker for all scenarios: each makes topics of its own and leaves it running."""
    found = Cluster(tmp_path_factory.mktemp("faults"), SEED)
    try:
        found.start()
    except StreamprocError as problem:
        give_up = pytest.fail if os.environ.get("STREAMPROC_REQUIRE_BROKER") == "1" else pytest.skip
        give_up(f"no Kafka to spoil: {problem}")
    yield found
    found.close()


@pytest.mark.broker
@pytest.mark.parametrize("name", SHORT)
def test_nothing_is_lost_repeated_or_wrong_whatever_fails(name: str, cluster: Cluster, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    verdict = scenario.play(Setting(cluster, tmp_path, SEED, scenario.short_s))
    assert verdict.anomalies == [], f"see {tmp_path}"
    assert verdict.num_faults
    assert verdict.num_answers or name == "T0"
