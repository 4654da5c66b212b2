"""The Kafka under test: one KRaft node whose workers come through the proxy, a lane each, and whose tests do not.

Every lane is a listener of its own that advertises the proxy's port, so a client stays on the lane it came by. The
plain listener leads straight to the broker: for what drives and checks.
"""

import os
import signal
import time
from pathlib import Path

from harness.proxy import Lane, Proxy
from streamproc.kafka.broker import HOST, Broker, BrokerInfo, free_port
from streamproc.kafka.process import is_running, wait_until

NUM_LANES = 4
SETTINGS = {
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "group.min.session.timeout.ms": "3000",
}


class ProxiedBroker(Broker):
    """The embedded broker with one more listener for every lane."""

    def __init__(self, data_dir: Path, port: int, lanes: list[Lane]) -> None:
        super().__init__(data_dir, port)
        self._lanes = lanes

    def _write_properties(self, data: Path) -> None:
        """In a .properties file the last line of a name counts."""
        super()._write_properties(data)
        text = self._properties.read_text()
        given = dict(line.split("=", 1) for line in text.splitlines())
        names = [f"LANE{number}" for number in range(len(self._lanes))]
        inner = [f"{name}://{HOST}:{lane.target}" for name, lane in zip(names, self._lanes, strict=True)]
        outer = [f"{name}://{HOST}:{lane.port}" for name, lane in zip(names, self._lanes, strict=True)]
        plain = given["listeners"]
        more = {
            **SETTINGS,
            "listeners": ",".join([plain, *inner]),
            "advertised.listeners": ",".join([given["advertised.listeners"], *outer]),
            "listener.security.protocol.map": ",".join(
                f"{name}:PLAINTEXT" for name in ("PLAINTEXT", "CONTROLLER", *names)
            ),
        }
        lines = "".join(f"{name}={value}\n" for name, value in more.items())
        self._properties.write_text(text + lines)


class Cluster:
    """The broker and the proxy in front of it."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        ports = free_ports(1 + 2 * NUM_LANES)
        lanes = [Lane(ports[1 + 2 * n], ports[2 + 2 * n], seed + n) for n in range(NUM_LANES)]
        self.proxy = Proxy(lanes)
        self.broker = ProxiedBroker(folder, ports[0], lanes)
        self.address = f"{HOST}:{ports[0]}"
        self._pid = 0

    @property
    def lanes(self) -> list[Lane]:
        return self.proxy.lanes

    def lane_address(self, number: int) -> str:
        return f"{HOST}:{self.lanes[number].port}"

    def start(self) -> "Cluster":
        self.proxy.start()
        self.restart()
        return self

    def restart(self) -> BrokerInfo:
        """Start the broker again on the data that it left; returns once it serves."""
        info = self.broker.start()
        self._pid = info.pid
        return info

    def ensure_up(self) -> None:
        """Undo what may have been done to it: thawed, running, fair weather."""
        self.proxy.clear()
        if self.is_alive:
            os.kill(self._pid, signal.SIGCONT)
        self.restart()

    @property
    def is_alive(self) -> bool:
        return bool(self._pid) and is_running(self._pid, str(self.broker.data_dir / "server.properties"))

    def kill(self) -> None:
        """SIGKILL; returns once it is gone."""
        os.kill(self._pid, signal.SIGKILL)
        assert wait_until(lambda: not self.is_alive, 10), "the broker does not die"

    def terminate(self) -> None:
        """SIGTERM; returns once it is gone."""
        self.broker.stop()

    def freeze(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    def freeze_for(self, seconds: float) -> None:
        self.freeze()
        time.sleep(seconds)
        self.thaw()

    def close(self) -> None:
        if self.is_alive:
            self.thaw()
        self.broker.stop()
        self.proxy.close()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, no two alike."""
    found: list[int] = []
    while len(found) < count:
        port = free_port()
        if port not in found:
            found.append(port)
    return found
