"""What scenarios do to the broker, or to one of its nodes, and to the way there."""

import time

from harness.lab import Lab
from harness.nemeses import NEMESES, end_broker, freeze_for, kill_broker, spoil
from harness.worker_faults import begin

SOCKET_S = 3.0  # socket.timeout.ms of the workers


def broker_bounced(lab: Lab, length_s: float) -> None:
    """T2: the broker is stopped or killed, and started again on what it left."""
    begin(lab, "a", "b")
    deadline, number = time.monotonic() + length_s, 0
    while time.monotonic() < deadline:
        lab.run(lab.rng.uniform(2.0, 5.0))
        nemesis = (kill_broker, end_broker)[number % 2]
        nemesis(lab.cluster, lab.history, lab.rng, lab.run)
        lab.until_moving()
        number += 1


def broker_frozen(lab: Lab, length_s: float) -> None:
    """T3: SIGSTOP of the broker for longer than clients wait for a reply, then SIGCONT: the requests that they had
    given up are carried out beside the new ones.
    """
    begin(lab, "a", "b")
    deadline = time.monotonic() + length_s
    while time.monotonic() < deadline:
        lab.run(lab.rng.uniform(1.0, 3.0))
        seconds = SOCKET_S + lab.rng.uniform(0.5, 3.5)
        freeze_for(seconds, lab.cluster.pick(lab.rng), lab.history, lab.run)
        lab.until_moving()


def bad_weather(lab: Lab, length_s: float) -> None:
    """NET: one worker's way to the broker after the other is spoilt, for a moment or for longer than anybody waits."""
    begin(lab, "a", "b")
    deadline = time.monotonic() + length_s
    while time.monotonic() < deadline:
        slot = lab.rng.choice(sorted(lab.workers.running))
        spoil(lab.cluster, lab.history, lab.rng, lab.run, lab.cluster.lanes[lab.workers.lane(slot)])
        lab.run(lab.rng.uniform(0.5, 3.0))


def spoil_broker(lab: Lab) -> None:
    """Something is done to it, or to somebody's way there."""
    NEMESES[lab.rng.choice(sorted(NEMESES))](lab.cluster, lab.history, lab.rng, lab.run)
