"""What the demo needs around it: a Kafka, topics of its own, a worker. Nothing is left behind when it ends."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from streamproc.config import Config, Topics, state_dir
from streamproc.errors import Refused, Unavailable
from streamproc.kafka.broker import Broker, BrokerInfo, free_port
from streamproc.kafka.mock import start_mock
from streamproc.kafka.properties import check_reachable, client_properties, connect_admin
from streamproc.kafka.topics import create, delete, load_specs
from streamproc.settings_text import print_config

Note = Callable[[str], None]
Report = Callable[[int, int], None]

READY = "exact:"  # in the worker's first line
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
TOPICS = Topics("demo.records", "demo.control", "demo.asks", "demo.answers", "demo.sessions", "demo.dead")


@dataclass(frozen=True, slots=True)
class Kafka:
    """The cluster of this demo."""

    name: str  # "apache-kafka 4.4.0", or what stands in for it
    bootstrap_servers: str
    data_dir: Path | None  # of the embedded broker


@contextmanager
def kafka(config: Config, port: int, note: Note, report: Report) -> Iterator[Kafka]:
    """The cluster that the settings name; else the embedded broker, stopped at the end if it was started here."""
    if "bootstrap.servers" in config.kafka:
        check_reachable(client_properties(config))
        yield Kafka("given", config.kafka["bootstrap.servers"], None)
        return
    broker = Broker(state_dir() / "broker", port)
    running = broker.status()
    if running is None:
        try:
            running = start_broker(broker, note, report)
        except Unavailable as problem:
            yield from mock(problem, note)
            return
        try:
            yield Kafka(f"apache-kafka {running.version}", running.address, broker.data_dir)
        finally:
            broker.stop()
    else:
        yield Kafka(f"apache-kafka {running.version}", running.address, broker.data_dir)


def start_broker(broker: Broker, note: Note, report: Report) -> BrokerInfo:
    """Start the broker at its port, or at a free one where that is taken."""
    try:
        return broker.start(report)
    except Refused:
        other = Broker(broker.data_dir, free_port())
        note(f"port {broker.port} is taken, using {other.port}")
        return other.start(report)


def mock(problem: Unavailable, note: Note) -> Iterator[Kafka]:
    note(f"no Kafka can be had here ({problem}); this runs on librdkafka's mock, where no guarantee holds")
    cluster = start_mock()
    try:
        cluster.create_topics(getattr(TOPICS, name) for name in TOPICS.__slots__)
        yield Kafka("librdkafka mock", cluster.bootstrap_servers, None)
    finally:
        cluster.close()


def settings(config: Config, cluster: Kafka) -> Config:
    """The user's settings with the demo's topics and group."""
    worker = replace(config.worker, group="demo", slot="demo")
    return replace(
        config, topics=TOPICS, worker=worker, kafka={**config.kafka, "bootstrap.servers": cluster.bootstrap_servers}
    )


def make_topics(config: Config, clean: bool) -> None:
    """Create the demo's topics where they are missing; `clean` starts them anew."""
    admin, specs = connect_admin(client_properties(config)), load_specs(config.topics)
    if clean:
        delete(admin, specs, config.worker.group)
    failed = [finding for finding in create(admin, specs) if finding.state == "failed"]
    if failed:
        raise Unavailable(f"topic {failed[0].name} could not be created: {failed[0].error}")


@contextmanager
def worker(config: Config) -> Iterator[Path]:
    """A `streamproc run` of its own process -> its log; stopped by SIGTERM at the end."""
    folder = state_dir() / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    settings_file, log_file = folder / "streamproc.toml", folder / "worker.log"
    settings_file.write_text(print_config(config, secrets=True), encoding="utf-8")
    settings_file.chmod(0o600)
    command = [sys.executable, "-P", "-m", "streamproc", "run", "--config", str(settings_file)]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        await_ready(process, log_file)
        yield log_file
        stop(process, log_file)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def await_ready(process: "subprocess.Popen[bytes]", log_file: Path) -> None:
    """Until the worker says that it runs. Raises Unavailable with its last line if it does not."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while READY not in (text := log_file.read_text(encoding="utf-8", errors="replace")):
        if process.poll() is not None or time.monotonic() > deadline:
            lines = text.strip().splitlines() or ["it said nothing"]
            raise Unavailable(f"the worker did not start: {lines[-1]}; see {log_file}")
        time.sleep(0.05)


def stop(process: "subprocess.Popen[bytes]", log_file: Path) -> None:
    """End the worker by SIGTERM. Raises Unavailable where it does not end well."""
    process.terminate()
    try:
        code = process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"the worker did not stop within {STOP_TIMEOUT_S:.0f} s; see {log_file}") from None
    if code:
        raise Unavailable(f"the worker ended with {code}; see {log_file}")
