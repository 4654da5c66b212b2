"""What can be done to the broker and to the network, whoever works on them. `pause` lets so many seconds pass."""

import random
from collections.abc import Callable

from harness.cluster import Cluster
from harness.history import History
from harness.proxy import DROPPED, HALF_OPEN, HELD, NARROW, REFUSED, SLOW, SLOW_CLOSE, Lane

WEATHERS = {
    "latency": SLOW,
    "bandwidth": NARROW,
    "hold": HELD,
    "drop": DROPPED,
    "half-open": HALF_OPEN,
    "refuse": REFUSED,
    "slow close": SLOW_CLOSE,
}
MOMENTS_S = (1.0, 4.0, 9.0)
Pause = Callable[[float], None]
Nemesis = Callable[[Cluster, History, random.Random, Pause], None]


def kill_broker(cluster: Cluster, history: History, rng: random.Random, pause: Pause) -> None:
    history.fault("SIGKILL broker")
    cluster.kill()
    cluster.restart()


def end_broker(cluster: Cluster, history: History, rng: random.Random, pause: Pause) -> None:
    history.fault("SIGTERM broker")
    cluster.terminate()
    cluster.restart()


def freeze_broker(cluster: Cluster, history: History, rng: random.Random, pause: Pause) -> None:
    """For longer than clients wait for a reply, or not."""
    history.fault("SIGSTOP broker")
    cluster.freeze()
    pause(rng.uniform(0.5, 6.5))
    cluster.thaw()


def spoil_lane(cluster: Cluster, history: History, rng: random.Random, pause: Pause) -> None:
    """Weather on one lane; what is refused, or slow to close, has been reset before."""
    spoil(cluster, history, rng, pause, rng.choice(cluster.lanes[:3]))


def spoil(cluster: Cluster, history: History, rng: random.Random, pause: Pause, lane: Lane) -> None:
    weather, seconds = rng.choice(sorted(WEATHERS)), rng.choice(MOMENTS_S)
    history.fault(f"{weather} for {seconds} s", lane=lane.port)
    lane.weather = WEATHERS[weather]
    if weather in ("refuse", "slow close") or rng.random() < 0.2:
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
