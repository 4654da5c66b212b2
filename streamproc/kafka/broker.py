"""The embedded broker: Apache Kafka itself, one KRaft process on this machine, reachable from this machine only.

It runs detached and outlives the command that starts it. Everything about it lies in one data folder:

    broker.json         pid, port, version and start of the running broker; written atomically, checked against the pid
    broker.lock         held while somebody starts or stops it
    server.properties   written at every start
    server.log          what Kafka says; console.log: what the JVM itself says; *.previous.log: of the run before
    data/               Kafka's own data; there only once it is fully formatted
"""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient

from streamproc.config import state_dir
from streamproc.errors import Refused, Unavailable
from streamproc.kafka.jars import Report, ensure_jars, kafka_version, locked, maven_fetch, pinned_jars
from streamproc.kafka.java import find_java
from streamproc.kafka.process import is_running, spawn_detached, terminate, wait_until
from streamproc.kafka.server import LOG4J2, decisive_line, new_cluster_id, server_properties

HOST = "127.0.0.1"
DEFAULT_PORT = 9092
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
PORT_PATIENCE_S = 1.0  # a killed process is gone a little before its sockets are
MIN_FREE_BYTES = 100 * 2**20

JVM_FLAGS = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError")


@dataclass(frozen=True, slots=True)
class BrokerInfo:
    """A running broker."""

    address: str
    version: str  # "4.2.1"
    pid: int
    data_dir: Path
    log_file: Path
    started_s: float  # Unix time


@dataclass(frozen=True, slots=True)
class _State:
    """What broker.json remembers."""

    pid: int
    port: int
    version: str
    started_s: float


