"""One node of the Kafka under test: the embedded broker, reached directly and by lanes, and what can be done to it."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.proxy import Lane
from streamproc.kafka.broker import HOST, Broker, BrokerInfo
from streamproc.kafka.process import is_running, wait_until
from streamproc.kafka.server import new_cluster_id

SETTINGS = {
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "group.min.session.timeout.ms": "3000",
}


@dataclass(frozen=True)
class Quorum:
    """The nodes of one cluster, numbered from 1: each is a broker and a controller. `ports` are the controllers'."""

    ports: Sequence[int]
    cluster_id: str = field(default_factory=new_cluster_id)

    @property
    def settings(self) -> dict[str, str]:
        """Every node has a copy of everything; of three copies two must be there for a write."""
        voters = [f"{number}@{HOST}:{port}" for number, port in enumerate(self.ports, 1)]
        copies, least = str(len(self.ports)), str(len(self.ports) // 2 + 1)
        return {
            "controller.quorum.voters": ",".join(voters),
            "default.replication.factor": copies,
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": least,
            "min.insync.replicas": least,
        }


class Node(Broker):
    """Every lane is a listener of its own that advertises the proxy's port, so a client stays on the lane it came by.
    The plain listener leads straight here.
    """

    def __init__(self, number: int, folder: Path, port: int, lanes: Sequence[Lane], quorum: Quorum) -> None:
        super().__init__(folder, port)
        self.number, self.lanes = number, lanes
        self.address = f"{HOST}:{port}"
        self._quorum = quorum
        self._pid = 0

    def _cluster_id(self) -> str:
        return self._quorum.cluster_id

    def _write_properties(self, data: Path) -> None:
        """In a .properties file the last line of a name counts."""
        super()._write_properties(data)
        more = {**SETTINGS, **self._quorum.settings, "node.id": str(self.number), **self._listeners()}
        with self._properties.open("a") as file:
            file.writelines(f"{name}={value}\n" for name, value in more.items())

    def _listeners(self) -> dict[str, str]:
        controller = f"{HOST}:{self._quorum.ports[self.number - 1]}"
        own = {"PLAINTEXT": self.address, "CONTROLLER": controller}
        inner = own | {f"LANE{n}": f"{HOST}:{lane.target}" for n, lane in enumerate(self.lanes)}
        outer = own | {f"LANE{n}": f"{HOST}:{lane.port}" for n, lane in enumerate(self.lanes)}
        return {
            "listeners": ",".join(f"{name}://{address}" for name, address in inner.items()),
            "advertised.listeners": ",".join(f"{name}://{address}" for name, address in outer.items()),
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in inner),
        }

    def restart(self) -> BrokerInfo:
        """Start it, again on the data that it left; returns once it serves. Nothing where it runs."""
        info = self.start()
        self._pid = info.pid
        return info

    @property
    def is_alive(self) -> bool:
        return bool(self._pid) and is_running(self._pid, str(self._properties))

    def kill(self) -> None:
        """SIGKILL; returns once it is gone."""
        os.kill(self._pid, signal.SIGKILL)
        assert wait_until(lambda: not self.is_alive, 10), f"node {self.number} does not die"

    def terminate(self) -> None:
        """SIGTERM; returns once it is gone."""
        self.stop()

    def freeze(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Nothing where it runs, or does not live."""
        if self.is_alive:
            os.kill(self._pid, signal.SIGCONT)

    def close(self) -> None:
        """For good: nobody needs what it leaves, and the last of several nodes cannot leave in peace."""
        if self.is_alive:
            self.kill()
        self.stop()
