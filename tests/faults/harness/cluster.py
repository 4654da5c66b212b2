"""The Kafka under test: one KRaft node or several, whose workers come through the proxy and whose tests do not.

A worker has a lane to every node. Whatever it came by first, it learns of the others by its own lanes only.
"""

import random
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.node import Node, Quorum
from harness.proxy import Lane, Proxy
from streamproc.kafka.broker import HOST, free_port

NUM_LANES = 4  # of workers


class Cluster:
    """Its nodes and the proxy in front of them. `lanes`: of each worker, one to every node."""

    def __init__(self, folder: Path, seed: int = 0, num_nodes: int = 1) -> None:
        ports = iter(free_ports(num_nodes * (2 + 2 * NUM_LANES)))
        quorum = Quorum([next(ports) for _ in range(num_nodes)])
        self.nodes: list[Node] = []
        for index in range(num_nodes):
            lanes = [Lane(next(ports), next(ports), seed + index * NUM_LANES + n) for n in range(NUM_LANES)]
            self.nodes.append(Node(index + 1, folder / f"node-{index + 1}", next(ports), lanes, quorum))
        self.lanes = [tuple(node.lanes[n] for node in self.nodes) for n in range(NUM_LANES)]
        self.proxy = Proxy(lane for lanes in self.lanes for lane in lanes)
        self.address = ",".join(node.address for node in self.nodes)  # straight to the nodes

    def lane_address(self, number: int) -> str:
        return ",".join(f"{HOST}:{lane.port}" for lane in self.lanes[number])

    def start(self) -> "Cluster":
        self.proxy.start()
        at_once(node.restart for node in self.nodes)
        return self

    def pick(self, rng: random.Random) -> Node:
        """One of its nodes."""
        return rng.choice(self.nodes) if len(self.nodes) > 1 else self.nodes[0]

    def ensure_up(self) -> None:
        """Undo what may have been done to it: thawed, running, fair weather."""
        self.proxy.clear()
        for node in self.nodes:
            node.thaw()
        at_once(node.restart for node in self.nodes)

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        self.proxy.close()


def at_once(deeds: Iterable[Callable[[], object]]) -> None:
    """All of them, side by side: a node serves only once most of the others are there. Raises what one of them does."""
    deeds = list(deeds)
    with ThreadPoolExecutor(len(deeds)) as pool:
        for done in [pool.submit(deed) for deed in deeds]:
            done.result()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, no two alike."""
    found: list[int] = []
    while len(found) < count:
        port = free_port()
        if port not in found:
            found.append(port)
    return found
