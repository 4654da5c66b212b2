"""The Kafka under test, as far as it can be seen without starting it."""

import random
from pathlib import Path

import pytest
from harness.cluster import NUM_LANES, Cluster
from harness.node import Node


def settings(node: Node) -> dict[str, str]:
    node.data_dir.mkdir(parents=True)
    node._write_properties(node.data_dir / "data")
    return dict(line.split("=", 1) for line in node._properties.read_text().splitlines())


def listeners(text: str) -> dict[str, str]:
    return dict(each.split("://") for each in text.split(","))


@pytest.mark.parametrize(("num_nodes", "copies", "least"), [(1, "1", "1"), (3, "3", "2")])
def test_everything_has_a_copy_on_every_node_and_most_of_them_must_be_there(
    num_nodes: int, copies: str, least: str, tmp_path: Path
) -> None:
    found = [settings(node) for node in Cluster(tmp_path, num_nodes=num_nodes).nodes]
    assert [each["node.id"] for each in found] == [str(number + 1) for number in range(num_nodes)]
    assert len({each["controller.quorum.voters"] for each in found}) == 1
    for each in found:
        assert {each[name] for name in each if name.endswith("replication.factor")} == {copies}
        assert each["min.insync.replicas"] == each["transaction.state.log.min.isr"] == least


def test_who_comes_by_a_lane_is_told_of_its_own_lanes_only(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, num_nodes=3)
    for number, node in enumerate(cluster.nodes):
        found = settings(node)
        inner, outer = listeners(found["listeners"]), listeners(found["advertised.listeners"])
        for lane in range(NUM_LANES):
            assert outer[f"LANE{lane}"] == cluster.lane_address(lane).split(",")[number]
            assert inner[f"LANE{lane}"] == f"127.0.0.1:{cluster.lanes[lane][number].target}"
        assert outer["PLAINTEXT"] == inner["PLAINTEXT"] == cluster.address.split(",")[number]


def test_of_several_nodes_each_is_picked(tmp_path: Path) -> None:
    cluster, rng = Cluster(tmp_path, num_nodes=3), random.Random(1)
    assert {cluster.pick(rng).number for _ in range(50)} == {1, 2, 3}