class Broker:
    """The broker of one data folder. `start` and `stop` may be called by any process, in any order, at any time."""

    def __init__(self, data_dir: Path, port: int = DEFAULT_PORT) -> None:
        self.data_dir = data_dir.absolute()
        self.port = port
        self.log_file = self.data_dir / "server.log"
        self._properties = self.data_dir / "server.properties"
        self._state_file = self.data_dir / "broker.json"
        self._console = self.data_dir / "console.log"

    def status(self) -> BrokerInfo | None:
        """The running broker of this folder, whatever its port; None where it is stopped."""
        state = self._read_state()
        return self._info(state) if state and self._lives(state.pid) else None

    def start(self, report: Report = lambda there, total: None, timeout_s: float = START_TIMEOUT_S) -> BrokerInfo:
        """Start it, if it does not run yet, and return when clients can use it; `report` sees the first download.

        Raises Refused for a taken port, Unavailable where it cannot be started, both with what would do.
        """
        with self._exclusive():
            running = self.status()
            if running is None:
                return self._start_anew(report, timeout_s)
            if running.address != f"{HOST}:{self.port}":
                raise Refused(
                    f"the broker of {self.data_dir} already runs at {running.address}: "
                    "use that address, or `streamproc broker stop` first"
                )
            self._await_ready(running, timeout_s)
            return running

    def stop(self) -> Literal["stopped", "killed"] | None:
        """Stop it and wait until it is gone: by itself, or killed after 30 s; None where it did not run."""
        if not self.data_dir.is_dir():
            return None
        with self._exclusive():
            running = self.status()
            return self._end(running.pid, STOP_TIMEOUT_S) if running else None

    def _end(self, pid: int, grace_s: float) -> Literal["stopped", "killed"]:
        clean = terminate(pid, str(self._properties), grace_s)
        self._state_file.unlink(missing_ok=True)
        return "stopped" if clean else "killed"

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            with locked(self.data_dir / "broker.lock"):
                yield
        except OSError as problem:
            where = problem.filename or self.data_dir
            raise Unavailable(f"cannot use {where}: {problem.strerror or problem}; try another --data-dir") from None

    def _start_anew(self, report: Report, timeout_s: float) -> BrokerInfo:
        require_free(self.port)
        require_space(self.data_dir)
        started = self._launch(report)
        try:
            self._await_ready(started, timeout_s)
        except BaseException:
            self._end(started.pid, grace_s=5.0)
            raise
        return started

    def _launch(self, report: Report) -> BrokerInfo:
        java, jars = find_java(), pinned_jars()
        version = kafka_version(jars)
        paths = ensure_jars(state_dir() / "kafka" / version, jars, maven_fetch(), report)
        command = [java, *JVM_FLAGS, "-cp", os.pathsep.join(map(str, paths)), *self._logging()]
        self._format(command)
        self._write_properties(self.data_dir / "data")
        for log in (self._console, self.log_file):
            if log.exists():
                log.replace(log.with_suffix(".previous.log"))
        pid = spawn_detached([*command, "kafka.Kafka", str(self._properties)], self._console)
        state = _State(pid, self.port, version, time.time())
        self._write_state(state)
        return self._info(state)

    def _logging(self) -> list[str]:
        config = self.data_dir / "log4j2.xml"
        config.write_text(LOG4J2)
        return [f"-Dstreamproc.log={self.log_file}", f"-Dlog4j2.configurationFile={config.as_uri()}"]

    def _format(self, command: list[str]) -> None:
        """Make `data/` once, under another name until it is complete."""
        data, fresh = self.data_dir / "data", self.data_dir / "data.new"
        if data.exists():
            return
        shutil.rmtree(fresh, ignore_errors=True)
        self._write_properties(fresh)
        arguments = ["format", "--cluster-id", self._cluster_id(), "--config", str(self._properties)]
        done = subprocess.run(
            [*command, "kafka.tools.StorageTool", *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Unavailable(f"Kafka cannot format {data}: {decisive_line(done.stdout + done.stderr)}")
        fresh.rename(data)

    def _cluster_id(self) -> str:
        """Of a cluster that has this node only."""
        return new_cluster_id()

    def _write_properties(self, data: Path) -> None:
        self._properties.write_text(server_properties(f"{HOST}:{self.port}", f"{HOST}:{free_port()}", data))

    def _await_ready(self, info: BrokerInfo, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s

        def settled() -> bool:
            return not self._lives(info.pid) or accepts_connections(self.port)

        came = wait_until(settled, timeout_s)
        if came and self._lives(info.pid):
            came = answers(info.address, max(1.0, deadline_s - time.monotonic()))
        if not came or not self._lives(info.pid):
            why = "did not start" if came else f"was not ready in {timeout_s:.0f} s"
            raise Unavailable(f"Kafka {why}: {decisive_line(self._said())} (log: {self.log_file})")

    def _said(self) -> str:
        """What Kafka and the JVM have said since the start."""
        logs = (path for path in (self._console, self.log_file) if path.exists())
        return "\n".join(path.read_text(errors="replace") for path in logs)

    def _lives(self, pid: int) -> bool:
        return is_running(pid, str(self._properties))

    def _info(self, state: _State) -> BrokerInfo:
        address = f"{HOST}:{state.port}"
        return BrokerInfo(address, state.version, state.pid, self.data_dir, self.log_file, state.started_s)

    def _read_state(self) -> _State | None:
        try:
            return _State(**json.loads(self._state_file.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _write_state(self, state: _State) -> None:
        fresh = self._state_file.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(state)))
        fresh.replace(self._state_file)


def require_free(port: int) -> None:
    """Raises Refused where something else listens on the port."""
    if not wait_until(lambda: is_free(port), PORT_PATIENCE_S):
        raise Refused(
            f"port {port} is taken: choose another with --port, "
            f"or use what runs there, if it is a Kafka: --bootstrap-servers {HOST}:{port}"
        )


def is_free(port: int) -> bool:
    with suppress(OSError), bind(port):
        return True
    return False


def require_space(folder: Path) -> None:
    """Raises Unavailable where the disk is nearly full: Kafka would die without a word, or half alive."""
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise Unavailable(
            f"only {free // 2**20} MB are free in {folder}, Kafka needs {MIN_FREE_BYTES // 2**20}: "
            "make room or choose another --data-dir"
        )


def free_port() -> int:
    """A port that nobody listens on now."""
    with bind(0) as probe:
        port: int = probe.getsockname()[1]
        return port


def bind(port: int) -> socket.socket:
    probe = socket.socket()
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
    except OSError:
        probe.close()
        raise
    return probe


def accepts_connections(port: int) -> bool:
    with suppress(OSError), socket.create_connection((HOST, port), timeout=1.0):
        return True
    return False


def answers(address: str, timeout_s: float) -> bool:
    """Whether the cluster can be listed, and groups and transactions have their coordinators."""
    client: dict[str, Any] = {"bootstrap.servers": address, "log_level": 0}
    admin = AdminClient(client)
    try:
        admin.list_topics(timeout=timeout_s)
        described = admin.describe_consumer_groups(["streamproc-ready"], request_timeout=timeout_s)
        described["streamproc-ready"].exception()
        Producer({**client, "transactional.id": "streamproc-ready"}).init_transactions(timeout_s)
    except KafkaException:
        return False
    return True
