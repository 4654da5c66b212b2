"""Every scenario in a short form, on a Kafka of its own behind the proxy: no violation, and something to violate."""

from pathlib import Path

import pytest
from harness.cluster import Cluster
from harness.scenarios import SCENARIOS, Setting

SHORT = ("T0", "T1", "T2", "T3", "T4", "T5", "T6", "T8", "T9", "T10", "NET")
SEED = 7


@pytest.mark.broker
@pytest.mark.parametrize("name", SHORT)
def test_nothing_is_lost_repeated_or_wrong_whatever_fails(name: str, cluster: Cluster, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    verdict = scenario.play(Setting(cluster, tmp_path, SEED, scenario.short_s))
    assert verdict.anomalies == [], f"see {tmp_path}"
    assert verdict.num_faults
    assert verdict.num_answers or name == "T0"
