"""What can be done to the broker and to the network, whoever works on them. `pause` lets so many seconds pass.

Of several nodes one is chosen, and it stays away long enough now and then for the others to take over.
"""

import random
from collections.abc import Callable, Sequence

from harness.cluster import Cluster
from harness.history import History
from harness.node import Node
from harness.proxy import DROPPED, FORGETFUL, HALF_OPEN, HELD, NARROW, REFUSED, SLOW, SLOW_CLOSE, Lane

WEATHERS = {
    "latency": SLOW,
    "bandwidth": NARROW,
    "hold": HELD,
    "drop": DROPPED,
    "half-open": HALF_OPEN,
    "refuse": REFUSED,
    "slow close": SLOW_CLOSE,
    "no brokers": FORGETFUL,
}
MOMENTS_S = (1.0, 4.0, 9.0)
AWAY_S = (0.0, 3.0, 8.0)
Pause = Callable[[float], None]
Nemesis = Callable[[Cluster, History, random.Random, Pause], None]


def kill_broker(cluster: Cluster, history: History, rng: random.Random, pause: Pause) -> None:
    node = cluster.pick(rng)
    history.fault("SIGKILL broker", node=node.number)
    node.kill()
    bring_back(cluster, node, rng, pause)


def end_broker(cluster: Cluster, history: History, rng: random.Random, pause: Pause) -> None:
    node = cluster.pick(rng)
    history.fault("SIGTERM broker", node=node.number)
    node.terminate()
    bring_back(cluster, node, rng, pause)


def bring_back(cluster: Cluster, node: Node, rng: random.Random, pause: Pause) -> None:
    """Start a node again on what it left; one that is alone at once."""
    if len(cluster.nodes) > 1:
        pause(rng.choice(AWAY_S))
    node.restart()


def freeze_broker(cluster: Cluster, history: History, rng: random.Random, pause: Pause) -> None:
    """For longer than clients wait for a reply, or not."""
    freeze_for(rng.uniform(0.5, 6.5), cluster.pick(rng), history, pause)


def freeze_for(seconds: float, node: Node, history: History, pause: Pause) -> None:
    history.fault("SIGSTOP broker", node=node.number)
    node.freeze()
    pause(seconds)
    node.thaw()


def spoil_lane(cluster: Cluster, history: History, rng: random.Random, pause: Pause) -> None:
    """Weather on one client's lanes; what meets new connections only has been preceded by a reset."""
    spoil(cluster, history, rng, pause, rng.choice(cluster.lanes[:3]))


def spoil(cluster: Cluster, history: History, rng: random.Random, pause: Pause, lanes: Sequence[Lane]) -> None:
    """Of several lanes, to as many nodes, all or one: its client then sees another cluster than the others do."""
    if len(lanes) > 1 and rng.random() < 0.5:
        lanes = [rng.choice(lanes)]
    weather, seconds = rng.choice(sorted(WEATHERS)), rng.choice(MOMENTS_S)
    history.fault(f"{weather} for {seconds} s", lanes=[lane.port for lane in lanes])
    is_reset = weather in ("refuse", "slow close", "no brokers") or rng.random() < 0.2
    for lane in lanes:
        lane.weather = WEATHERS[weather]
        if is_reset:
            cluster.proxy.reset(lane)
    pause(seconds)
    cluster.proxy.clear()


NEMESES: dict[str, Nemesis] = {
    "broker killed": kill_broker,
    "broker ended": end_broker,
    "broker frozen": freeze_broker,
    "network": spoil_lane,
    "network again": spoil_lane,  # as likely as what is done to the broker
}
